"""GEN3C's sampler: Euler steps of EDM that pin the known first frames.

Source: docs/reference/gen3c.md, "Sampler". A pure function of a denoiser, without a model, a scheduler or
randomness. Deviations from the official code: the state keeps its own precision between steps (official:
bfloat16), and noise comes from the caller.

Shape letters: B samples, C latent channels, T latent frames, K of them known, h w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.codec.base import SIGMA_DATA

AUGMENT_SIGMA = 0.001
"""Noise on the known frames that the network sees; from this level down they are free."""

Denoiser = Callable[[Tensor, float], Tensor]
"""(latents scaled to variance one, 0.25 ln sigma) to what the network predicts, both [B, C, T, h, w]."""


def sample(
    denoiser: Denoiser,
    sigmas: Sequence[float],
    initial: Float[Tensor, "B C T h w"],
    known: Float[Tensor, "B C K h w"],
    known_noise: Float[Tensor, "B C K h w"],
    augment_sigma: float = AUGMENT_SIGMA,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "B C T h w"]:
    """Latents in diffusion space after one Euler step between every two neighbours of `sigmas`.

    `sigmas` fall and may end in 0. `initial` is noise of deviation sqrt(sigmas[0]^2 + 1), `known` the clean
    latents of the first K frames in diffusion space, `known_noise` standard normal, the same at every step.
    As in the official code, the known frames of the result are close to `known` and not equal: they go free
    where sigma <= `augment_sigma`. `on_step(number of the step from 0, latents after it)` may raise to stop.
    """
    _check_sigmas(sigmas)
    latents, shown = initial, known + augment_sigma * known_noise
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        is_pinned = augment_sigma < sigma
        total = sigma**2 + SIGMA_DATA**2
        if is_pinned:
            latents = _with_first(latents, shown * sqrt(total / (augment_sigma**2 + SIGMA_DATA**2)))
        predicted = denoiser(latents / sqrt(total), 0.25 * log(sigma))
        clean = latents * (SIGMA_DATA**2 / total) + predicted * (sigma * SIGMA_DATA / sqrt(total))
        if is_pinned:
            clean = _with_first(clean, known)
        latents = latents + (latents - clean) * ((following - sigma) / sigma)
        if on_step is not None:
            on_step(step, latents)
    return latents


def _with_first(latents: Tensor, first: Tensor) -> Tensor:
    """The same latents with other first frames."""
    return torch.cat([first, latents[:, :, first.shape[2] :]], dim=2)


def _check_sigmas(sigmas: Sequence[float]) -> None:
    is_falling = all(following < sigma for sigma, following in pairwise(sigmas))
    if len(sigmas) < 2 or not is_falling or sigmas[-1] < 0:
        raise ValueError(
            f"sigmas must be at least two falling noise levels, none below 0, found {list(sigmas)[:4]}...: "
            "take those of the scheduler after set_timesteps"
        )
