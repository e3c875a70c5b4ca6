"""Stage after stage, each from the weights of its predecessor; whatever was interrupted goes on.

A stage runs through nerfstudio's own trainer to its last step. How far a curriculum has come stands in one
JSON file, which is always whole.
"""

from __future__ import annotations

import gc
import inspect
import json
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lyra_ns.curriculum.stages import (
    SCALES,
    RunChoices,
    ScaleName,
    Stage,
    command_of,
    settings_of,
    stage_options,
    trainer_config_of,
)
from lyra_ns.data.atomic import write_whole
from lyra_ns.decoder.checkpoints import nerfstudio_tensors, save_decoder
from lyra_ns.decoder.model import LatentGaussianDecoder

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

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


def train_to_end(config: TrainerConfig, num_steps: int) -> Path:
    """The checkpoint after `num_steps` steps; what an earlier run of the same stage did is not repeated.

    ValueError if the run ends before, for example by Ctrl-C; a second call goes on from there.
    """
    folder = config.get_checkpoint_dir()
    newest = newest_checkpoint(folder)
    num_done = 0 if newest is None else steps_of(newest)
    if num_done < num_steps:
        config.load_checkpoint = newest
        config.max_num_iterations = num_steps - (num_done if _counts_from_start() else 0)
        _launch(config)
        newest = newest_checkpoint(folder)
        num_done = 0 if newest is None else steps_of(newest)
    if newest is None or num_done != num_steps:
        raise ValueError(
            f"the stage must end after {num_steps} steps, found {num_done} in {folder}: run the same command "
            "again to go on"
        )
    return newest


def newest_checkpoint(folder: Path) -> Path | None:
    """The last whole step-*.ckpt of a run; one that was cut off while it was written does not count."""
    found = sorted(folder.glob("step-*.ckpt"), key=steps_of, reverse=True)
    # torch.save ends with the directory of a zip file.
    return next((path for path in found if zipfile.is_zipfile(path)), None)


def steps_of(checkpoint: Path) -> int:
    """Steps that were made until this checkpoint, which carries the number of the last one in its name."""
    return int(checkpoint.stem.removeprefix("step-")) + 1


def export_weights(checkpoint: Path, config: TrainerConfig, codec_digest: str, output: Path) -> Path:
    """Writes the decoder of a checkpoint as one safetensors file, whole or not at all; returns the path."""
    model: Any = config.pipeline.model
    decoder = LatentGaussianDecoder(model.decoder)
    decoder.load_state_dict(nerfstudio_tensors(checkpoint))
    decoder.codec_digest = codec_digest
    return save_decoder(decoder, output)


def _counts_from_start() -> bool:
    """Whether nerfstudio counts --max-num-iterations from the resumed step on (1.1.5), or from step 0."""
    from nerfstudio.engine.trainer import Trainer

    return "self._start_step + num_iterations" in inspect.getsource(Trainer.train)


def _launch(config: TrainerConfig) -> None:
    """What `ns-train` does with a configuration, in this process; several devices get one each."""
    from nerfstudio.scripts.train import launch, train_loop
    from nerfstudio.utils import profiler, writer

    # Module-level lists that expect one run per process.
    writer.EVENT_WRITERS.clear()
    writer.GLOBAL_BUFFER.clear()
    profiler.PROFILER.clear()
    config.save_config()
    machine = config.machine
    try:
        launch(
            main_func=train_loop,
            num_devices_per_machine=machine.num_devices,
            device_type=machine.device_type,
            num_machines=machine.num_machines,
            machine_rank=machine.machine_rank,
            dist_url=machine.dist_url,
            config=config,
        )
    finally:
        # The trainer holds itself in cycles; the next stage needs its memory.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


logger = logging.getLogger(__name__)

LOCK_NAME = ".curriculum.lock"
NUM_LISTED = 4
"""Differing settings that an error lists."""


