"""Time and peak memory of GPU work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from lyra_ns.device import GIB


@dataclass(frozen=True)
class Measured:
    """What one piece of work costs."""

    milliseconds: float
    """Median over the repetitions."""
    peak_gib: float
    """Most memory in use at once, that of the inputs included, as the allocator counts it."""
    growth_gib: float
    """The same above what was in use before."""

    def row(self) -> dict[str, float]:
        """Rounded for a result file."""
        return {
            "ms": round(self.milliseconds, 2),
            "peak_gib": round(self.peak_gib, 2),
            "growth_gib": round(self.growth_gib, 2),
        }


def measure(work: Callable[[], Any], repetitions: int = 3, warm_up: int = 1) -> Measured:
    """Time and peak memory of `work`, whose result is dropped, after `warm_up` calls that do not count."""
    for _ in range(warm_up):
        work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = [_timed(work) for _ in range(repetitions)]
    peak = torch.cuda.max_memory_allocated()
    return Measured(median(times), peak / GIB, (peak - before) / GIB)


def _timed(work: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
