"""Depth of all frames of a scene in one unit, and the camera's intrinsics, from whatever is known.

Shape letters: S frames, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.data.resizing import resize_depth
from lyra_ns.evaluation.hole_filling import background_weights, fill_holes
from lyra_ns.generation.depth.choice import is_depth_file, load_depth
from lyra_ns.generation.depth.depth_file import read_depth_file
from lyra_ns.generation.depth.estimator import DepthEstimator, DepthPrediction, PlaneDepth, intrinsics_of_fov
from lyra_ns.generation.inputs import SourceFrames

ASSUMED_FOV = 58.0
"""Degrees across the longer side of clips where nothing says it: a focal length of 0.9 of that side, about a
phone's, which may have been held upright."""
SAME_ASPECT = 0.02
"""How much the aspects of a depth file and its picture may differ, as a share."""

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class SceneDepth:
    """Depth of the frames of a scene."""

    depth: Float[Tensor, "S H W"]
    """z-depth in the unit of the first frame's, 0 where unknown."""
    first: DepthPrediction
    """What was found for the first frame."""
    intrinsics: Float[Tensor, " 4"]
    """fx, fy, cx, cy in pixels of the frames."""
    intrinsics_origin: str
    """Where they come from, in words."""
    reason: str
    """Where the depth comes from, in words."""


def depth_of_frames(
    frames: SourceFrames, choice: str, device: torch.device | str = "cpu", on_step: OnStep | None = None
) -> SceneDepth:
    """Depth of every frame by ViPE, a file or an estimator (`load_depth`), scaled to fit each other.

    ValueError where a choice cannot be had or does not fit the frames.
    """
    if is_depth_file(choice):
        return _of_file(frames, Path(choice).expanduser())
    if choice == "auto" and frames.vipe is not None:
        return _with_intrinsics(frames, frames.vipe.depth, frames.vipe.first_prediction(), "ViPE's own")
    chosen = load_depth(choice, device)
    estimator = chosen.estimator
    if isinstance(estimator, PlaneDepth):
        estimator = replace(estimator, fov_x=_assumed_fov_x(*frames.rgb.shape[-2:]))
    return _estimated(frames, estimator, chosen.reason, device, on_step)


def _estimated(
    frames: SourceFrames,
    estimator: DepthEstimator,
    reason: str,
    device: torch.device | str,
    on_step: OnStep | None,
) -> SceneDepth:
    intrinsics, predictions = frames.intrinsics, []
    for number, image in enumerate(frames.rgb):
        if on_step:
            on_step(number, len(frames.rgb))
        prediction = estimator.predict(image.to(device).float() / 255, intrinsics)
        predictions.append(replace(prediction, depth=prediction.depth.float().cpu()))
        # One lens for the whole video, even where every frame would suggest its own.
        intrinsics = intrinsics if intrinsics is not None else prediction.intrinsics
    first = predictions[0]
    depth = torch.stack([prediction.depth for prediction in predictions])
    if len(depth) > 1 or frames.vipe is not None:
        depth = _scaled_alike(depth, frames.vipe.depth if frames.vipe else first.depth.expand_as(depth))
        first = replace(first, depth=depth[0])
    found = frames if isinstance(estimator, PlaneDepth) else replace(frames, intrinsics=intrinsics)
    origin = f"found by {first.estimator}" if frames.intrinsics is None else frames.intrinsics_origin
    return _with_intrinsics(replace(found, intrinsics_origin=origin), depth, first, reason)


def _scaled_alike(depth: Float[Tensor, "S H W"], reference: Float[Tensor, "S H W"]) -> Float[Tensor, "S H W"]:
    """Every frame's depth times the median ratio of its reference to it, which moving things hardly shift."""
    factors = []
    for found, wanted in zip(depth, reference, strict=True):
        both = (found > 0) & (wanted > 0)
        if not bool(both.any()):
            raise ValueError(
                "expected depth at the same pixels of all frames, so that their scales can be matched, found "
                "a frame without: take another --depth"
            )
        factors.append((wanted[both] / found[both]).median())
    return depth * torch.stack(factors)[:, None, None]


def _of_file(frames: SourceFrames, path: Path) -> SceneDepth:
    if len(frames.rgb) > 1:
        raise ValueError(
            f"depth {path} is of one picture, found {len(frames.rgb)} frames: give an estimator, ViPE's "
            "output, or --first-frame-only"
        )
    depth = read_depth_file(path)
    aspect, expected = depth.shape[1] / depth.shape[0], frames.given_size[1] / frames.given_size[0]
    if abs(aspect / expected - 1) > SAME_ASPECT:
        raise ValueError(
            f"depth {path} must have the aspect of the picture ({frames.given_size[1]} x "
            f"{frames.given_size[0]}, width x height), found {depth.shape[1]} x {depth.shape[0]}: give the "
            "depth of the whole picture"
        )
    fitted = resize_depth(depth[None], *frames.rgb.shape[-2:])[:, None]
    if not bool((fitted > 0).any()):
        raise ValueError(f"depth {path} is unknown in all of the cropped picture: give another file")
    # Sensors leave gaps; they get the depth of the farther surroundings.
    filled = fill_holes(fitted, background_weights(fitted))[:, 0]
    first = DepthPrediction(filled[0], frames.intrinsics, False, False, f"file {path.name}")
    measured = float((fitted > 0).float().mean())
    gaps = "" if measured == 1 else f", {1 - measured:.0%} of it gaps that were filled from around them"
    return _with_intrinsics(frames, filled, first, f"the file {path}{gaps}")


def _with_intrinsics(
    frames: SourceFrames, depth: Float[Tensor, "S H W"], first: DepthPrediction, reason: str
) -> SceneDepth:
    intrinsics, origin = frames.intrinsics, frames.intrinsics_origin
    if intrinsics is None:
        height, width = frames.rgb.shape[-2:]
        intrinsics = intrinsics_of_fov(_assumed_fov_x(height, width), height, width)
        side = "high" if height > width else "wide"
        origin = f"assumed: {ASSUMED_FOV:g} degrees {side}, because nothing says it (--fov, --intrinsics)"
    return SceneDepth(depth, first, intrinsics.float().cpu(), origin, reason)


def _assumed_fov_x(height: int, width: int) -> float:
    """Degrees across the width of a picture whose lens is not known."""
    half = math.tan(math.radians(ASSUMED_FOV) / 2)
    return 2 * math.degrees(math.atan(half * width / max(height, width)))
