"""meta/CLIP.json: how one clip was made, beside its other files. Equal clips have equal records."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lyra_ns.codec.interface import VideoLatentSpec
from lyra_ns.data.files import write_whole
from lyra_ns.data.manifest import current_versions
from lyra_ns.generation.depth.scene_scale import SceneScale
from lyra_ns.generation.make_data.plan import PlannedScene
from lyra_ns.generation.make_data.scene_paths import ClipPath
from lyra_ns.generation.make_data.settings import MakeDataSettings, settings_digest

FOLDER = "meta"


@dataclass(frozen=True)
class ClipRecord:
    """What is written about one clip."""

    scene: PlannedScene
    """Its scene."""
    path: ClipPath
    """Its camera path."""
    prompt: str | None
    """What it should show."""
    noise_seed: int
    """Start of its noise."""
    scale: SceneScale | None
    """Units of the scene; None where nothing had to be estimated."""
    source_notes: tuple[str, ...]
    """What was done to the source."""
    teacher: str
    """Name of the teacher."""
    teacher_notes: dict[str, Any]
    """What the teacher says about the clip."""
    codec: VideoLatentSpec
    """Codec of its latents."""
    depth: str | None
    """Where the depth of its frames is from; None without depth."""

    def as_json(self, settings: MakeDataSettings) -> dict[str, Any]:
        """The record as it is written."""
        config = self.path.config
        return {
            "scene": self.scene.name,
            "trajectory": self.path.trajectory,
            "source": {"kind": self.scene.kind, "name": self.scene.source, "digest": self.scene.digest},
            "source_notes": list(self.source_notes),
            "path": None if config is None else asdict(config),
            "is_flipped": self.path.is_flipped,
            "prompt": self.prompt,
            "negative_prompt": settings.negative_prompt,
            "seed": settings.seed,
            "noise_seed": self.noise_seed,
            "scene_scale": None if self.scale is None else asdict(self.scale),
            "depth": self.depth,
            "teacher": self.teacher,
            "teacher_notes": self.teacher_notes,
            "codec": self.codec.codec,
            "codec_digest": self.codec.digest,
            "settings_digest": settings_digest(settings),
            "versions": current_versions(),
        }


def record_path(folder: Path, scene: str, trajectory: int) -> Path:
    """Where the record of a clip lies; `folder` holds the numbered ones."""
    return folder / str(trajectory) / FOLDER / f"{scene}.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record whole."""
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False).encode())


def codec_of_record(path: Path) -> VideoLatentSpec | None:
    """Name and digest of the codec of a clip's latents; None if there is no record."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        return VideoLatentSpec(content["codec"], digest=content["codec_digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"record {path} must be JSON as `ns-lyra make-data` writes it, found damage ({error}): delete "
            "the pose file of this clip, then it is made again"
        ) from error
