"""A scene before anything is generated: what is known of it as a 3D cache, and the paths to film it along.

Shape letters: V paths, L frames of a clip, S frames of the source, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, relative_to, stack_cameras
from lyra_ns.data.pose_order import FIRST_FLIPPED_ID
from lyra_ns.data.reading_order import READING_ORDER, in_reading_order
from lyra_ns.data.resizing import resize_rgb
from lyra_ns.data.video_files import VideoSize
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.cache.settings import CacheSettings
from lyra_ns.generation.camera_files import read_camera_path
from lyra_ns.generation.camera_paths import (
    CameraPathConfig,
    LookAt,
    PathKind,
    camera_path,
    fitted_path,
    follow,
    lyra_six,
    still_path,
)
from lyra_ns.generation.depth.scene_scale import SceneScale, scene_depth, scene_scale
from lyra_ns.generation.inputs import SourceFrames, masked_out
from lyra_ns.generation.path_clearance import clear_distance, near_depth
from lyra_ns.generation.scene_depth import SceneDepth
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.trajectories import MOTIONS

SAME_DRAW = {"down": "up", "counterclockwise": "clockwise"}
"""Kinds outside Lyra's six are as long as the one of the six that mirrors them."""


@dataclass(frozen=True)
class PlannedPath:
    """One camera path of a scene."""

    name: str
    """Its kind, or the name of its file."""
    trajectory: int
    """Its number on disk."""
    distance: float | None
    """Length in units of the centre depth; None for paths from files."""
    cameras: CameraPath
    """The path [L], in units of the scene, in the world of the first source camera."""
    drawn_distance: float | None = None
    """Length that it would have if nothing were in its way; None for paths from files."""

    @property
    def shortening(self) -> str:
        """What it cost to keep clear of near things, in words; empty for nothing."""
        if self.distance is None or self.drawn_distance is None or self.distance == self.drawn_distance:
            return ""
        share = self.distance / self.drawn_distance
        return f"path {self.name}: {share:.0%} of its length, or it would fly through what is near"


@dataclass(frozen=True)
class ScenePlan:
    """All that a teacher needs to make the clips of a scene."""

    name: str
    """Name of the scene."""
    frames: SourceFrames
    """What the scene is made from."""
    image: Float[Tensor, "3 H W"]
    """First frame of all clips, 0 to 1."""
    depth: Float[Tensor, "S h w"]
    """z-depth of the source in units of the scene, 0 where unknown."""
    cache: SceneCache | None
    """What is known of the scene; None when its clips are made."""
    paths: tuple[PlannedPath, ...]
    """Camera paths, in the order in which decoders read them."""
    scale: SceneScale
    """Units of the scene."""
    found: SceneDepth
    """Depth as it was found, and the lens."""
    near_depth: float
    """Depth of what is near in the middle of the first frame, in units of the scene."""

    def without_cache(self) -> ScenePlan:
        """The same without the cache, whose memory is free when no request holds it."""
        return replace(self, cache=None)

    @property
    def cameras(self) -> CameraPath:
        """All paths [V, L]."""
        return stack_cameras([path.cameras for path in self.paths])

    @property
    def centre(self) -> Float[Tensor, " 3"]:
        """The point that the named paths turn about."""
        return torch.tensor([0.0, 0.0, self.scale.centre_depth])


def plan_scene(
    frames: SourceFrames,
    found: SceneDepth,
    settings: GenerateSettings,
    size: VideoSize,
    look_at: LookAt,
    device: torch.device | str = "cpu",
    *,
    follows_near: bool = False,
) -> ScenePlan:
    """The cache of a scene and its paths; the cache lies on `device`, everything else on the CPU.

    With `follows_near` paths turn about the near depth instead of the centre of the official data, and are as
    long as that asks for. FileNotFoundError or ValueError for paths and scales that cannot be used.
    """
    if frames.is_video and len(settings.trajectory) > FIRST_FLIPPED_ID:
        raise ValueError(
            f"expected at most {FIRST_FLIPPED_ID} of --trajectory for a moving scene, found "
            f"{len(settings.trajectory)}: further numbers are those of reversed videos, make a second scene"
        )
    scale = scene_scale(
        found.first,
        units=settings.depth_units,
        centre_quantile=settings.centre_quantile,
        pose_scale=settings.pose_scale,
        path_depth=None if frames.vipe is None else frames.vipe.depth[0],
    )
    # An estimator's unknown is sky; ViPE's is a pixel that it did not understand.
    is_estimated = frames.vipe is None
    depth = scene_depth(found.depth, scale) if is_estimated else found.depth * scale.depth_factor
    near = near_depth(depth[0])
    if follows_near:
        scale = replace(scale, centre_depth=near)
    source = _source_cameras(frames, found, scale)
    clip_source = source.resized(size.height, size.width)
    paths = tuple(
        replace(path, cameras=_laid_on(path.cameras, clip_source))
        for path in _paths(settings, frames.name, scale, clip_source.intrinsics[0], size, look_at, depth)
    )
    image = resize_rgb(frames.rgb[:1], size.height, size.width)[0].float() / 255
    cache = _cache(frames, depth, source, device)
    return ScenePlan(frames.name, frames, image, depth, cache, paths, scale, found, near)


