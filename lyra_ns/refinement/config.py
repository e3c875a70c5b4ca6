"""How Gaussians are refined."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lyra_ns.rendering.types import RenderSettings

USUAL_STEPS = {"cpu": 100, "cuda": 400}
"""Steps where nobody says how many: half a minute on two CPU cores."""
USUAL_PIXELS = {"cpu": 512 * 320, "cuda": 1280 * 704}
"""Pixels of a view at most, where nobody says how many."""


def usual_steps(device_type: str) -> int:
    """How many steps a refinement on such a device takes by default."""
    return USUAL_STEPS.get(device_type, USUAL_STEPS["cpu"])


def usual_pixels(device_type: str) -> int:
    """How many pixels a view on such a device has by default; larger ones are made smaller."""
    return USUAL_PIXELS.get(device_type, USUAL_PIXELS["cpu"])


@dataclass(frozen=True)
class LearningRates:
    """Steps of Adam for each attribute, at the start; all are free of the scene's unit of length.

    Large, for few steps: held-back views of photographs gain most by them while they fall to `last_rate`.
    """

    means: float = 0.7
    """Of centres, in pixels of the largest views."""
    scales: float = 0.04
    """Of logarithms of scales."""
    opacities: float = 0.16
    """Of logits of opacities."""
    colours: float = 0.4
    """Of logits of colours."""
    quats: float = 0.08
    """Of unit quaternions."""


@dataclass(frozen=True)
class RefinementConfig:
    """Settings of `refine`."""

    num_steps: int = 100
    """Gradient steps at most, each with one view."""
    seconds: float | None = None
    """Time after which no further step is begun; results then depend on the speed of the machine."""
    seed: int = 0
    """Order of the views and everything else that is drawn."""
    rates: LearningRates = field(default_factory=LearningRates)
    """Learning rates at the start."""
    last_rate: float = 0.1
    """Learning rates of the last step as a share of those of the first; they fall along half a cosine."""
    ssim: float = 0.2
    """Weight of 1 - SSIM; the mean absolute error of colours has the rest, as in 3D Gaussian splatting."""
    lpips: float | None = None
    """Weight of the perceptual distance; None: 0.05 on a GPU and 0 on a CPU, where it takes longer than all
    else."""
    depth: float = 0.05
    """Weight of the relative error of depth where it is known."""
    growth: float = 1.0
    """How large, in pixels of the largest views, scales may become that were smaller; others never grow."""
    damping: float = 1e-3
    """Gaussians whose gradient is that of less than so many pixels move less than the learning rate says."""
    densify: float = 1.0
    """How many times as many Gaussians there may be in the end, on a GPU; 1 leaves every one where it is."""
    check_every: int = 25
    """Steps between two looks at the views that are held back."""
    patience: int = 3
    """Looks without a gain after which it ends."""
    smallest_gain: float = 0.02
    """What counts as a gain, in dB of the views that are held back."""
    render: RenderSettings = field(default_factory=lambda: RenderSettings(response="ewa"))
    """How the Gaussians are drawn; its background is only behind judged pictures, steps have random ones."""

    def __post_init__(self) -> None:
        """ValueError for what no refinement can be made with."""
        if self.num_steps < 1 or self.check_every < 1 or self.patience < 1:
            raise ValueError(
                "expected num_steps, check_every and patience of at least 1, found "
                f"{self.num_steps}, {self.check_every} and {self.patience}"
            )
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"expected seconds above 0, found {self.seconds}: None for no limit")
        if not (math.isfinite(self.densify) and self.densify >= 1):
            raise ValueError(f"expected densify of 1 or more, found {self.densify}: 1 adds none")
        if not 0 <= self.ssim <= 1:
            raise ValueError(f"expected ssim from 0 to 1, found {self.ssim}")
        for name in ("depth", "growth", "damping", "last_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"expected {name} of 0 or more, found {value}")
