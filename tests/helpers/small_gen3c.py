"""GEN3C at a size for tests: all parts as in the released model, with few channels and random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lyra_ns.gen3c.transformer import PaddingForm, gen3c_config

TEXT_CHANNELS = 32
HEIGHT, WIDTH, NUM_FRAMES = 32, 48, 17
"""Size of the videos: three latent frames of 4 x 6."""
LARGEST_NOISE = 5 * 80.0
"""Sampling starts from noise of deviation 80, of which nothing drawn in tests lies beyond five deviations."""
STATE_ROUNDING = 2 * LARGEST_NOISE * torch.finfo(torch.float32).eps
"""How far two runs of one or two steps may differ: 9.5e-5. Their first step falls from noise of 80 to nearly
nothing, so that latents of about one are what is left of numbers up to LARGEST_NOISE. The difference to the
clean latents and its product are each rounded to half a unit in the last place of those (eps / 2 times them).
Where the network's own roundings differ, as those of matrix products do with the processor, the number of
threads and how weights lie in memory (a mapped file's at multiples of 8 bytes, torch's own at 64), these go
the other way in the other run. With three steps the last large one starts at 1.7 and leaves 2e-6."""


def small_config(padding: PaddingForm = "folded") -> dict[str, Any]:
    """The released configuration with two thin blocks."""
    small = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "adaln_lora_dim": 8}
    return gen3c_config(padding=padding) | small | {"text_embed_dim": TEXT_CHANNELS, "max_size": (16, 32, 32)}


def small_transformer(padding: PaddingForm = "folded") -> Any:
    """A network in which every weight counts: diffusers leaves some at zero."""
    from diffusers import CosmosTransformer3DModel

    transformer = CosmosTransformer3DModel(**small_config(padding)).eval()
    return draw_weights(transformer, 0.2)


def small_autoencoder() -> Any:
    """A Cosmos tokenizer with the strides and the statistics of the released one."""
    from diffusers import AutoencoderKLCosmos

    return draw_weights(
        AutoencoderKLCosmos(
            encoder_block_out_channels=(8, 16, 32, 32), decode_block_out_channels=(16, 32, 32, 32)
        ).eval(),
        0.05,
    )


def draw_weights(module: nn.Module, deviation: float) -> nn.Module:
    """The module, its weights drawn anew."""
    generator = torch.Generator().manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=deviation, generator=generator)
    return module


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
