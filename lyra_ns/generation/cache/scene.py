"""The 3D cache of a scene: what a video model is shown of places that a picture has already seen.

Shape letters: V trajectories (any leading axes), T target frames, N buffers, M of them shown, S frames,
H W image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.generation.cache.frames import (
    CachedFrames,
    cached_frames,
    check_cameras,
    chosen_frames,
    joined_frames,
)
from lyra_ns.generation.cache.geometry import with_pixel_centre
from lyra_ns.generation.cache.settings import CacheSettings
from lyra_ns.generation.cache.warping import warp

Policy = Literal["latest_and_first", "per_frame", "best_covering"]

ENOUGH_COVERAGE = 0.9
"""best_covering: a buffer that fills this share of a frame is shown alone there."""


@dataclass(frozen=True)
class Warps:
    """The cache as target cameras see it, one picture per buffer."""

    rgb: Float[Tensor, "*V T N 3 H W"]
    """Colours from 0 to 1; 0 in holes, which is -1 in the range [-1, 1] that video models take."""
    mask: Bool[Tensor, "*V T N 1 H W"]
    """Where a buffer shows something."""
    depth: Float[Tensor, "*V T N H W"]
    """z-depth in the target camera; 0 in holes."""

    def in_video_range(self) -> tuple[Float[Tensor, "*V T N 3 H W"], Float[Tensor, "*V T N 1 H W"]]:
        """Colours from -1 (in holes, too) to 1, and masks of 0 and 1: what `encode_buffers` reads."""
        return self.rgb * 2 - 1, self.mask.to(self.rgb.dtype)

    def __getitem__(self, trajectory: int) -> Warps:
        """One trajectory of several."""
        return Warps(self.rgb[trajectory], self.mask[trajectory], self.depth[trajectory])


@dataclass(frozen=True)
class SceneCache:
    """Frames with depth, and the rule by which they are shown to a target frame.

    Source: docs/reference/gen3c.md, "Buffers".

    `latest_and_first`: every frame of the cache, the newest first and the original last. `per_frame`: target
    frame t sees frame t of a video. `best_covering`: per trajectory the frames that fill most of it.
    """

    frames: CachedFrames
    """The sources, in the order of the buffers or, of a video, in time."""
    policy: Policy
    """Which of them a target frame is shown."""
    settings: CacheSettings
    """How they are warped."""

    @staticmethod
    def from_image(
        rgb: Tensor,
        depth: Tensor,
        camera: CameraPath,
        mask: Tensor | None = None,
        settings: CacheSettings | None = None,
    ) -> SceneCache:
        """A static scene from one picture: rgb [3, H, W] in [0, 1], z-depth [H, W], one camera.

        Depth is in units of the camera's position; 0, negative and NaN are unknown. `mask` [H, W], bool, is
        False for pixels not to be shown. ValueError for other shapes and ranges.
        """
        settings = settings or CacheSettings()
        return SceneCache(_one_frame(rgb, depth, camera, mask, settings), "latest_and_first", settings)

    @staticmethod
    def from_video(
        rgb: Tensor,
        depth: Tensor,
        cameras: CameraPath,
        mask: Tensor | None = None,
        settings: CacheSettings | None = None,
    ) -> SceneCache:
        """A moving scene from a video: rgb [S, 3, H, W], z-depth [S, H, W], cameras [S]; see `from_image`."""
        settings = settings or CacheSettings()
        return SceneCache(cached_frames(rgb, depth, cameras, mask, settings), "per_frame", settings)

    @staticmethod
    def from_views(
        rgb: Tensor,
        depth: Tensor,
        cameras: CameraPath,
        mask: Tensor | None = None,
        settings: CacheSettings | None = None,
    ) -> SceneCache:
        """A static scene from several pictures, each trajectory being shown the best; as `from_video`."""
        settings = settings or CacheSettings()
        return SceneCache(cached_frames(rgb, depth, cameras, mask, settings), "best_covering", settings)

    @property
    def farthest(self) -> Float[Tensor, ""]:
        """The greatest depth of the scene, which scales the weights of all warps alike."""
        return self.frames.depth.max()

    def append(
        self, rgb: Tensor, depth: Tensor, camera: CameraPath, mask: Tensor | None = None
    ) -> SceneCache:
        """A cache with one more frame, given as to `from_image`.

        Under `latest_and_first` it becomes buffer 0, in place of the last such one if the buffers are full;
        otherwise it comes last. Depth must be in the scale of the cache.
        """
        here, found = self.frames.cameras, rgb.shape[-2:]
        if found != (here.height, here.width):
            raise ValueError(
                f"expected a frame of {here.height} x {here.width} pixels (height x width) like those of the "
                f"cache, found {found[0]} x {found[1]}: resize frame, depth and camera first"
            )
        added = _one_frame(rgb.to(self.frames.rgb.device), depth, camera, mask, self.settings)
        if self.policy != "latest_and_first":
            return replace(self, frames=joined_frames(self.frames, added))
        room = self.settings.max_buffers - 1
        kept = list(range(len(self.frames)))[-room:] if room else []
        return replace(self, frames=joined_frames(added, chosen_frames(self.frames, kept)))

    @torch.no_grad()
    def render(self, cameras: CameraPath, start: int = 0) -> Warps:
        """What the buffers show to `cameras` [*V, T], of any image size, on the device of the cache.

        `start` is the frame of the video that belongs to the first target frame (`per_frame` only).
        ValueError if the video is too short, or cameras cannot be used.
        """
        cameras = self._targets(cameras)
        if self.policy == "per_frame":
            return self._shaped(cameras, self._video_sources(cameras, start))
        sources = torch.arange(len(self.frames), device=self.frames.rgb.device)
        if self.policy == "best_covering" and len(self.frames) > 1:
            return self._best_covering(cameras, sources)
        return self._shaped(cameras, sources.expand(*cameras.shape, -1))

    def _targets(self, cameras: CameraPath) -> CameraPath:
        if len(cameras.shape) == 0 or 0 in cameras.shape:
            raise ValueError(
                f"expected cameras [..., frames], found {list(cameras.shape)}: give at least one"
            )
        check_cameras(cameras)
        return with_pixel_centre(cameras.to(self.frames.rgb.device), self.settings.pixel_centre)

    def _video_sources(self, cameras: CameraPath, start: int) -> Tensor:
        """[*V, T, 1] index of the frame that belongs to each target frame."""
        num_targets = cameras.shape[-1]
        if start < 0 or start + num_targets > len(self.frames):
            raise ValueError(
                f"expected {num_targets} frames of video from frame {start} on, found {len(self.frames)} "
                "in all: give a longer video or a shorter camera path"
            )
        sources = torch.arange(start, start + num_targets, device=self.frames.rgb.device)
        return sources[:, None].expand(*cameras.shape, 1)

    def _shaped(self, cameras: CameraPath, sources: Tensor) -> Warps:
        """Warps of frame `sources[..., t, n]` into camera [..., t]."""
        num_buffers = sources.shape[-1]
        pairs = torch.arange(math.prod(cameras.shape), device=sources.device).repeat_interleave(num_buffers)
        targets = cameras.reshape(-1)[pairs]
        warped = warp(self.frames, sources.reshape(-1), targets, self.farthest, self.settings)
        return Warps(
            warped.rgb.unflatten(0, sources.shape),
            warped.mask.unflatten(0, sources.shape)[..., None, :, :],
            warped.depth.unflatten(0, sources.shape),
        )

    def _best_covering(self, cameras: CameraPath, sources: Tensor) -> Warps:
        """Warps of the frames that fill most of each trajectory, the fullest first."""
        paths = cameras.reshape(-1, cameras.shape[-1])
        chosen = [self._fullest(paths[number], sources) for number in range(len(paths.camera_to_world))]
        values = [
            torch.stack([getattr(warps, name) for warps in chosen]) for name in ("rgb", "mask", "depth")
        ]
        return Warps(
            *(value.unflatten(0, cameras.shape[:-1]) if cameras.shape[:-1] else value[0] for value in values)
        )

    def _fullest(self, path: CameraPath, sources: Tensor) -> Warps:
        """Warps [T] of the frames that fill most of one trajectory.

        Of more frames than are shown only one at a time is there, once to choose and again to be shown.
        """
        num_frames, num_shown = path.shape[0], min(self.settings.max_buffers, len(sources))
        if num_shown == len(sources):
            warps = self._shaped(path, sources.expand(num_frames, -1))
            order = _fullest_first(_coverage(warps), num_shown)
            warps = Warps(warps.rgb[:, order], warps.mask[:, order], warps.depth[:, order])
        else:
            seen = [_coverage(self._shaped(path, source.expand(num_frames, 1))) for source in sources]
            order = _fullest_first(torch.cat(seen, dim=1), num_shown)
            warps = self._shaped(path, sources[order].expand(num_frames, -1))
        return _alone_where_enough(warps)


def _one_frame(
    rgb: Tensor, depth: Tensor, camera: CameraPath, mask: Tensor | None, settings: CacheSettings
) -> CachedFrames:
    if rgb.ndim != 3 or depth.ndim != 2 or (mask is not None and mask.ndim != 2):
        raise ValueError(
            f"expected one frame [3, H, W] with depth and mask [H, W], found {list(rgb.shape)} and "
            f"{list(depth.shape)}: use from_video or from_views for several"
        )
    if math.prod(camera.shape) != 1:
        raise ValueError(f"expected one camera for one frame, found {list(camera.shape)}: pick one")
    several = None if mask is None else mask[None]
    return cached_frames(rgb[None], depth[None], camera.reshape(1), several, settings)


def _coverage(warps: Warps) -> Float[Tensor, "T N"]:
    """Share of each frame of one trajectory that each buffer fills."""
    return warps.mask.to(warps.rgb.dtype).mean((-3, -2, -1))


def _fullest_first(coverage: Float[Tensor, "T N"], num_buffers: int) -> Int[Tensor, " M"]:
    """The buffers that fill most of a trajectory."""
    return coverage.mean(0).topk(num_buffers).indices


def _alone_where_enough(warps: Warps) -> Warps:
    """The same; in a frame that one buffer fills alone, only that one."""
    coverage = _coverage(warps)
    best = coverage.max(1, keepdim=True)
    is_best = torch.arange(coverage.shape[1], device=best.indices.device) == best.indices
    shown = is_best | (best.values < ENOUGH_COVERAGE)
    shown = shown[:, :, None, None, None]
    return Warps(warps.rgb * shown, warps.mask & shown, warps.depth * shown[:, :, 0])
