"""The unit of length in which a decoder is given a scene.

A single picture does not say how large things are, so the unit is a free choice; a decoder that was trained
on rooms of a few units does care about it. The fitted unit is the one in which it reproduces the clips, which
it is given anyway, best (`evaluation.photo_check` does the same).

Shape letters: V trajectories, L frames, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.evaluation.metrics import psnr
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings, render

UNITS_TRIED = (2.0, 3.0, 4.5, 6.5)
"""Units per unit of the scene that are tried first. What paths turn about is mostly at depth 1 there; in the
rooms that the shipped decoder was trained on it lies 3 to 5 away."""


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
    target_time: float | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> LengthUnit:
    """The unit in which the frames of the clips farthest from their start are reproduced best.

    `cameras` [V, L] are in units of the scene. Besides UNITS_TRIED the two halfway to the neighbours of the
    best of these are tried.
    """
    frames = farthest_frames(cameras)
    views = stack_cameras([path[frame] for path, frame in zip(_rows(cameras), frames, strict=True)])
    truth = torch.stack([video[frame] for video, frame in zip(videos, frames, strict=True)])
    truth = truth.movedim(1, -1).float() / 255
    num_steps = len(UNITS_TRIED) + 2
    tried: dict[float, float] = {}

    def try_unit(factor: float) -> None:
        gaussians = reconstruct(z, in_unit(cameras, factor), target_time)
        seen = render(gaussians, in_unit(views, factor).to(reconstruct.device), render_settings)
        tried[factor] = psnr(seen.rgb.clamp(0, 1).cpu(), truth).mean().item()
        if on_step:
            on_step(len(tried), num_steps)

    for factor in UNITS_TRIED:
        try_unit(factor)
    best = max(tried, key=tried.__getitem__)
    for neighbour in _neighbours(best):
        try_unit(math.sqrt(best * neighbour))
    best = max(tried, key=tried.__getitem__)
    listed = {f"{factor:.3g}": round(value, 2) for factor, value in sorted(tried.items())}
    return LengthUnit(best, "fitted: the clips are reproduced best in it", listed)


def farthest_frames(cameras: CameraPath) -> list[int]:
    """For each path of [V, L] the first frame that is farthest from its start."""
    centres = cameras.camera_to_world[..., :3, 3]
    distance = (centres - centres[:, :1]).norm(dim=-1)
    return [int(row.argmax()) for row in distance]


def _rows(cameras: CameraPath) -> list[CameraPath]:
    return [cameras[number] for number in range(cameras.shape[0])]


def _neighbours(factor: float) -> tuple[float, float]:
    """The factors tried before and after this one, or as far outside as its other neighbour lies inside."""
    at = UNITS_TRIED.index(factor)
    before = UNITS_TRIED[at - 1] if at else factor**2 / UNITS_TRIED[1]
    after = UNITS_TRIED[at + 1] if at + 1 < len(UNITS_TRIED) else factor**2 / UNITS_TRIED[-2]
    return before, after
