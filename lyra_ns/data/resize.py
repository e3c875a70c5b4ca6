"""Frames, depth and cameras of a scene at another size: centre crop to its aspect, then resize.

Source: docs/reference/decoder.md, "Camera conditioning".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, crop_and_resize_intrinsics
from lyra_ns.data.scenes import SceneSource

IMAGES_AT_ONCE = 8
"""Images that are resized together: they are float32 meanwhile."""


def crop_to_aspect(images: Float[Tensor, "*any"] | UInt8[Tensor, "*any"], height: int, width: int) -> Tensor:
    """The largest centred part of images [..., H, W] that has the aspect of `height` x `width`."""
    found_height, found_width = images.shape[-2:]
    ratio = min(found_height / height, found_width / width)
    rows, columns = int(height * ratio), int(width * ratio)
    top, left = (found_height - rows) // 2, (found_width - columns) // 2
    return images[..., top : top + rows, left : left + columns]


def resize_rgb(
    images: UInt8[Tensor, "n 3 H W"], height: int, width: int
) -> UInt8[Tensor, "n 3 rows columns"]:
    """Cropped and resized frames: bilinear, antialiased where they get smaller."""
    if images.shape[-2:] == (height, width):
        return images
    resized = [
        functional.interpolate(group.float(), (height, width), mode="bilinear", antialias=True)
        for group in crop_to_aspect(images, height, width).split(IMAGES_AT_ONCE)
    ]
    return torch.cat([group.round_().clamp_(0, 255).to(torch.uint8) for group in resized])


def resize_depth(depth: Float[Tensor, "n H W"], height: int, width: int) -> Float[Tensor, "n rows columns"]:
    """Cropped and resized depth: the nearest pixel's, since a mean over an edge is nowhere in the scene."""
    if depth.shape[-2:] == (height, width):
        return depth
    cropped = crop_to_aspect(depth, height, width)
    # "nearest" takes the pixel at each cell's upper left corner, "nearest-exact" that at its centre.
    return functional.interpolate(cropped[:, None], (height, width), mode="nearest-exact")[:, 0]


def resize_cameras(cameras: CameraPath, height: int, width: int) -> CameraPath:
    """The cameras of the cropped and resized frames."""
    intrinsics = crop_and_resize_intrinsics(
        cameras.intrinsics, (cameras.height, cameras.width), (height, width)
    )
    return replace(cameras, intrinsics=intrinsics, height=height, width=width)


@dataclass(frozen=True)
class ResizedScene:
    """A scene whose frames, depth and cameras come at another size. Latents cannot be resized."""

    source: SceneSource
    """The scene as it is stored or loaded."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""
    name: str = field(init=False)
    """Name of the scene."""
    is_dynamic: bool = field(init=False)
    """Whether things move."""
    input_ids: list[int] = field(init=False)
    """Trajectories that may go in."""
    num_frames: int = field(init=False)
    """Frames per clip."""

    def __post_init__(self) -> None:
        """Take over what has no size."""
        for attribute in ("name", "is_dynamic", "input_ids", "num_frames"):
            object.__setattr__(self, attribute, getattr(self.source, attribute))

    def latents(self, trajectory: int) -> Tensor:
        """Nothing: ValueError, because latents belong to one image size."""
        raise ValueError(
            f"the latents of scene {self.name}, trajectory {trajectory} belong to its stored image size, "
            f"found image_size {self.height}x{self.width}: encode the resized frames (inputs encoded)"
        )

    def cameras(self, trajectory: int) -> CameraPath:
        """Cameras [L] of the resized frames."""
        return resize_cameras(self.source.cameras(trajectory), self.height, self.width)

    def rgb(self, trajectory: int, frames: Sequence[int]) -> UInt8[Tensor, "n 3 H W"]:
        """Resized frames."""
        return resize_rgb(self.source.rgb(trajectory, frames), self.height, self.width)

    def depth(self, trajectory: int, frames: Sequence[int]) -> Float[Tensor, "n H W"]:
        """Resized z-depth."""
        return resize_depth(self.source.depth(trajectory, frames), self.height, self.width)
