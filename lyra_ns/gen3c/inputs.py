"""What goes into GEN3C beside noise: 3D buffers, embedded text, and who looks at prompts and videos.

Buffers are warped colours and their masks, each encoded as a video (docs/reference/gen3c.md, "Conditioning").
Text is embedded by T5 with the padding set to zero, or is zeros where there is no T5 ("Text" there), the same
as in diffusers' Cosmos pipelines. NVIDIA's licence ties the rights to its models to their guardrails
(docs/reference/gen3c.md, "Guardrails"). They come in a package of their own: `pip install cosmos_guardrail`,
then give CosmosSafetyChecker() as `safety_checker`.

Shape letters: B samples or texts, L frames, N buffers, H W image, D = 32 channels for each buffer the network
reads, T latent frames, h w latent, S tokens, E channels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.codec.base import VideoCodec
from lyra_ns.gen3c.transformer import NUM_BUFFERS


def encode_buffers(
    codec: VideoCodec,
    colours: Float[Tensor, "B L N 3 H W"],
    masks: Float[Tensor, "B L N 1 H W"],
    num_buffers: int = NUM_BUFFERS,
) -> Float[Tensor, "B D T h w"]:
    """Buffers in diffusion space, float32: [colours 16 | mask 16] for each, the missing ones all zeros.

    Colours run from -1 to 1 and are -1 in holes; masks are 1 where something is seen, else 0. A buffer that
    is missing is zero as latents, which is not what an encoded empty view is. One buffer of one sample is
    encoded at a time. ValueError if there are more buffers than the network reads, or a mask leaves 0 to 1.
    """
    given = colours.shape[2]
    if not 1 <= given <= num_buffers:
        raise ValueError(
            f"the network reads {num_buffers} 3D buffers, found {given}: choose the ones that see most"
        )
    if not bool(((masks >= 0) & (masks <= 1)).all()):
        raise ValueError(
            "masks of 3D buffers must lie between 0 (hole) and 1 (seen): do not scale them to -1"
        )
    samples = []
    for sample_colours, sample_masks in zip(colours, masks, strict=True):
        latents = []
        for buffer in range(given):
            mask = (sample_masks[:, buffer] * 2 - 1).expand_as(sample_colours[:, buffer])
            latents += [_encoded(codec, sample_colours[:, buffer]), _encoded(codec, mask)]
        latents += [torch.zeros_like(latents[0])] * (2 * (num_buffers - given))
        samples.append(torch.cat(latents))
    return torch.stack(samples)


def _encoded(codec: VideoCodec, frames: Float[Tensor, "L 3 H W"]) -> Float[Tensor, "C T h w"]:
    """Latents of one video in diffusion space."""
    return codec.to_diffusion(codec.encode(frames.transpose(0, 1)[None].contiguous()))[0]


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


class UnsafeContent(ValueError):
    """A safety checker refused a text or a video."""


@runtime_checkable
class SafetyChecker(Protocol):
    """What cosmos_guardrail's CosmosSafetyChecker offers."""

    def check_text_safety(self, prompt: str) -> bool:
        """Whether the text may be used."""
        ...

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
        """The frames (uint8, [L, H, W, 3]), faces made unrecognisable; None if they may not be shown."""
        ...


def check_texts(checker: SafetyChecker, texts: Sequence[str]) -> None:
    """UnsafeContent if the checker refuses one of them, of those that somebody wrote.

    The default negative text lists what a video should not show, which a checker may take for a wish: it is
    not shown to it.
    """
    for text in texts:
        if text == default_negative_prompt():
            continue
        if not checker.check_text_safety(text):
            raise UnsafeContent(f"the safety checker refuses the text {text[:60]!r}: use another one")


def checked_video(checker: SafetyChecker, video: Float[Tensor, "3 L H W"]) -> Float[Tensor, "3 L H W"]:
    """The video as the checker lets it pass, colours -1 to 1 through 8 bits; UnsafeContent if it does not."""
    frames = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()
    passed = checker.check_video_safety(frames)
    if passed is None:
        raise UnsafeContent("the safety checker refuses the video: change the image or the text")
    return torch.from_numpy(passed).to(video).permute(3, 0, 1, 2) / 127.5 - 1
