"""Attributes of Gaussians as numbers that gradient steps may change, their bounds, and how many there are.

Names and meanings are those of gsplat's strategies, which densify and prune such dictionaries. There are more
Gaussians where they are needed and none where they do nothing by its Monte Carlo strategy: Kheradmand et al.,
"3D Gaussian Splatting as Markov Chain Monte Carlo", NeurIPS 2024. Unlike the older one it needs no gradient
of projected centres, which renders along rays do not have, and its number of Gaussians is bounded. Its kernel
runs on CUDA alone.

Shape letter: G Gaussians.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lyra_ns.gaussians import Gaussians
from lyra_ns.refinement.config import LearningRates

MARGIN = 1e-4
"""Opacities and colours are kept this far from 0 and 1, where logits are infinite."""
BETAS = (0.9, 0.99)
"""Of Adam: a few hundred steps are too few for its usual memory of a thousand."""


class TrainableGaussians:
    """Gaussians under Adam. Those that no gradient reaches stay exactly as they are.

    A scale never exceeds the larger of its start and `growth` pixels, so that no streak can arise where
    nothing tells how large a Gaussian is. Centres move by pixels, whatever their distance.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        pixel: Float[Tensor, " G"],
        rates: LearningRates,
        growth: float,
        damping: float,
    ) -> None:
        """`pixel` is the size of a pixel at each Gaussian, in units of the scene."""
        log_scales = gaussians.scales.log()
        largest = torch.maximum(log_scales, (growth * pixel[:, None]).log())
        free = {
            "means": gaussians.means,
            "scales": log_scales,
            "quats": functional.normalize(gaussians.quats, dim=-1),
            "opacities": torch.logit(gaussians.opacities, eps=MARGIN),
            "colours": torch.logit(gaussians.rgb, eps=MARGIN),
        }
        fixed = {"pixel": pixel[:, None], "largest_scales": largest}
        self.parameters = {
            name: nn.Parameter(values.detach().clone()) for name, values in (free | fixed).items()
        }
        self.rates, self.trained = rates, tuple(free)
        # One for each: gsplat's strategies want it so, and move what is fixed along with the rest.
        self.optimizers = {
            name: torch.optim.Adam([parameter], lr=0.0, betas=BETAS, eps=damping, fused=True)
            for name, parameter in self.parameters.items()
        }

    def gaussians(self) -> Gaussians:
        """The Gaussians as they are now, with gradients."""
        attributes = self.parameters
        return Gaussians(
            means=attributes["means"],
            quats=functional.normalize(attributes["quats"], dim=-1),
            scales=attributes["scales"].exp(),
            opacities=attributes["opacities"].sigmoid(),
            rgb=attributes["colours"].sigmoid(),
        )

    def snapshot(self) -> Gaussians:
        """A copy of the Gaussians as they are now."""
        with torch.no_grad():
            found = self.gaussians()
            return Gaussians(found.means.clone(), found.quats, found.scales, found.opacities, found.rgb)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of Adam, learning rates times `rate`, then back within the bounds; gradients are gone."""
        means, pixel = self.parameters["means"], self.parameters["pixel"]
        before = means.clone()
        if means.grad is not None:
            means.grad.mul_(pixel)  # by pixels in place of units of the scene
        for name in self.trained:
            optimizer = self.optimizers[name]
            optimizer.param_groups[0]["lr"] = getattr(self.rates, name) * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        means.copy_(torch.lerp(before, means, pixel))
        scales = self.parameters["scales"]
        torch.minimum(scales, self.parameters["largest_scales"], out=scales)


def pixel_sizes(
    means: Float[Tensor, "G 3"], centres: Float[Tensor, "C 3"], focal: float
) -> Float[Tensor, " G"]:
    """Size of a pixel of focal length `focal` at each Gaussian, seen from the middle of camera centres."""
    distance = (means - centres.mean(0)).norm(dim=-1)
    # One that lies at the cameras would not move at all.
    return distance.clamp(min=1e-3 * float(distance.median())) / focal


ROUNDS = 12
"""Times that Gaussians are made and dropped; each adds at most 5 %."""
LAST_ROUND = 0.7
"""Share of the steps after which their number stays, so that the last ones can settle."""
LEAST_OPACITY = 0.005
"""Gaussians that are less opaque do nothing, and are put where others do much."""


class Densifier:
    """Changes the number of Gaussians between steps."""

    def __init__(self, scene: TrainableGaussians, most: int, num_steps: int, seed: int) -> None:
        """Up to `most` Gaussians within so many steps. ValueError where there is no CUDA."""
        from gsplat.strategy import MCMCStrategy

        self.device = scene.parameters["means"].device
        if self.device.type != "cuda":
            raise ValueError(
                f"Gaussians are made and dropped by gsplat on a GPU, found them on {self.device.type}: leave "
                "densify at 1"
            )
        self.scene, self.seed = scene, seed
        self.every = max(1, int(LAST_ROUND * num_steps) // ROUNDS)
        self.last = ROUNDS * self.every
        self.strategy = MCMCStrategy(
            cap_max=most,
            noise_lr=0.0,  # noise is for scenes that are found from nothing
            refine_start_iter=0,
            refine_stop_iter=self.last + 1,
            refine_every=self.every,
            min_opacity=LEAST_OPACITY,
        )
        self.strategy.check_sanity(scene.parameters, scene.optimizers)
        self.state = self.strategy.initialize_state()

    def after_step(self, step: int) -> None:
        """To be called with the number of steps that are made."""
        if step % self.every or step > self.last:
            return
        with torch.random.fork_rng(devices=[self.device]):
            torch.manual_seed(self.seed + step)
            self.strategy.step_post_backward(
                self.scene.parameters, self.scene.optimizers, self.state, step, info={}, lr=0.0
            )
