"""What the tests of GEN3C's speed share: one guided evaluation of the small network, and a small pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lyra_ns.gen3c.transformer import PLAIN, Evaluation, GuidedDenoiser
from tests.helpers.small_gen3c import TEXT_CHANNELS, drawn, small_autoencoder, small_transformer

CELLS = (3, 4, 6)
"""Latent frames, rows and columns."""


@torch.no_grad()
def guided(
    transformer: Any, evaluation: Evaluation = PLAIN, noise_label: float = 0.3, size: int = 1
) -> Tensor:
    """A guided prediction for the same inputs every time."""
    text, negative = drawn(size, 5, TEXT_CHANNELS), drawn(size, 5, TEXT_CHANNELS, seed=1)
    buffers, scaled = drawn(size, 64, *CELLS, seed=2), drawn(size, 16, *CELLS, seed=3)
    device = transformer.device
    given = (part.to(device) for part in (text, negative, buffers))
    return GuidedDenoiser(transformer, *given, evaluation=evaluation)(scaled.to(device), noise_label).cpu()


def prepared(*changes: Callable[[Any], Any]) -> Any:
    """The small network after these changes in place."""
    transformer = small_transformer()
    for change in changes:
        change(transformer)
    return transformer


def small_pipeline(**parts: Any) -> Any:
    from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler

    pipeline = Gen3CPipeline(small_transformer(), small_autoencoder(), gen3c_scheduler(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents_of(pipeline: Any, num_steps: int = 3, **arguments: Any) -> Tensor:
    """Latents of one clip, the same noise every time."""
    image, buffers = drawn(1, 3, 32, 48).clamp(-1, 1), drawn(1, 64, *CELLS, seed=2)
    given = {"generator": [torch.Generator().manual_seed(0)], "num_inference_steps": num_steps}
    return pipeline(image, buffers, **given | arguments).cpu()


def relative(found: Tensor, expected: Tensor) -> float:
    """Distance over size."""
    return ((found - expected).norm() / expected.norm()).item()
