"""The unit of length in which a decoder is given a scene.

A single picture does not say how large things are, so the unit is a free choice; a decoder that was trained
on rooms of a few units does care about it. The fitted unit is the one in which it reproduces the clips, which
it is given anyway, best (`evaluation.photo_check` does the same).

Shape letters: V trajectories, L frames, H W image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.metrics import psnr
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings, render

SUBJECT_AT = 3.0
"""Depth of the subject in the unit that is tried first; the shipped decoder was trained on about 1.5 to 7."""
RATIO = 1.5
"""Between units that are tried one after the other."""
MOST_TRIALS = 6
"""Units that are tried at most; on a CPU each takes seconds."""
WORTH_A_TRIAL = 0.05
"""Gain in dB that is worth one more trial."""


@dataclass(frozen=True)
class LengthUnit:
    """The unit that was chosen."""

    factor: float
    """Lengths of the scene times this are what the decoder sees and what is written."""
    origin: str
    """Why it is this one, in words."""
    tried: dict[str, float]
    """Closeness of the clips in dB by the factors that were tried; empty where none were."""


def in_unit(cameras: CameraPath, factor: float) -> CameraPath:
    """The same cameras with all lengths times `factor`."""
    poses = cameras.camera_to_world.clone()
    poses[..., :3, 3] *= factor
    return replace(cameras, camera_to_world=poses)


@torch.no_grad()
def fitted_unit(
    reconstruct: Reconstructor,
    z: Float[Tensor, "V C T h w"],
    cameras: CameraPath,
    videos: list[UInt8[Tensor, "L 3 H W"]],
    render_settings: RenderSettings,
    start: float,
    target_time: float | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> LengthUnit:
    """The unit in which the frames of the clips farthest from their start are reproduced best.

    `cameras` [V, L] are in units of the scene, of which `start` is the first to be tried (`search_unit`).
    """
    frames = farthest_frames(cameras)
    views = stack_cameras([path[frame] for path, frame in zip(_rows(cameras), frames, strict=True)])
    truth = torch.stack([video[frame] for video, frame in zip(videos, frames, strict=True)])
    truth = truth.movedim(1, -1).float() / 255
    num_done = itertools.count(1)

    def closeness(factor: float) -> float:
        gaussians = reconstruct(z, in_unit(cameras, factor), target_time)
        seen = render(gaussians, in_unit(views, factor).to(reconstruct.device), render_settings)
        if on_step:
            on_step(next(num_done), MOST_TRIALS)
        return psnr(seen.rgb.clamp(0, 1).cpu(), truth).mean().item()

    tried = search_unit(closeness, start)
    best = max(tried, key=tried.__getitem__)
    listed = {f"{factor:.3g}": round(value, 2) for factor, value in sorted(tried.items())}
    return LengthUnit(best, f"fitted: of {len(tried)} the clips are reproduced best in it", listed)


def search_unit(closeness: Callable[[float], float], start: float) -> dict[float, float]:
    """Closeness by the units that were tried, at most MOST_TRIALS; the best is that of the largest value.

    From `start` and RATIO times as much the search goes on outwards, in steps of RATIO, for as long as the
    outermost is best and gains; then it tries the top of the parabola through the best and its neighbours, in
    the logarithm of the unit, if that promises a gain. `closeness` is in dB and has one top.
    """
    tried = {unit: closeness(unit) for unit in (start, start * RATIO)}
    while len(tried) < MOST_TRIALS:
        unit = _next_unit(tried)
        if unit is None:
            break
        tried[unit] = closeness(unit)
    return tried


def _next_unit(tried: dict[float, float]) -> float | None:
    """The unit to try after these, or None where none is worth it."""
    units = sorted(tried)
    values = [tried[unit] for unit in units]
    best = values.index(max(values))
    if 0 < best < len(units) - 1:
        return _top_of_parabola(units[best - 1 : best + 2], values[best - 1 : best + 2])
    inner = 1 if best == 0 else best - 1
    # Two units say which way to go and not whether it is worth it: the top may lie between them.
    if len(units) > 2 and values[best] - values[inner] < WORTH_A_TRIAL:
        return None
    return units[best] * (RATIO if best > inner else 1 / RATIO)


def _top_of_parabola(units: list[float], values: list[float]) -> float | None:
    """Where three values are largest, in the logarithm of the unit; None if the middle is as good.

    None as well for uneven steps: then one of the three was such a top already.
    """
    before, middle, after = units
    if not (math.isclose(middle, before * RATIO) and math.isclose(after, middle * RATIO)):
        return None
    slope, bend = (values[2] - values[0]) / 2, 2 * values[1] - values[0] - values[2]
    if bend <= 0 or slope**2 / (2 * bend) < WORTH_A_TRIAL:
        return None
    return middle * RATIO ** (slope / bend)


def farthest_frames(cameras: CameraPath) -> list[int]:
    """For each path of [V, L] the first frame that is farthest from its start."""
    centres = cameras.camera_to_world[..., :3, 3]
    distance = (centres - centres[:, :1]).norm(dim=-1)
    return [int(row.argmax()) for row in distance]


def _rows(cameras: CameraPath) -> list[CameraPath]:
    return [cameras[number] for number in range(cameras.shape[0])]
