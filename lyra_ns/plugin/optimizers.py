"""AdamW for the decoder, and learning-rate schedules whose checkpoints hold Python floats only.

nerfstudio's own schedules leave numpy scalars in the checkpoint, which `torch.load` refuses to read back
(docs/reference/nerfstudio.md, "Checkpoints").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class WarmupSchedulerConfig(SchedulerConfig):
    """Linear warm-up, then a constant or cosine-shaped rate."""

    _target: type = field(default_factory=lambda: WarmupScheduler)
    warmup_steps: int = 100
    """Steps until the full learning rate is reached (docs/reference/lyra_training.md, "Optimiser")."""
    decay: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up."""
    max_steps: int = 20_000
    """Step at which the cosine arrives at its end (cosine only)."""
    final_fraction: float = 0.05
    """Share of the full learning rate at the end (cosine only)."""


class WarmupScheduler(Scheduler):
    """Builds the schedule that a WarmupSchedulerConfig describes."""

    config: WarmupSchedulerConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        """A scheduler that multiplies the learning rate of every group by `learning_rate_factor`."""
        return LambdaLR(optimizer, lambda step: learning_rate_factor(self.config, step))


def learning_rate_factor(config: WarmupSchedulerConfig, step: int) -> float:
    """Share of the full learning rate at `step` (first step 0, which already learns)."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.decay == "constant":
        return 1.0
    length = max(config.max_steps - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / length, 1.0)
    wave = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_fraction + (1.0 - config.final_fraction) * wave


@dataclass
class DecoderAdamWConfig(OptimizerConfig):
    """AdamW with the constants of the paper's training, fused on CUDA.

    Source: docs/reference/lyra_training.md, "Optimiser".
    """

    _target: type = torch.optim.AdamW
    lr: float = 1e-4
    """Full learning rate."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    max_norm: float | None = 1.0
    """Gradients of all parameters together are scaled down to this norm."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """`matrices` spares vectors (norms, biases, A_log, D, dt_bias); `all` is what the official code does."""

    def setup(self, params: list[Parameter]) -> torch.optim.Optimizer:
        """One optimizer over `params`, so that gradient clipping sees all of them together.

        ValueError for weights of less than float32, in which steps of this size would be lost.
        """
        coarse = {str(p.dtype).removeprefix("torch.") for p in params if p.dtype.itemsize < 4}
        if coarse:
            raise ValueError(
                f"expected weights in float32, found {sorted(coarse)}: leave --pipeline.model.decoder.parity "
                "off to train; matrix products run in bfloat16 on CUDA without it"
            )
        decayed = [p for p in params if self.decay == "all" or p.ndim >= 2]
        spared = [p for p in params if self.decay != "all" and p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        fused = all(parameter.is_cuda for parameter in params)
        return self._target(groups, lr=self.lr, eps=self.eps, betas=(0.9, 0.999), fused=fused)
