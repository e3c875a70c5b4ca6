"""The 3D cache of a scene: what a video model is shown of places that a picture has already seen.

Frames with depth and cameras are checked once when they enter it, and seen by other cameras many pairs of a
frame and a camera at once; settings say how it treats depth and what it hides.

Shape letters: V trajectories (any leading axes), T target frames, N buffers, M of them shown, S frames, B
pairs of a source and a target, H W image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lyra_ns.cache3d.splat import (
    OFFICIAL_PIXEL_CENTRE,
    PIXEL_CENTRE,
    SplatSettings,
    Splatted,
    bounded_depth,
    moved_pixels,
    reliable_depth,
    sheet_depth,
    splat,
    with_pixel_centre,
)
from lyra_ns.cameras import CameraPath

OFFICIAL_WIDTH = 1280
"""Width in pixels for which GEN3C's thresholds are meant."""
HIGHEST_THRESHOLD = 0.99
"""1 would show all."""


@dataclass(frozen=True)
class CacheSettings:
    """Settings of a SceneCache; distances in units of the scene."""

    max_buffers: int = 2
    """Warped pictures for each frame; GEN3C's network takes up to two."""
    reliability_threshold: float = 0.05
    """Pixels whose depth varies by more than this share around them are not shown; 1 shows all."""
    farthest_depth: float | None = 100.0
    """What lies beyond, infinitely far included, is shown at this depth, as GEN3C does with the sky; None
    keeps far depths and takes infinite ones for unknown."""
    foreground_masking: bool = True
    """Calls a hole what appears behind the torn silhouette of something near, as Lyra's data were made."""
    torn_threshold: float = 0.05
    """Foreground masking: variation of the depth, as a share, that counts as torn."""
    sheet_margin: float = 0.02
    """Foreground masking: how far behind the sheet something must lie to be hidden."""
    sheet_margin_share: float = 0.0
    """Foreground masking: the same as a share of the depth; the larger one counts. GEN3C has none, but it
    makes masks independent of the unit of length."""
    splat: SplatSettings = field(default_factory=SplatSettings)
    """How points that land on one pixel are mixed."""
    pixel_centre: float = PIXEL_CENTRE
    """Where the given cameras have the centre of the first pixel: 0.5, or 0.0 as in GEN3C."""

    @classmethod
    def for_width(cls, width: int) -> CacheSettings:
        """Settings for sources of a width in pixels.

        GEN3C's thresholds are slopes over five pixels at full size; smaller pictures are steeper per pixel.
        """
        times = max(1.0, OFFICIAL_WIDTH / width)
        return cls(
            reliability_threshold=min(cls.reliability_threshold * times, HIGHEST_THRESHOLD),
            torn_threshold=min(cls.torn_threshold * times, HIGHEST_THRESHOLD),
        )

    def __post_init__(self) -> None:
        if self.max_buffers < 1:
            raise ValueError(f"expected max_buffers of 1 or more, found {self.max_buffers}")
        for name in ("reliability_threshold", "torn_threshold", "farthest_depth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} above 0, found {value}")
        if min(self.sheet_margin, self.sheet_margin_share) < 0:
            raise ValueError(
                f"expected margins of 0 or more, found {self.sheet_margin} and {self.sheet_margin_share}"
            )
        if self.pixel_centre not in (PIXEL_CENTRE, OFFICIAL_PIXEL_CENTRE):
            raise ValueError(f"expected 0.5 or 0.0 as pixel_centre, found {self.pixel_centre}")


@dataclass(frozen=True)
class CachedFrames:
    """Sources of the cache; cameras with this package's pixel centres whatever was given."""

    rgb: Float[Tensor, "S 3 H W"]
    """Colours from 0 to 1."""
    depth: Float[Tensor, "S H W"]
    """z-depth, 0 where unknown."""
    usable: Bool[Tensor, "S H W"]
    """Pixels that are shown to other cameras: reliable, and allowed by the given mask."""
    torn: Bool[Tensor, "S H W"]
    """Pixels at jumps of the depth, over which foreground masking spans its sheet."""
    cameras: CameraPath
    """One camera for each frame."""

    def __len__(self) -> int:
        return len(self.rgb)


def cached_frames(
    rgb: Tensor, depth: Tensor, cameras: CameraPath, mask: Tensor | None, settings: CacheSettings
) -> CachedFrames:
    """Frames [S, 3, H, W] in [0, 1], z-depth [S, H, W] and cameras [S], ready to be warped.

    Depth is unknown where it is NaN, 0 or less. `mask` [S, H, W] is False where a pixel must not be shown to
    other cameras. ValueError says what does not fit.
    """
    _check_shapes(rgb, depth, cameras, mask)
    _check_values(rgb, depth, cameras)
    rgb, depth = _working(rgb), bounded_depth(_working(depth), settings.farthest_depth).to(rgb.device)
    _check_any_depth(depth)
    usable = reliable_depth(depth, settings.reliability_threshold)
    if mask is not None:
        usable = usable & mask.to(rgb.device)
    torn = ~reliable_depth(depth, settings.torn_threshold)
    cameras = with_pixel_centre(cameras.to(rgb.device), settings.pixel_centre)
    return CachedFrames(rgb, depth, usable, torn, cameras)


