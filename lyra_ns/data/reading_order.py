"""The order in which decoders are trained to read trajectories; the poses of the first are the reference.

Light on purpose: commands read it before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable

READING_ORDER = (5, 0, 1, 2, 3, 4)
"""The usual six, as in the official demonstrations."""


def in_reading_order(trajectories: Iterable[int]) -> list[int]:
    """The usual ones first and in their order, then all others as they came."""
    found = list(trajectories)
    usual = [number for number in READING_ORDER if number in found]
    return [*usual, *(number for number in found if number not in usual)]
