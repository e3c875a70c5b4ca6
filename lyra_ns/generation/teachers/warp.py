"""The teacher that needs no network: the 3D cache as it looks along the path, its holes filled.

What no pixel of the cache shows is a smooth continuation of the background, not an invention: a clip is true
where the camera sees what the pictures saw, and a guess elsewhere.

Shape letters: L frames, S frames of the cache, N buffers, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.evaluation.hole_filling import background_weights, fill_holes
from lyra_ns.generation.cache.scene import SceneCache, Warps

PIXELS_AT_ONCE = {"cpu": 2**21, "cuda": 2**25}
"""Pixels over all buffers that are rendered before the next frames: bounds memory, changes nothing else."""
SAME_SURFACE = 0.02
"""Buffers whose depths at a pixel differ by less than this share are taken to show the same thing."""


class WarpedFrames(NamedTuple):
    """The cache as a path sees it; on the CPU."""

    video: UInt8[Tensor, "L 3 H W"]
    """Frames with their holes filled; times `mask` they are what the cache really shows."""
    mask: Bool[Tensor, "L 1 H W"]
    """Where the cache shows something."""
    depth: Float[Tensor, "L H W"]
    """z-depth in the world of the cache, 0 in holes."""


@torch.no_grad()
def warped_frames(
    cache: SceneCache,
    cameras: CameraPath,
    start: int = 0,
    image: Float[Tensor, "3 H W"] | None = None,
) -> WarpedFrames:
    """What a path [L] sees of the cache, computed on the device of the cache, a few frames at a time.

    `image`, 0 to 1, if given stands in place of the first frame, as it is. `start` is the frame of the video
    that belongs to the first camera (caches of videos). Where several buffers show a pixel the nearest
    surface wins, and of those on one surface the buffer whose camera is closest. ValueError if a video is
    too short or the cameras cannot be used.
    """
    if len(cameras.shape) != 1:
        raise ValueError(f"expected one path of cameras [frames], found {list(cameras.shape)}: pick one")
    num_frames, height, width = cameras.shape[0], cameras.height, cameras.width
    video = torch.empty(num_frames, 3, height, width, dtype=torch.uint8)
    mask = torch.empty(num_frames, 1, height, width, dtype=torch.bool)
    depth = torch.empty(num_frames, height, width)
    for part, warps in _rendered_parts(cache, cameras, start):
        seen = _merged(warps)
        filled = fill_holes(seen.rgb, background_weights(seen.depth[:, None]))
        video[part] = eight_bits(filled).cpu()
        mask[part], depth[part] = seen.mask.cpu(), seen.depth.float().cpu()
    if image is not None:
        video[0], mask[0] = eight_bits(image).cpu(), True
    return WarpedFrames(video, mask, depth)


def eight_bits(colours: Float[Tensor, "*batch"]) -> UInt8[Tensor, "*batch"]:
    """Colours from 0 to 1 as numbers from 0 to 255, rounded."""
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


def _rendered_parts(
    cache: SceneCache, cameras: CameraPath, start: int
) -> Iterator[tuple[slice, Warps]]:
    """Warps of consecutive frames, their buffers ordered from the closest camera to the farthest.

    Of several views every one is shown, not only those that cover most: what is merged costs no memory.
    """
    is_video = cache.policy == "per_frame"
    whole = cache if is_video else replace(cache, policy="latest_and_first")
    num_buffers = 1 if is_video else len(cache.frames)
    pixels = num_buffers * max(cameras.height * cameras.width, cache.frames.depth[0].numel())
    at_once = max(1, PIXELS_AT_ONCE.get(cache.frames.rgb.device.type, 2**21) // pixels)
    if is_video and start + cameras.shape[0] > len(cache.frames):
        whole.render(cameras, start)  # Says what is wrong before anything is rendered.
    for begin in range(0, cameras.shape[0], at_once):
        part = slice(begin, begin + at_once)
        warps = whole.render(cameras[part], start + begin if is_video else start)
        yield part, warps if is_video else _closest_first(warps, cache.frames.cameras, cameras[part])


def _closest_first(warps: Warps, sources: CameraPath, targets: CameraPath) -> Warps:
    """The same warps, the buffers of each frame by the distance of their cameras from the frame's."""
    if len(sources.camera_to_world) == 1:
        return warps
    centres = sources.camera_to_world[None, :, :3, 3]
    distance = (targets.camera_to_world[:, None, :3, 3].to(centres) - centres).norm(dim=-1)
    order = distance.argsort(dim=1, stable=True)
    frame = torch.arange(len(order), device=order.device)[:, None]
    return Warps(warps.rgb[frame, order], warps.mask[frame, order], warps.depth[frame, order])


@dataclass(frozen=True)
class _Seen:
    """One picture per frame: rgb [L, 3, H, W], mask [L, 1, H, W], depth [L, H, W]."""

    rgb: Tensor
    mask: Tensor
    depth: Tensor


def _merged(warps: Warps) -> _Seen:
    """The first of the buffers that show the nearest surface, at every pixel."""
    if warps.depth.shape[1] == 1:
        return _Seen(warps.rgb[:, 0], warps.mask[:, 0], warps.depth[:, 0])
    distance = torch.where(warps.mask[:, :, 0], warps.depth, torch.inf)
    is_nearest = distance <= distance.amin(1, keepdim=True) * (1 + SAME_SURFACE)
    chosen = is_nearest.to(torch.uint8).argmax(1, keepdim=True)
    rgb = warps.rgb.gather(1, chosen[:, :, None].expand(-1, -1, 3, -1, -1))[:, 0]
    return _Seen(
        rgb, warps.mask.gather(1, chosen[:, :, None])[:, 0], warps.depth.gather(1, chosen)[:, 0]
    )
