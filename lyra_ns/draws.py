"""Random draws that depend on nothing but their labels: seed, scene, trajectory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")


def generator_for(*labels: int | str) -> torch.Generator:
    """A CPU generator seeded by the labels, the same in every process and on every machine."""
    digest = hashlib.sha256("/".join(str(label) for label in labels).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class Draws:
    """Single draws from a generator as plain numbers."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        """A number between `low` and `high`."""
        return low + (high - low) * torch.rand((), generator=self.generator, dtype=torch.float64).item()

    def integer(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0.0, 1.0) < probability

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self.chance(0.5) else -1.0

    def choice(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.integer(0, len(items) - 1)]

    def order(self, count: int) -> list[int]:
        """The numbers 0 to count - 1 in random order."""
        return torch.randperm(count, generator=self.generator).tolist()
