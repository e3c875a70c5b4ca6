"""How good a scene is, in numbers that a user can read: its first view, and how far one can look around."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.generation.decoder_input import KnownViews
from lyra_ns.generation.outputs import Instant
from lyra_ns.generation.plan import (
    COVERED_SHARE,
    DEGREES_TRIED,
    ScenePlan,
    coverage_of_gaussians,
    covered_degrees,
)
from lyra_ns.metrics import psnr
from lyra_ns.ops.lpips import SMALLEST_SIDE, load_lpips
from lyra_ns.refinement.views import RefinementViews
from lyra_ns.rendering import RenderSettings, render

FLAT_SPREAD = 1.35
"""Depths whose 99th percentile is less than so many times their 1st are nearly flat."""
LEAST_DEGREES = 6
"""Scenes that cover less to a side are told."""


@dataclass(frozen=True)
class SceneQuality:
    """What a run says of its scene."""

    psnr: float
    """PSNR of the first view against the picture, in dB."""
    lpips: float | None
    """LPIPS (alex) of the same; None for pictures too small for it."""
    covered_degrees: dict[str, int]
    """How far one can turn about the centre until less than COVERED_SHARE is known, by direction."""
    depth_percentiles: tuple[float, float, float] | None
    """1st, 50th and 99th percentile of the depth, in units of the scene."""
    warnings: tuple[str, ...] = field(default=())
    """What is doubtful, with numbers."""

    def as_record(self) -> dict[str, Any]:
        """For record.json."""
        return {name: _rounded(value) for name, value in asdict(self).items()}

    def in_words(self) -> list[str]:
        """Lines for the end of a run."""
        lpips = "" if self.lpips is None else f", LPIPS {self.lpips:.3f}"
        degrees = ", ".join(
            f"{found}{' or more' if found == DEGREES_TRIED[-1] else ''} {name}"
            for name, found in self.covered_degrees.items()
        )
        lines = [
            f"first view against the picture: PSNR {self.psnr:.1f} dB{lpips}",
            f"degrees one can turn while {COVERED_SHARE:.0%} of the view is known: {degrees}",
        ]
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]


def scene_quality(
    instant: Instant,
    known: KnownViews,
    plan: ScenePlan,
    first_camera: Float[Tensor, "4 4"],
    factor: float,
    settings: RenderSettings,
) -> SceneQuality:
    """The quality of the first instant; `first_camera` is that of its Gaussians, in units of the scene.

    `factor` is the unit of the Gaussians.
    """
    picture = known.for_gaussians(first_camera, factor)[0]
    found, lpips = _closeness(instant, picture, settings)
    covered = known.covered
    if not covered:
        coverage = coverage_of_gaussians(instant.gaussians, settings)
        covered = covered_degrees(coverage, picture.cameras[0], plan.scale.centre_depth * factor)
    percentiles = depth_percentiles(plan.depth)
    return SceneQuality(found, lpips, covered, percentiles, quality_warnings(percentiles, covered))


@torch.no_grad()
def _closeness(
    instant: Instant, picture: RefinementViews, settings: RenderSettings
) -> tuple[float, float | None]:
    """PSNR in dB and LPIPS (alex) of the picture of this instant, in the frame of its Gaussians."""
    gaussians = instant.gaussians
    at = int((picture.cameras.times - (instant.time or 0.0)).abs().argmin())
    view = picture[at].to(gaussians.means.device)
    seen = render(gaussians, view.cameras, settings).rgb.clamp(0, 1)
    found = float(psnr(seen, view.images))
    if min(seen.shape[1:3]) < SMALLEST_SIDE:
        return found, None
    images = (seen.movedim(-1, 1), view.images.movedim(-1, 1))
    return found, float(load_lpips("alex")(*images))


def depth_percentiles(depth: Float[Tensor, "*any"]) -> tuple[float, float, float] | None:
    """1st, 50th and 99th percentile of depth where it is known; None if that is nowhere."""
    known = depth[depth > 0]
    if len(known) == 0:
        return None
    low, middle, high = np.percentile(known.numpy(), [1.0, 50.0, 99.0]).tolist()
    return low, middle, high


def quality_warnings(
    percentiles: tuple[float, float, float] | None, covered: dict[str, int]
) -> tuple[str, ...]:
    """What is doubtful, with numbers and what to do."""
    warnings = []
    if percentiles is not None and percentiles[2] < FLAT_SPREAD * percentiles[0]:
        low, middle, high = percentiles
        warnings.append(
            f"the depth is nearly flat ({low:.3g}, {middle:.3g} and {high:.3g} at 1, 50 and 99 %): hardly "
            "anything will move before anything else; give better depth (--depth)"
        )
    little = [f"{degrees} {name}" for name, degrees in covered.items() if degrees < LEAST_DEGREES]
    if little:
        warnings.append(
            f"less than {COVERED_SHARE:.0%} of the picture is known beyond {', '.join(little)} degrees: what "
            "shows there is a guess"
        )
    return tuple(warnings)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(part) for part in value] if isinstance(value, tuple) else value
