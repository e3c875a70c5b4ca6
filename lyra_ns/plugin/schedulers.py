"""Learning-rate schedules whose checkpoints hold Python floats only.

nerfstudio's own schedules leave numpy scalars in the checkpoint, which `torch.load` refuses to read back
(docs/reference/nerfstudio.md, "Checkpoints").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
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
