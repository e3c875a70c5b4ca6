"""Frames with depth and cameras as the cache keeps them, checked once when they enter it.

Shape letters: S frames, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.generation.cache.geometry import bounded_depth, reliable_depth, with_pixel_centre
from lyra_ns.generation.cache.settings import CacheSettings


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
