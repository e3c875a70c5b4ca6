"""Frames of the cache as other cameras see them, many pairs of a frame and a camera at once.

Shape letters: B pairs, S frames, H W image.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.generation.cache.frames import CachedFrames, chosen_frames
from lyra_ns.generation.cache.geometry import moved_pixels
from lyra_ns.generation.cache.settings import CacheSettings
from lyra_ns.generation.cache.silhouettes import sheet_depth
from lyra_ns.generation.cache.splat import Splatted, splat

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
