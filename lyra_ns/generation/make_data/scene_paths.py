"""Cameras of a scene's clips, and how clips of the reversed video are turned back into forward time.

Views 6 to 11 of a dynamic scene are made on the reversed video. On disk their frames, depth, intrinsics and
poses run forward in time, of which the official script forgets the poses; their latents stay as they were
made, since nothing but the video of such views is read (docs/reference/gen3c.md, "Reversed video").
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from lyra_ns.cameras import CameraPath
from lyra_ns.data.pose_order import FIRST_FLIPPED_ID
from lyra_ns.generation.camera_paths import CameraPathConfig, camera_path, follow, lyra_six, reversed_in_time
from lyra_ns.generation.make_data.settings import MakeDataSettings
from lyra_ns.generation.teachers.interface import TeacherClip

FLIPPED_LABEL = "reversed"
"""Tells the draws of reversed views from those of the forward ones."""


@dataclass(frozen=True)
class ClipPath:
    """The camera path of one clip."""

    trajectory: int
    """Number of the clip."""
    config: CameraPathConfig | None
    """Its kind and the drawn distance; None for cameras that were given."""
    cameras: CameraPath
    """Cameras [L] along which the clip is made: of a flipped one in the time of the reversed video."""

    @property
    def is_flipped(self) -> bool:
        """Whether it is made on the reversed video."""
        return self.config is not None and self.trajectory >= FIRST_FLIPPED_ID


def scene_path(
    settings: MakeDataSettings, digest: str, trajectory: int, source: CameraPath, centre_depth: float
) -> ClipPath:
    """The path of clip `trajectory` of the scene with this digest, along its source cameras [L] or [1].

    The draw follows from seed, digest and number alone.
    """
    is_flipped = trajectory >= FIRST_FLIPPED_ID
    label = f"{digest}/{FLIPPED_LABEL}" if is_flipped else digest
    number = trajectory - FIRST_FLIPPED_ID if is_flipped else trajectory
    config = lyra_six(
        settings.seed,
        label,
        distance_factor=settings.distance_factor,
        look_at=settings.look_at,
        seeding=settings.seeding,
    )[number]
    if is_flipped:
        source = reversed_in_time(source)
    path = camera_path(
        config,
        centre_depth=centre_depth,
        num_frames=settings.num_frames,
        intrinsics=source.intrinsics[0],
        height=source.height,
        width=source.width,
    )
    cameras = follow(path, source)
    return ClipPath(trajectory, config, cameras)


def in_forward_time(clip: TeacherClip, cameras: CameraPath) -> tuple[TeacherClip, CameraPath]:
    """A clip made on the reversed video, and its cameras, as they are stored; latents stay as they are."""
    depth = None if clip.depth is None else clip.depth.flip(0)
    return replace(clip, video=clip.video.flip(0), depth=depth), reversed_in_time(cameras)


def noise_seed(seed: int, digest: str, trajectory: int) -> int:
    """Start of a clip's noise, from seed, digest and number."""
    content = hashlib.sha256(f"noise/{seed}/{digest}/{trajectory}".encode()).digest()
    return int.from_bytes(content[:4], "little") & torch.iinfo(torch.int32).max
