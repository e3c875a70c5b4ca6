"""Depth of frames that a video model made, brought to the units of the scene frame by frame.

What an estimator says of a frame is true up to scale and shift of its inverse, at best. Where the 3D cache
shows something the depth is known, and the two numbers that fit best there are taken.

Shape letters: L frames, H W image.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.generation.cache.align import InverseDepthFit, align_inverse_depth
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.depth.estimator import DepthEstimator
from lyra_ns.generation.teachers.warp import merged

FRAMES_AT_ONCE = 4
"""Frames of the cache that are rendered together."""


@torch.no_grad()
def estimated_depth(
    video: UInt8[Tensor, "L 3 H W"],
    cameras: CameraPath,
    cache: SceneCache,
    estimator: DepthEstimator,
) -> Float[Tensor, "L H W"]:
    """z-depth of frames along a path [L] in the units of the cache, 0 where unknown; on the CPU.

    A frame that shows too little of the cache is fitted like the one before it. ValueError if the first one
    does.
    """
    device, farthest = cache.frames.rgb.device, cache.settings.farthest_depth
    depths: list[Tensor] = []
    fit: InverseDepthFit | None = None
    for image, known, lens in zip(video, _cache_depth(cache, cameras), cameras.intrinsics, strict=True):
        predicted = estimator.predict(image.to(device).float() / 255, lens.to(device)).depth.float().cpu()
        fit = _fit_or_earlier(predicted, known, fit)
        depths.append(fit.applied(predicted, farthest))
    return torch.stack(depths)


def aligned_sequence(depth: Float[Tensor, "L H W"]) -> Float[Tensor, "L H W"]:
    """Depth of a video from a camera that stands still, every frame in the units of the first one."""
    aligned = [depth[0]]
    fit: InverseDepthFit | None = None
    for image in depth[1:]:
        fit = _fit_or_earlier(image, depth[0], fit)
        aligned.append(fit.applied(image))
    return torch.stack(aligned)


def _fit_or_earlier(
    predicted: Float[Tensor, "H W"], known: Float[Tensor, "H W"], earlier: InverseDepthFit | None
) -> InverseDepthFit:
    """How the depth of a frame fits what is known of it, or the earlier fit where that is too little."""
    try:
        return align_inverse_depth(predicted, known)
    except ValueError:
        if earlier is None:
            raise
        return earlier


def _cache_depth(cache: SceneCache, cameras: CameraPath) -> Float[Tensor, "L H W"]:
    """The nearest depth that the cache shows, on the CPU; 0 in holes."""
    is_video = cache.policy == "per_frame"
    parts = [
        merged(cache.render(cameras[begin : begin + FRAMES_AT_ONCE], begin if is_video else 0)).depth
        for begin in range(0, cameras.shape[0], FRAMES_AT_ONCE)
    ]
    return torch.cat([part.float().cpu() for part in parts])