def _laid_on(path: CameraPath, source: CameraPath) -> CameraPath:
    """The path along the source's cameras, through the source's lens times the zoom of the path."""
    cameras = follow(path, source)
    zoom = path.intrinsics[:, :2] / path.intrinsics[:1, :2]
    lens = torch.cat([cameras.intrinsics[:, :2] * zoom, cameras.intrinsics[:, 2:]], -1)
    return replace(cameras, intrinsics=lens)


def _source_cameras(frames: SourceFrames, found: SceneDepth, scale: SceneScale) -> CameraPath:
    """Cameras [S] of the source at its size: ViPE's in units of the scene, or all where the world begins."""
    if frames.vipe is not None:
        cameras = relative_to(frames.vipe.cameras, frames.vipe.cameras.camera_to_world[0])
        poses = cameras.camera_to_world.clone()
        poses[:, :3, 3] *= scale.depth_factor
        return replace(cameras, camera_to_world=poses)
    return still_path(found.intrinsics, len(frames.rgb), *frames.rgb.shape[-2:])


def _cache(frames: SourceFrames, depth: Tensor, source: CameraPath, device: torch.device | str) -> SceneCache:
    # Of upright pictures the longer side, too: it is what lenses are chosen by, so pixels are as wide.
    settings = CacheSettings.for_width(max(source.height, source.width))
    rgb = frames.rgb.to(device).float() / 255
    mask = masked_out(frames)
    depth, source = depth.to(device), source.to(device)
    if frames.is_video:
        return SceneCache.from_video(rgb, depth, source, mask, settings)
    return SceneCache.from_image(rgb[0], depth[0], source[0], None if mask is None else mask[0], settings)


def _paths(
    settings: GenerateSettings,
    scene: str,
    scale: SceneScale,
    intrinsics: Float[Tensor, " 4"],
    size: VideoSize,
    look_at: LookAt,
    depth: Float[Tensor, "S h w"],
) -> list[PlannedPath]:
    """Paths from the identity: those that were named, or the first of Lyra's six in the decoders' order."""
    six = lyra_six(settings.seed, scene, distance_factor=settings.distance_factor, look_at=look_at)

    def named(config: CameraPathConfig, number: int) -> PlannedPath:
        def path_of(distance: float) -> CameraPath:
            return camera_path(
                replace(config, distance=distance),
                centre_depth=scale.centre_depth,
                num_frames=size.num_frames,
                intrinsics=intrinsics,
                height=size.height,
                width=size.width,
            )

        distance = clear_distance(path_of, config.distance, depth)
        return PlannedPath(config.kind, number, distance, path_of(distance), config.distance)

    if not settings.trajectory:
        return [named(six[number], number) for number in READING_ORDER[: settings.num_trajectories]]
    planned = []
    for number, word in enumerate(settings.trajectory):
        if word in MOTIONS:
            planned.append(named(_config_of(word, six), number))
        elif Path(word).suffix:
            planned.append(_from_file(Path(word).expanduser(), number, settings, scale, intrinsics, size))
        else:
            raise ValueError(
                f"expected one of {', '.join(MOTIONS)}, or a .json or .npz file, as --trajectory, found "
                f"{word!r}"
            )
    return in_decoders_order(planned)


def in_decoders_order(paths: list[PlannedPath]) -> list[PlannedPath]:
    """Numbers 5, 0, 1, 2, 3, 4 first and in this order, then the others, as `reconstruct` reads them."""
    numbers = [path.trajectory for path in paths]
    return [paths[numbers.index(number)] for number in in_reading_order(numbers)]


def _config_of(kind: str, six: tuple[CameraPathConfig, ...]) -> CameraPathConfig:
    """A path of this kind, as long as the one of the six that is like it."""
    like = next((config for config in six if config.kind == SAME_DRAW.get(kind, kind)), None)
    if like is None:
        return replace(six[0], kind=cast(PathKind, kind), distance=0.0)
    return replace(like, kind=cast(PathKind, kind))


def _from_file(
    path: Path,
    number: int,
    settings: GenerateSettings,
    scale: SceneScale,
    intrinsics: Float[Tensor, " 4"],
    size: VideoSize,
) -> PlannedPath:
    try:
        cameras = fitted_path(
            read_camera_path(path),
            num_frames=size.num_frames,
            intrinsics=intrinsics,
            height=size.height,
            width=size.width,
            pose_scale=scale.path_factor,
            length=settings.path_length,
        )
    except ValueError as error:
        if str(path) in str(error):
            raise
        advice = " (--path-length first or resample)" if "frames" in str(error) else ""
        raise ValueError(f"camera path {path}: {error}{advice}") from error
    return PlannedPath(path.stem, number, None, cameras)
