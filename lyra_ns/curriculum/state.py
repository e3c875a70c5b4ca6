"""How far a curriculum has come: one JSON file, which is always whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from lyra_ns.data.files import write_whole

FORMAT = "lyra_ns curriculum 1"
FILE_NAME = "curriculum.json"
WEIGHTS_FOLDER = "weights"


@dataclass(frozen=True)
class Weights:
    """A file of weights and its content."""

    file: str
    """Path, relative to the curriculum's folder where it lies there."""
    sha256: str
    """Digest of its bytes."""


@dataclass(frozen=True)
class StageRecord:
    """One stage that was begun."""

    settings: dict[str, str]
    """Options of `ns-train lyra` that decide what it learns."""
    command: str
    """The whole command, as it was begun."""
    starts_from: Weights | None
    """Weights that it was begun with; None: random ones."""
    weights: Weights | None = None
    """What it learned; None while it is not finished."""


@dataclass(frozen=True)
class CurriculumState:
    """All stages that were begun, by name."""

    scale: str
    """Name of the scale."""
    stages: dict[str, StageRecord] = field(default_factory=dict)
    """Begun and finished stages."""

    def with_record(self, name: str, record: StageRecord) -> CurriculumState:
        """The state with another record of one stage."""
        return replace(self, stages={**self.stages, name: record})

    def finished(self, name: str) -> Weights | None:
        """What a stage learned; None if it is not finished."""
        record = self.stages.get(name)
        return None if record is None else record.weights


def read_state(folder: Path, scale: str) -> CurriculumState:
    """The state kept in `folder`, or a new one; ValueError if it is damaged or of another scale."""
    path = folder / FILE_NAME
    if not path.is_file():
        return CurriculumState(scale)
    try:
        content = json.loads(path.read_text())
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}")
        stages = {name: _record(values) for name, values in content["stages"].items()}
        found = CurriculumState(content["scale"], stages)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} must be the state of a curriculum as this version writes it, found damage ({error}): "
            "give another --output, or delete the file to begin anew"
        ) from error
    if found.scale != scale:
        raise ValueError(
            f"{folder} holds a curriculum of scale {found.scale}, now {scale} is asked for: give another "
            "--output"
        )
    return found


def write_state(folder: Path, state: CurriculumState) -> None:
    """Writes the state, whole or not at all."""
    content = {"format": FORMAT, **asdict(state)}
    write_whole(folder / FILE_NAME, json.dumps(content, indent=1).encode())


def _record(values: Mapping) -> StageRecord:
    start, weights = values["starts_from"], values["weights"]
    return StageRecord(
        settings=dict(values["settings"]),
        command=values["command"],
        starts_from=None if start is None else Weights(**start),
        weights=None if weights is None else Weights(**weights),
    )


def weights_of(path: Path, folder: Path) -> Weights:
    """A file as it is recorded; FileNotFoundError if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}: give a .safetensors or official .pt file")
    path, folder = path.resolve(), folder.resolve()
    inside = path.is_relative_to(folder)
    name = path.relative_to(folder).as_posix() if inside else str(path)
    return Weights(name, sha256(path.read_bytes()).hexdigest())


def check_unchanged(weights: Weights, folder: Path, stage: str) -> Path:
    """The file of a finished stage; ValueError if it is gone or does not hold what the stage learned."""
    path = folder / weights.file
    found = weights_of(path, folder).sha256 if path.is_file() else "no file"
    if found != weights.sha256:
        raise ValueError(
            f"{path} must hold what stage {stage} learned (sha256 {weights.sha256[:16]}...), found "
            f"{found[:16]}: put the file back, or remove the stage's entry from {folder / FILE_NAME} to "
            "train it again"
        )
    return path
