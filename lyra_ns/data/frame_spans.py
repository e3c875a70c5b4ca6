"""Which frames of a clip go in where that is not the whole clip: the gap rule of early stages.

Source: docs/reference/lyra_training.md, "Draws of views and frames".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FrameSpan:
    """A stretch of a clip."""

    inputs: list[int]
    """Frames that go in; ascending, except in clips that are too short, which run forth and back."""
    candidates: list[int]
    """Frames that may be targets, ascending."""


def draw_frame_span(
    num_frames: int,
    num_inputs: int,
    num_targets: int,
    gap_limits: tuple[int, int],
    generator: torch.Generator,
) -> FrameSpan:
    """Both ends of a stretch and random frames between them, `num_inputs` in all; targets lie in the stretch.

    The stretch reaches over a number of frames drawn uniformly from `gap_limits` (both included), but over
    no fewer than it must give, and no more than there are. A clip with fewer than `num_inputs` frames is
    mirrored at its ends instead, from a random start, and its targets come from all of it.
    """
    if num_frames < num_inputs:
        start = _integer(0, num_frames - 1, generator)
        inputs = [_mirrored(start + step, num_frames) for step in range(num_inputs)]
        return FrameSpan(inputs, list(range(num_frames)))
    drawn = _integer(*gap_limits, generator)
    gap = min(max(drawn, num_inputs, num_targets - 1), num_frames - 1)
    start = _integer(0, num_frames - 1 - gap, generator)
    between = torch.randperm(max(gap - 1, 0), generator=generator)[: max(num_inputs - 2, 0)].sort().values
    inputs = [start, *(between + start + 1).tolist(), start + gap][:num_inputs]
    return FrameSpan(inputs, list(range(start, start + gap + 1)))


def _mirrored(step: int, num_frames: int) -> int:
    """The frame after so many steps from the first, turning round at both ends."""
    period = max(2 * (num_frames - 1), 1)
    return min(step % period, period - step % period)


def _integer(first: int, last: int, generator: torch.Generator) -> int:
    return int(torch.randint(first, last + 1, (1,), generator=generator))
