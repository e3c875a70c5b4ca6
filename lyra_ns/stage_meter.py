"""Seconds and peak memory of the stages of a computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch

from lyra_ns.memory_estimate import gib


@dataclass(frozen=True)
class Stage:
    """What one stage took."""

    name: str
    """What was done."""
    seconds: float
    """Wall time, all work of the device included."""
    peak_bytes: int | None
    """Largest number of bytes of tensors on the device during the stage; None off CUDA."""

    def __str__(self) -> str:
        peak = "" if self.peak_bytes is None else f", peak {gib(self.peak_bytes)}"
        return f"{self.name} in {self.seconds:.2f} s{peak}"


class StageMeter:
    """Measures stages on one device; a GPU is waited for at the start and the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside as the stage `name`; one that fails is not noted."""
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        started = perf_counter()
        yield
        if is_cuda:
            torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) if is_cuda else None
        self.stages.append(Stage(name, perf_counter() - started, peak))

    def __str__(self) -> str:
        return "\n".join(f"  {stage}" for stage in self.stages)