class Curriculum:
    """Some stages of one scale in one folder."""

    def __init__(
        self, scale: ScaleName, stages: Sequence[Stage], choices: RunChoices, init_from: Path | None = None
    ) -> None:
        """Check that every stage has data and weights; ValueError or FileNotFoundError if not."""
        self.scale, self.stages, self.choices = SCALES[scale], list(stages), choices
        self.folder, self.init_from = choices.output, init_from
        self.state = read_state(self.folder, scale)
        self._check_starts()
        self._codec_digests = {dynamic: self._codec_digest(dynamic) for dynamic in self._kinds_of_data()}

    def run(self) -> list[Path]:
        """The weights of each stage, trained now unless they were finished before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(self.folder):
            # Once more: another process may have been at work until now.
            self.state = read_state(self.folder, self.state.scale)
            return [self._run_stage(stage) for stage in self.stages]

    def _run_stage(self, stage: Stage) -> Path:
        number, start = self.scale.number(stage), self._start_of(stage)
        start_path = None if start is None else self.folder / start.file
        options = stage_options(self.scale, stage, self.choices, start_path)
        finished = self.state.finished(stage.name)
        if finished is not None:
            self._check_record(stage, {}, start)
            print(f"Stage {number}, {stage.name}: finished before", flush=True)
            return check_unchanged(finished, self.folder, stage.name)
        self._check_record(stage, settings_of(options), start)
        # Imported only now: nerfstudio takes longer to load than finished stages take to skip.

        record = StageRecord(settings_of(options), command_of(options), start)
        self._keep(stage, record)
        print(f"\nStage {number}, {stage.name}: {stage.num_steps} steps, as\n{record.command}\n", flush=True)
        config = trainer_config_of(options)
        checkpoint = train_to_end(config, stage.num_steps)
        path = self.folder / WEIGHTS_FOLDER / f"{stage.name}.safetensors"
        export_weights(checkpoint, config, self._codec_digests[stage.is_dynamic], path)
        self._keep(stage, replace(record, weights=weights_of(path, self.folder)))
        print(f"Stage {number}, {stage.name}: {path}", flush=True)
        return path

    def _keep(self, stage: Stage, record: StageRecord) -> None:
        self.state = self.state.with_record(stage.name, record)
        write_state(self.folder, self.state)

    def _start_of(self, stage: Stage) -> Weights | None:
        """The weights that a stage starts from, as its predecessor left them."""
        if self.init_from is not None and stage == self.stages[0]:
            return weights_of(self.init_from, self.folder)
        if stage.starts_from is None:
            return None
        weights = self.state.finished(stage.starts_from)
        assert weights is not None, "checked before the first stage"
        check_unchanged(weights, self.folder, stage.starts_from)
        return weights

    def _check_starts(self) -> None:
        """ValueError unless each predecessor is finished, asked for before its stage, or given as a file."""
        if self.init_from is not None:
            weights_of(self.init_from, self.folder)
        ready = {name for name in self.state.stages if self.state.finished(name)}
        for stage in self.stages:
            given = self.init_from is not None and stage == self.stages[0]
            if not given and stage.starts_from is not None and stage.starts_from not in ready:
                raise ValueError(
                    f"stage {stage.name} starts from {stage.starts_from}, which is neither finished in "
                    f"{self.folder} nor asked for: begin with stage {stage.starts_from}, or give weights for "
                    "the first stage with --init-from"
                )
            ready.add(stage.name)

    def _check_record(self, stage: Stage, settings: dict[str, str], start: Weights | None) -> None:
        """ValueError if the stage was begun with other settings (compared where given) or other weights."""
        record = self.state.stages.get(stage.name)
        if record is None:
            return
        names = sorted(record.settings.keys() | settings.keys()) if settings else []
        differing = [
            f"{name} was {record.settings.get(name)}, is {settings.get(name)}"
            for name in names
            if record.settings.get(name) != settings.get(name)
        ]
        digests = [None if weights is None else weights.sha256 for weights in (record.starts_from, start)]
        if digests[0] != digests[1]:
            differing.insert(0, f"the weights it started from were {digests[0]}, are {digests[1]}")
        if differing:
            raise ValueError(
                f"stage {stage.name} in {self.folder} was begun differently: "
                f"{'; '.join(differing[:NUM_LISTED])}; give what it was begun with, or another --output"
            )

    def _kinds_of_data(self) -> set[bool]:
        return {stage.is_dynamic for stage in self.stages}

    def _codec_digest(self, dynamic: bool) -> str:
        """Fingerprint of a data set's codec; ValueError if the data is not given or of the other kind."""
        from lyra_ns.data.store import LyraStore

        path = self.choices.dynamic_data if dynamic else self.choices.data
        kind, option = ("dynamic", "--dynamic-data") if dynamic else ("static", "--data")
        if path is None:
            raise ValueError(
                f"{'stages with dynamic in their names' if dynamic else 'stages 1 to 7'} train on {kind} "
                f"scenes, found no {option}: give it, or leave these stages out with --stages"
            )
        store = LyraStore(path)
        if store.is_dynamic != dynamic:
            raise ValueError(
                f"{option} must name {kind} scenes, found {path} with scenes that "
                f"{'move' if store.is_dynamic else 'stand still'}: give the other folder"
            )
        return store.spec.digest


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keeps other processes from training into the same folder; ValueError if one is at it."""
    with open(folder / LOCK_NAME, "w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"another process is training in {folder}: wait for it, or give another --output"
                ) from error
        yield
