"""What decides the clips of a data set, and a fingerprint of it. Nothing here depends on who makes them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lyra_ns.camera_paths import TRAJECTORIES, LookAt, Seeding, check_num_frames
from lyra_ns.data.latent_files import LatentFormat
from lyra_ns.depth.base import ASSUMED_FOV
from lyra_ns.depth.scale import DepthUnits
from lyra_ns.teachers.registry import TeacherChoice
from lyra_ns.text.to_image import FLUX

SIZE_STEP = 16
"""Height and width are multiples of it, as readers of the layout expect."""
DIGEST_DIGITS = 16
PLANNED = ("dynamic",)
"""What the plan itself says."""
RUN_OPTIONS = ("device", "samples_at_once", "clips", "text_cache")
"""Options of a teacher that say where and how it runs, not what it makes."""


@dataclass(frozen=True)
class MakeDataSettings:
    """Settings of a data set; two runs with equal ones make equal clips of a scene."""

    teacher: TeacherChoice = field(default_factory=TeacherChoice)
    """Which teacher makes the clips."""
    height: int = 704
    """Image height in pixels, a multiple of 16."""
    width: int = 1280
    """Image width in pixels, a multiple of 16."""
    num_frames: int = 121
    """Frames per clip, 8k + 1."""
    seed: int = 0
    """Start of all random draws, together with each scene's content."""
    trajectories: tuple[int, ...] = tuple(range(len(TRAJECTORIES)))
    """Which of the six paths of a scene are made; sources with cameras of their own keep those."""
    flipped: bool = True
    """Moving scenes: also the same paths on the reversed video, as views 6 to 11."""
    distance_factor: float = 1.0
    """Factor on all movement distances."""
    look_at: LookAt = "gen3c"
    """Poses of GEN3C, or exact ones that keep the centre in the middle."""
    seeding: Seeding = "per_trajectory"
    """Distances drawn per scene and path, or those that the official script ends up with."""
    prompt: str | None = None
    """Prompt of scenes that have none of their own."""
    negative_prompt: str | None = None
    """What clips should not show; None takes the teacher's default."""
    text_to_image: str = FLUX
    """Model of diffusers, hub name or folder, that makes pictures from prompts."""
    depth: str = "small"
    """Source of depth, as `load_depth` names them."""
    depth_units: DepthUnits = "auto"
    """How predicted depth becomes the scene's."""
    centre_quantile: float = 0.5
    """Where paths turn, with depth units centre_quantile."""
    fov_x: float = ASSUMED_FOV
    """Horizontal field of view in degrees of the clips (the cropped picture) where neither file nor estimator
    tells one."""
    pose_scale: float = 1.0
    """Clips that have cameras but no depth: a unit of the poses in units of the predicted depth."""
    dynamic: bool = False
    """Clips for replay that are no data set, such as ViPE's: whether things move in them, which their files
    do not tell."""
    repeat_last: bool = False
    """ViPE clips that are too short stand still at their end, as in the official script, and do not fail."""
    frame_depth: Literal["auto", "teacher", "estimated"] = "auto"
    """Depth of the frames: the teacher's, an estimate aligned to the 3D cache, or (auto) that where the
    teacher gives none."""
    latent_format: LatentFormat = "safetensors"
    """Kind of the latent files; pkl is the official one."""
    test_fraction: float = 0.1
    """Share of the scenes that is held out, by a draw on their names."""

    def __post_init__(self) -> None:
        check_num_frames(self.num_frames)
        if min(self.height, self.width) < SIZE_STEP or self.height % SIZE_STEP or self.width % SIZE_STEP:
            raise ValueError(
                f"expected height and width in multiples of {SIZE_STEP}, found {self.height} x {self.width}: "
                "take for example 704 x 1280"
            )
        known = range(len(TRAJECTORIES))
        if not self.trajectories or len(set(self.trajectories)) < len(self.trajectories):
            raise ValueError(f"expected trajectories, each once, found {list(self.trajectories)}")
        if not set(self.trajectories) <= set(known):
            raise ValueError(
                f"expected trajectories from 0 to {known[-1]}, found {list(self.trajectories)}: those of the "
                "reversed video follow by themselves"
            )
        if self.teacher.samples_at_once < 1:
            raise ValueError(f"expected samples_at_once of 1 or more, found {self.teacher.samples_at_once}")
        for name in ("distance_factor", "pose_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"expected {name} above 0, found {getattr(self, name)}")
        if not 0 < self.centre_quantile < 1:
            raise ValueError(f"expected centre_quantile between 0 and 1, found {self.centre_quantile}")
        if not 0 < self.fov_x < 180:
            raise ValueError(f"expected a field of view between 0 and 180 degrees, found {self.fov_x}")


def settings_as_json(settings: MakeDataSettings) -> dict[str, Any]:
    """The settings as JSON reads them back."""
    content = {key: value for key, value in asdict(settings).items() if key not in PLANNED}
    content["trajectories"] = sorted(settings.trajectories)
    content["teacher"] = {key: value for key, value in content["teacher"].items() if key not in RUN_OPTIONS}
    return json.loads(json.dumps(content, default=_as_text))


def settings_digest(settings: MakeDataSettings) -> str:
    """Fingerprint of the settings."""
    content = json.dumps(settings_as_json(settings), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:DIGEST_DIGITS]


def _as_text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a setting must be plain data or a path, found {type(value).__name__}")
