"""Which of two ways the kernels take where one is faster and the other has been in use longer.

The one place to look for them: benchmarks set `CHOICES` to time both ways, and its defaults are what one
gets. None of them changes what is computed, only how, in which order and with how many roundings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace


@dataclass
class KernelChoices:
    """One choice for each pair of ways."""

    round_state_updates: bool = False
    """Update the states of a scan without gradient from tokens rounded once, as mamba-ssm does, in place of
    two products that keep twice the digits (ssd_forward.py)."""
    fuse_residuals: bool = False
    """Without gradient, add the result of a branch to the stream in the kernel of the next branch's norm
    (residual_branches.py)."""
    train_with_own_scan: bool = False
    """Where a gradient is wanted run the state scan forward in our kernels, too (ssd_training.py)."""
    overlap_attention: bool = False
    """Compute attention with the kernel that multiplies tiles while it takes exponentials of another
    (overlapped_attention.py), where the number of tokens suits it."""


CHOICES = KernelChoices()
"""The choices in use."""


@contextmanager
def chosen(**changes: bool) -> Iterator[None]:
    """`CHOICES` with `changes` inside a with block; the former ones after it."""
    before = replace(CHOICES)
    _assign(replace(CHOICES, **changes))
    try:
        yield
    finally:
        _assign(before)


def _assign(choices: KernelChoices) -> None:
    for field in fields(KernelChoices):
        setattr(CHOICES, field.name, getattr(choices, field.name))
