"""Gradient steps that bring Gaussians closer to pictures of the scene, until held-back pictures stop gaining.

Shape letters: M views, G Gaussians, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from jaxtyping import Float
from pytorch_msssim import ssim
from torch import Tensor

from lyra_ns.gaussians import Gaussians
from lyra_ns.losses import ImageDistance
from lyra_ns.ops.lpips import SMALLEST_SIDE, load_lpips
from lyra_ns.refinement.attributes import Densifier, TrainableGaussians, pixel_sizes
from lyra_ns.refinement.config import RefinementConfig
from lyra_ns.refinement.views import RefinementViews, check_views, drawn_background, finest_focal, in_turn
from lyra_ns.rendering import render
from lyra_ns.rendering.projection import drawable
from lyra_ns.rendering.types import Rendered

SMALLEST_ERROR = 1e-10
"""Equal pictures get 100 dB and not infinity."""
SMALLEST_SSIM_SIDE = 11
"""Side of the window of SSIM; smaller pictures go without."""


def photometric_loss(
    seen: Rendered,
    view: RefinementViews,
    config: RefinementConfig,
    perceptual: ImageDistance | None = None,
    lpips: float = 0.0,
) -> Float[Tensor, ""]:
    """Errors summed over the pixels of one view, so that a gradient counts pixels whatever their number.

    Where the view's weight is below 1 the render is mixed with the picture, and gets so much less gradient.
    """
    wanted, found = view.images, seen.rgb
    if view.weight is not None:
        found = torch.lerp(wanted, found, view.weight[..., None])
    ssim_weight = config.ssim if min(wanted.shape[1:3]) >= SMALLEST_SSIM_SIDE else 0.0
    loss = (1 - ssim_weight) * (found - wanted).abs().mean()
    if ssim_weight:
        loss = loss + ssim_weight * (1 - ssim(_first(found), _first(wanted), data_range=1.0))
    if perceptual is not None:
        loss = loss + lpips * perceptual(_first(found).clamp(0, 1), _first(wanted)).mean()
    if view.depth is not None and config.depth:
        loss = loss + config.depth * _depth_error(seen, view)
    return loss * wanted.shape[1] * wanted.shape[2]


def covered_psnr(rgb: Float[Tensor, "M H W 3"], view: RefinementViews) -> Float[Tensor, " M"]:
    """PSNR in dB over the covered pixels of each view; NaN where there are none."""
    error = (rgb.clamp(0, 1) - view.images).square().mean(-1)
    covered = torch.ones_like(error, dtype=torch.bool) if view.covered is None else view.covered
    mean = torch.where(covered, error, 0.0).sum((1, 2)) / covered.sum((1, 2))
    return -10 * mean.clamp(min=SMALLEST_ERROR).log10()


def _first(images: Float[Tensor, "M H W 3"]) -> Float[Tensor, "M 3 H W"]:
    return images.movedim(-1, 1)


def _depth_error(seen: Rendered, view: RefinementViews) -> Float[Tensor, ""]:
    """Mean of |z - d| / d over pixels whose depth d is known, 0 elsewhere; an outlier counts as 1."""
    assert view.depth is not None
    known = view.depth > 0
    error = (seen.depth - view.depth).abs() / torch.where(known, view.depth, 1.0)
    weight = known if view.weight is None else known * view.weight
    return (error.clamp(max=1.0) * weight).mean()


LPIPS_ON_GPU = 0.05
"""Weight of the perceptual distance where the configuration leaves it open."""


@dataclass(frozen=True)
class RefinementStep:
    """How far a refinement is."""

    step: int
    """Steps that are made."""
    num_steps: int
    """Steps in all, unless it ends before."""
    psnr: float | None
    """PSNR of the pictures of the last steps, in dB, as they were before these steps (a running mean); None
    while all that was shown is covered nowhere."""
    held_back_psnr: float | None
    """Mean PSNR of the pictures that are held back when they were last looked at; None without any."""

    def __str__(self) -> str:
        parts = [] if self.psnr is None else [f"{self.psnr:.1f} dB"]
        if self.held_back_psnr is not None:
            parts.append(f"held back {self.held_back_psnr:.1f} dB")
        return ", ".join(parts)


OnRefinementStep = Callable[[RefinementStep], None]


@dataclass(frozen=True)
class Refinement:
    """What came of it."""

    gaussians: Gaussians
    """The best state, on the device of the Gaussians that were given."""
    num_steps: int
    """Steps that were made."""
    best_step: int
    """Step whose state this is: the best by the held-back pictures, the last without any; 0 is the start."""
    held_back_psnr: dict[int, float]
    """Mean PSNR of the held-back pictures, in dB, by the step after which they were looked at."""
    seconds: float
    """How long it took."""
    reason: str
    """Why it ended, in words."""

    def __str__(self) -> str:
        judged = self.held_back_psnr
        said = ""
        if judged:
            said = f"; held-back views {judged[0]:.1f} -> {judged[self.best_step]:.1f} dB"
        kept = "" if self.best_step == self.num_steps else f", step {self.best_step} kept"
        return f"{self.num_steps} steps in {self.seconds:.0f} s ({self.reason}){kept}{said}"

    @property
    def gain(self) -> float:
        """What the held-back pictures gained, in dB; 0 without any."""
        found = self.held_back_psnr
        return found[self.best_step] - found[0] if found else 0.0


def refine(
    gaussians: Gaussians,
    views: Sequence[RefinementViews],
    config: RefinementConfig | None = None,
    on_step: OnRefinementStep | None = None,
) -> Refinement:
    """Gaussians [G] closer to `views`, which are brought to their device.

    Adam over all five attributes, one picture a step. The state returned is the one that the held-back
    pictures liked best; it ends when they stop gaining. The same call gives the same result, bit by bit on a
    CPU, unless a limit of seconds ends it. A moving scene is refined instant by instant, each with the
    pictures of its time (`RefinementViews.near_time`). ValueError for views or Gaussians that cannot be used.

    Example:
        >>> photograph = RefinementViews(image[None], camera.reshape(1))
        >>> refine(gaussians, [photograph], RefinementConfig(num_steps=100)).gaussians
    """
    config = config or RefinementConfig()
    check_views(views)
    if gaussians.means.ndim != 2 or not bool(drawable(gaussians).any()):
        raise ValueError(
            f"expected Gaussians [G] of one scene to refine, found means {list(gaussians.means.shape)} of "
            "which none can be drawn"
        )
    views = [some.to(gaussians.means.device) for some in views]
    return _Refiner(gaussians.detach(), views, config).run(on_step)


class _Refiner:
    """One refinement as it runs."""

    def __init__(
        self, gaussians: Gaussians, views: Sequence[RefinementViews], config: RefinementConfig
    ) -> None:
        self.views, self.config = views, config
        device = gaussians.means.device
        centres = torch.cat([some.cameras.camera_to_world[:, :3, 3] for some in views])
        pixel = pixel_sizes(gaussians.means, centres.to(gaussians.means), finest_focal(views))
        self.scene = TrainableGaussians(gaussians, pixel, config.rates, config.growth, config.damping)
        self.perceptual, self.lpips = self._perceptual(device)
        self.densifier = self._densifier(gaussians.num)
        # On the CPU, so that every device draws the same.
        self.generator = torch.Generator().manual_seed(config.seed)
        self.best, self.best_step = gaussians, 0
        self.judged: dict[int, float] = {}
        self.running_psnr: float | None = None

    def run(self, on_step: OnRefinementStep | None) -> Refinement:
        """All steps."""
        config, started = self.config, monotonic()
        self._judge(0)
        step, reason = 0, "all steps are made"
        for view in in_turn(self.views, config.seed):
            if config.seconds is not None and monotonic() - started > config.seconds:
                reason = f"the time of {config.seconds:g} s is over"
                break
            step += 1
            self._step(view, step, self._rate(step - 1, monotonic() - started))
            if step % config.check_every == 0 or step == config.num_steps:
                self._judge(step)
            if on_step is not None:
                on_step(self._progress(step))
            if step == config.num_steps:
                break
            if self._gains_no_more():
                reason = f"held-back pictures gained nothing in {config.patience} looks"
                break
        if step not in self.judged:
            self._judge(step)
        return Refinement(self.best, step, self.best_step, self.judged, monotonic() - started, reason)

    def _step(self, view: RefinementViews, step: int, rate: float) -> None:
        settings = drawn_background(self.config.render, self.generator)
        seen = render(self.scene.gaussians(), view.cameras, settings)
        loss = photometric_loss(seen, view, self.config, self.perceptual, self.lpips)
        loss.backward()
        self.scene.step(rate)
        if self.densifier is not None:
            self.densifier.after_step(step)
        found = float(covered_psnr(seen.rgb.detach(), view))
        if not math.isnan(found):
            self.running_psnr = found if self.running_psnr is None else 0.9 * self.running_psnr + 0.1 * found

    def _rate(self, step: int, seconds: float) -> float:
        """Share of the learning rates, by what is over of the steps or the time."""
        over = step / self.config.num_steps
        if self.config.seconds is not None:
            over = max(over, seconds / self.config.seconds)
        last = self.config.last_rate
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(over, 1.0)))

    @torch.no_grad()
    def _judge(self, step: int) -> None:
        """Look at the held-back pictures; keep the state if it is the best so far, or if there are none."""
        found = self.scene.snapshot()
        scores = [
            covered_psnr(render(found, view.cameras, self.config.render).rgb, view)
            for some in self.views
            for view in (some[index] for index in some.held_back)
        ]
        if scores:
            self.judged[step] = float(torch.cat(scores).nanmean())
        if not scores or self.judged[step] >= max(self.judged.values()):
            self.best, self.best_step = found, step

    def _gains_no_more(self) -> bool:
        looks = list(self.judged.values())
        if len(looks) <= self.config.patience:
            return False
        before, lately = looks[: -self.config.patience], looks[-self.config.patience :]
        return max(lately) < max(before) + self.config.smallest_gain

    def _progress(self, step: int) -> RefinementStep:
        latest = next(reversed(self.judged.values()), None)
        return RefinementStep(step, self.config.num_steps, self.running_psnr, latest)

    def _densifier(self, num: int) -> Densifier | None:
        config = self.config
        if config.densify == 1:
            return None
        return Densifier(self.scene, int(config.densify * num), config.num_steps, config.seed)

    def _perceptual(self, device: torch.device) -> tuple[ImageDistance | None, float]:
        weight = self.config.lpips
        if weight is None:
            weight = LPIPS_ON_GPU if device.type == "cuda" else 0.0
        smallest = min(min(some.images.shape[1:3]) for some in self.views)
        if not weight or smallest < SMALLEST_SIDE:
            return None, 0.0
        return load_lpips("alex").to(device), weight
