"""More Gaussians where they are needed and none where they do nothing, by gsplat's Monte Carlo strategy.

Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo", NeurIPS 2024. Unlike the older one it
needs no gradient of projected centres, which renders along rays do not have, and its number of Gaussians is
bounded. Its kernel runs on CUDA alone.
"""

from __future__ import annotations

import torch

from lyra_ns.refinement_attributes import TrainableGaussians

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
