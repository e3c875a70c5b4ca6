"""Random tensors for many scenes at once, on any device and without waiting for it.

Shape letters: B scenes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


class BatchDraws:
    """Random tensors with one row for each scene."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self._generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers [B, *shape] between `low` and `high`."""
        drawn = torch.rand(self.count, *shape, generator=self._generator, device=self._generator.device)
        return low + (high - low) * drawn

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers whose logarithms are uniform."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, mean: float, deviation: float, *shape: int) -> Tensor:
        """Normally distributed numbers."""
        drawn = torch.randn(self.count, *shape, generator=self._generator, device=self._generator.device)
        return mean + deviation * drawn

    def chance(self, probability: float, *shape: int) -> Tensor:
        """True with this probability."""
        return self.uniform(0.0, 1.0, *shape) < probability

    def integer(self, count: int, *shape: int) -> Tensor:
        """Whole numbers below `count`."""
        return self.uniform(0.0, count, *shape).long().clamp(max=count - 1)


def rotation_about(axis: int, angle: Tensor) -> Float[Tensor, "*batch 3 3"]:
    """Rotations about x (0), y (1) or z (2), as the solids and cameras of the sample scenes use them."""
    c, s, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        0: [one, zero, zero, zero, c, -s, zero, s, c],
        1: [c, zero, s, zero, one, zero, -s, zero, c],
        2: [c, -s, zero, s, c, zero, zero, zero, one],
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))