def joined_frames(first: CachedFrames, second: CachedFrames) -> CachedFrames:
    """The frames of both, in this order; they have one image size."""
    cameras = CameraPath(
        torch.cat([first.cameras.camera_to_world, second.cameras.camera_to_world]),
        torch.cat([first.cameras.intrinsics, second.cameras.intrinsics]),
        torch.cat([first.cameras.times, second.cameras.times]),
        first.cameras.height,
        first.cameras.width,
    )
    return CachedFrames(
        torch.cat([first.rgb, second.rgb]),
        torch.cat([first.depth, second.depth]),
        torch.cat([first.usable, second.usable]),
        torch.cat([first.torn, second.torn]),
        cameras,
    )


def chosen_frames(frames: CachedFrames, index: Tensor | list[int]) -> CachedFrames:
    """The frames at `index`."""
    return CachedFrames(
        frames.rgb[index],
        frames.depth[index],
        frames.usable[index],
        frames.torn[index],
        frames.cameras[index],
    )


def _check_shapes(rgb: Tensor, depth: Tensor, cameras: CameraPath, mask: Tensor | None) -> None:
    if rgb.ndim != 4 or rgb.shape[1] != 3 or rgb.numel() == 0:
        raise ValueError(f"expected frames [S, 3, H, W], found {list(rgb.shape)}: give RGB, without alpha")
    num, _, height, width = rgb.shape
    for name, value in (("depth", depth), ("mask", mask)):
        if value is not None and value.shape != (num, height, width):
            raise ValueError(
                f"expected {name} [{num}, {height}, {width}], one value per pixel of the frames, found "
                f"{list(value.shape)}: resize it to the frames"
            )
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(
            f"expected a mask of torch.bool, found {mask.dtype}: compare it with a threshold first"
        )
    if cameras.shape != (num,) or (cameras.height, cameras.width) != (height, width):
        raise ValueError(
            f"expected {num} cameras of {height} x {width} pixels (height x width), found "
            f"{list(cameras.shape)} of {cameras.height} x {cameras.width}: "
            "CameraPath.resized makes cameras for another size"
        )


def _check_values(rgb: Tensor, depth: Tensor, cameras: CameraPath) -> None:
    for name, value in (("frames", rgb), ("depth", depth)):
        if not value.is_floating_point():
            raise ValueError(
                f"expected {name} as floating-point numbers, found {value.dtype}: convert them first"
            )
    # NaN fails the comparison, too.
    if not bool((rgb >= -1e-3).all() & (rgb <= 1 + 1e-3).all()):
        raise ValueError(
            f"expected colours from 0 to 1, found {rgb.min().item():.3g} to {rgb.max().item():.3g}: "
            "bring the frames into that range"
        )
    check_cameras(cameras)


def _check_any_depth(depth: Tensor) -> None:
    empty = ~(depth > 0).flatten(1).any(1)
    if bool(empty.any()):
        raise ValueError(
            f"expected depth above 0 in every frame, found none in frame {int(empty.nonzero()[0])}: "
            "the depth estimate failed there, or the file is damaged"
        )


def check_cameras(cameras: CameraPath) -> None:
    """ValueError where poses or intrinsics cannot be used."""
    finite = cameras.camera_to_world.isfinite().all() & cameras.intrinsics.isfinite().all()
    if not bool(finite):
        raise ValueError("expected finite poses and intrinsics, found NaN or infinity: check the camera path")
    if not bool((cameras.intrinsics[..., :2] > 0).all()):
        raise ValueError(
            "expected focal lengths above 0, found others: intrinsics are fx, fy, cx, cy in pixels"
        )


def _working(values: Tensor) -> Tensor:
    """In float32, unless the values are more precise."""
    return values if values.dtype == torch.float64 else values.float()


POINTS_AT_ONCE = {"cpu": 2**20, "cuda": 2**24}
"""Pixels that are moved in one go: few fit the caches of a CPU, many keep a GPU busy."""


def warp(
    frames: CachedFrames,
    source: Int[Tensor, " B"],
    targets: CameraPath,
    farthest: Float[Tensor, ""],
    settings: CacheSettings,
) -> Splatted:
    """Frame `source[b]` as target camera b sees it; how pairs are batched does not change the result.

    `farthest` is the scene's greatest depth, see `splat`. Targets have this package's pixel centres.
    """
    num, (height, width) = len(source), (targets.height, targets.width)
    rgb = frames.rgb.new_empty(num, 3, height, width)
    mask = torch.empty(num, height, width, dtype=torch.bool, device=rgb.device)
    depth = frames.rgb.new_empty(num, height, width)
    at_once = max(
        1, POINTS_AT_ONCE.get(rgb.device.type, 2**20) // max(height * width, frames.depth[0].numel())
    )
    for begin in range(0, num, at_once):
        part = slice(begin, begin + at_once)
        warped = _warped_part(chosen_frames(frames, source[part]), targets[part], farthest, settings)
        rgb[part], mask[part], depth[part] = warped.rgb, warped.mask, warped.depth
    return Splatted(rgb, mask, depth)


def _warped_part(
    frames: CachedFrames, targets: CameraPath, farthest: Tensor, settings: CacheSettings
) -> Splatted:
    size = (targets.height, targets.width)
    positions = moved_pixels(frames.depth, frames.cameras, targets)
    splatted = splat(frames.rgb, positions, frames.usable, size, farthest, settings.splat)
    if not settings.foreground_masking:
        return splatted
    sheet = sheet_depth(positions, frames.depth > 0, frames.torn, size)
    margin = (splatted.depth * settings.sheet_margin_share).clamp(min=settings.sheet_margin)
    mask = splatted.mask & ~(sheet + margin < splatted.depth)
    return Splatted(splatted.rgb * mask[:, None], mask, splatted.depth * mask)


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
