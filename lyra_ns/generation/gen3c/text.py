"""Text embeddings of GEN3C: T5 with the padding set to zero, or zeros where there is no T5.

Source: docs/reference/gen3c.md, "Text"; the same as in diffusers' Cosmos pipelines.
Shape letters: B texts, S tokens, E channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

logger = logging.getLogger(__name__)

NUM_TOKENS = 512
"""Length to which every text is padded or cut."""


@torch.no_grad()
def encode_texts(
    texts: Sequence[str], tokenizer: Any, text_encoder: Any, device: torch.device | str
) -> Float[Tensor, "B S E"]:
    """Embeddings of the texts, in the encoder's precision; a text of over 512 tokens is cut and named."""
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="pt"
    )
    lengths = [len(ids) for ids in tokenizer(list(texts)).input_ids]
    for text, length in zip(texts, lengths, strict=True):
        if length > NUM_TOKENS:
            logger.warning("a text has %d tokens, cut to %d: %.60s...", length, NUM_TOKENS, text)
    mask = tokens.attention_mask.to(device)
    embeddings = text_encoder(tokens.input_ids.to(device), attention_mask=mask.bool()).last_hidden_state
    return embeddings * mask[..., None].to(embeddings.dtype)


def no_text(num_texts: int, num_channels: int, device: torch.device | str) -> Float[Tensor, "B S E"]:
    """What the official code uses with --disable_prompt_encoder: zeros, which attention to text ignores."""
    return torch.zeros(num_texts, NUM_TOKENS, num_channels, device=device)


def default_negative_prompt() -> str:
    """NVIDIA's text of what a video should not show; loads diffusers, where it is kept."""
    from diffusers.pipelines.cosmos.pipeline_cosmos_video2world import DEFAULT_NEGATIVE_PROMPT

    return str(DEFAULT_NEGATIVE_PROMPT)
