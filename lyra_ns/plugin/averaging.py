"""A moving average of the decoder's weights, which is what evaluation and export see.

The official training has none (docs/reference/lyra_training.md, "Optimiser"); the average of the last steps
is steadier than the last.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from lyra_ns.decoder import LatentGaussianDecoder

AVERAGED = "averaged."
"""What stands before the averaged weights in the model's state dict."""
LEARNED = "decoder."
"""What stands before those that are optimised."""


def averaged_copy(decoder: LatentGaussianDecoder, decay: float) -> LatentGaussianDecoder:
    """A copy of `decoder` in float32 that nothing optimises; ValueError for a decay outside (0, 1)."""
    if not 0.0 < decay < 1.0:
        raise ValueError(
            f"ema_decay must lie between 0 (off) and 1, found {decay}: 0.999 averages the last thousand steps"
        )
    return deepcopy(decoder).float().requires_grad_(False)


def decay_at(step: int, decay: float) -> float:
    """Share of the old average after step `step` (the first is 0), less while there are few steps."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: LatentGaussianDecoder, decoder: LatentGaussianDecoder, decay: float) -> None:
    """Move `average` towards the weights of `decoder`, keeping the share `decay` of what it was."""
    old: list[Tensor] = list(average.parameters())
    new = [
        parameter.detach().to(like.dtype) for parameter, like in zip(decoder.parameters(), old, strict=True)
    ]
    torch._foreach_lerp_(old, new, 1.0 - decay)
    for kept, current in zip(average.buffers(), decoder.buffers(), strict=True):
        kept.copy_(current)


def fitting_state(state: dict[str, Tensor], averages: bool) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint for a model that does or does not average, and a sentence if they changed.

    Without an average in it, the checkpoint's weights start one; one that nothing reads is left out.
    """
    has_average = any(name.startswith(AVERAGED) for name in state)
    if has_average == averages:
        return state, ""
    if has_average:
        learned = {name: value for name, value in state.items() if not name.startswith(AVERAGED)}
        return (
            learned,
            "the checkpoint's averaged weights are not used: give --pipeline.model.ema-decay for them",
        )
    started = {
        AVERAGED + name.removeprefix(LEARNED): value.float()
        for name, value in state.items()
        if name.startswith(LEARNED)
    }
    return state | started, "the checkpoint holds no averaged weights: the average starts from its weights"
