"""What training makes small: errors of the decoded clips, and a little of how much the latents say.

Shape letters: B clips, L frames, C T h w latents, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FIRST_FRAME_WEIGHT = 3.0
"""Weight of the first frame among the frames: it has latents of its own and others build on it."""
SQUARED_WEIGHT = 5.0
"""At 27 dB the squared error then weighs about as much as the absolute one; quality is judged by PSNR."""
EDGE_WEIGHT = 0.25
"""Weight of the error of differences between neighbouring pixels, which keeps edges sharp."""
DIVERGENCE_WEIGHT = 5e-5
"""Weight of the divergence from unit normal latents: it holds their scale and costs hardly any quality."""


@dataclass(frozen=True)
class Objective:
    """One batch judged."""

    loss: Float[Tensor, ""]
    """What is differentiated."""
    squared_error: Float[Tensor, ""]
    """Of all frames, colours from 0 to 1."""
    first_squared_error: Float[Tensor, ""]
    """Of first frames."""
    divergence: Float[Tensor, ""]
    """Kullback-Leibler divergence per number of the latents."""


def draw_latents(
    mean: Float[Tensor, "B C T h w"],
    log_variance: Float[Tensor, "B C T h w"],
    noise: Float[Tensor, "B C T h w"],
) -> Float[Tensor, "B C T h w"]:
    """Latents as the decoder sees them in training."""
    return mean + noise * (0.5 * log_variance).exp()


def judge(
    decoded: Float[Tensor, "B 3 L H W"],
    video: Float[Tensor, "B 3 L H W"],
    mean: Float[Tensor, "B C T h w"],
    log_variance: Float[Tensor, "B C T h w"],
) -> Objective:
    """The objective of one batch; clips whose numbers exceed colours (ray maps) count by relative error."""
    size = video.square().mean((1, 2, 3, 4), keepdim=True).sqrt().clamp(min=1.0)
    error = (decoded - video) / size
    squared = error.square().mean((1, 3, 4))
    per_frame = error.abs().mean((1, 3, 4)) + SQUARED_WEIGHT * squared + EDGE_WEIGHT * _edges(error)
    weights = torch.ones(video.shape[2], device=video.device)
    weights[0] = FIRST_FRAME_WEIGHT
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return Objective(
        loss=(per_frame * (weights / weights.sum())).sum(1).mean() + DIVERGENCE_WEIGHT * divergence,
        squared_error=squared.detach().mean() / 4,
        first_squared_error=squared.detach()[:, 0].mean() / 4,
        divergence=divergence.detach(),
    )


def _edges(error: Float[Tensor, "B 3 L H W"]) -> Float[Tensor, "B L"]:
    across = (error[..., 1:] - error[..., :-1]).abs().mean((1, 3, 4))
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean((1, 3, 4))
    return across + down
