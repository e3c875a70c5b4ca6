"""Steps whose network evaluation is predicted from earlier ones instead of computed.

What the blocks behind the first one add to the stream changes slowly from step to step. Where the first
block's own contribution has changed little since the last evaluation that was computed, the others are left
out and what they add is carried on: as it was (order 0), or along the line through the last two computed
ones over 0.25 ln sigma (order 1; the first terms of a Taylor series). The first block, and the layers before
and behind the blocks, always run.

**This changes results.** Nothing uses it unless asked to; the plain path stays the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StepCacheSettings:
    """When an evaluation may be left out, and how it is predicted."""

    threshold: float = 0.1
    """Largest relative change (L1) of the first block's contribution since the last computed evaluation."""
    order: Literal[0, 1] = 1
    """0 repeats the last contribution of the other blocks, 1 continues the line through the last two."""
    num_first: int = 3
    """Steps at the start that are always computed."""
    num_last: int = 2
    """Steps at the end that are always computed."""
    most_in_a_row: int = 3
    """Evaluations that may be left out one after the other."""

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.order not in (0, 1) or min(self.num_first, self.most_in_a_row) < 1:
            raise ValueError(
                "a step cache needs a threshold from 0 on, order 0 or 1, at least one computed step at the "
                f"start and one in a row, found {self}"
            )


@dataclass
class _Branch:
    """What is known of one branch of guidance; tensors [B, N, E] in the dtype of the stream."""

    step: int = -1
    num_skipped_in_a_row: int = 0
    first: Tensor | None = None
    others: list[tuple[float, Tensor]] = field(default_factory=list)
    noise_label: float = 0.0
    is_skipped: bool = False
    behind_first: Tensor | None = None


class StepCache:
    """State of one clip's sampling; one instance for each network, shared by all of its blocks.

    Both views of a clip may go through the network in one batch, and are decided on together; several clips
    may not, since one would decide for the others.

    >>> cache = StepCache(transformer, StepCacheSettings())
    >>> cache.start(num_steps)
    >>> with cache.branch("conditional", noise_label):
    ...     transformer(...)
    """

    def __init__(self, transformer: Any, settings: StepCacheSettings | None = None) -> None:
        self.settings = settings or StepCacheSettings()
        self._last_index = len(transformer.transformer_blocks) - 1
        if self._last_index < 1:
            raise ValueError("a step cache needs at least two blocks, found one: leave it out")
        if getattr(transformer, "_parallel_config", None) is not None:
            raise ValueError(
                "processes that share one clip's tokens would decide differently: leave the step cache out, "
                "or put a view of guidance on each process (GuidanceHalves)"
            )
        self._branches: dict[str, _Branch] = {}
        self._active: _Branch | None = None
        self._num_steps = 0
        self.num_computed = 0
        self.num_skipped = 0
        for block in transformer.transformer_blocks:
            if not hasattr(block, "step_cache"):
                raise ValueError("a step cache needs our own blocks: call use_own_blocks first")
            block.step_cache = self

    def start(self, num_steps: int) -> None:
        """Forgets everything: a new clip begins. Must be called before each clip."""
        self.free()
        self._num_steps, self.num_computed, self.num_skipped = num_steps, 0, 0

    def free(self) -> None:
        """Lets go of the tensors, 3 GB at full size, which decoding has better use for; counts stay."""
        self._branches = {}

    @contextmanager
    def branch(self, name: str, noise_label: float) -> Iterator[None]:
        """Around one network evaluation of this branch (conditional or not) at 0.25 ln sigma."""
        if self._num_steps == 0:
            raise ValueError("the step cache does not know how many steps come: call start(num_steps)")
        branch = self._branches.setdefault(name, _Branch())
        branch.step += 1
        branch.noise_label = noise_label
        self._active = branch
        try:
            yield
        finally:
            self._active = None
            branch.behind_first = None

    def through(self, index: int, stream: Float[Tensor, "B N E"], work: Callable[[], Tensor]) -> Tensor:
        """The stream behind block `index`: its work, or what stands for it."""
        branch = self._active
        if branch is None:
            return work()
        if index == 0:
            result = work()
            self._decide(branch, stream, result)
            return result
        if branch.is_skipped:
            return stream + _predicted(branch, self.settings.order) if index == self._last_index else stream
        result = work()
        if index == self._last_index:
            assert branch.behind_first is not None
            branch.others = [*branch.others, (branch.noise_label, result - branch.behind_first)]
            branch.others = branch.others[-(self.settings.order + 1) :]
        return result

    def _decide(self, branch: _Branch, stream: Tensor, result: Tensor) -> None:
        """Whether the other blocks are left out, from what the first one has added."""
        added = result - stream
        settings = self.settings
        may_skip = (
            branch.first is not None
            and settings.num_first <= branch.step < self._num_steps - settings.num_last
            and len(branch.others) > settings.order
            and branch.num_skipped_in_a_row < settings.most_in_a_row
        )
        branch.is_skipped = may_skip and _change(added, branch.first) <= settings.threshold
        if branch.is_skipped:
            branch.num_skipped_in_a_row += 1
            self.num_skipped += 1
            return
        branch.first, branch.behind_first, branch.num_skipped_in_a_row = added, result, 0
        self.num_computed += 1


def _change(added: Tensor, before: Tensor | None) -> float:
    """Mean absolute change over mean absolute value; waits for the device once per evaluation."""
    assert before is not None
    difference = (added - before).abs().mean(dtype=torch.float32)
    return (difference / before.abs().mean(dtype=torch.float32)).item()


def _predicted(branch: _Branch, order: int) -> Tensor:
    """What the blocks behind the first one add at the branch's noise label."""
    label, last = branch.others[-1]
    if order == 0:
        return last
    label_before, before = branch.others[-2]
    return torch.lerp(before, last, (branch.noise_label - label_before) / (label - label_before))


def remove_step_cache(transformer: Any) -> None:
    """Computes every evaluation again."""
    for block in transformer.transformer_blocks:
        if hasattr(block, "step_cache"):
            block.step_cache = None
