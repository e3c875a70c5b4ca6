"""3D buffers as GEN3C's network reads them: warped colours and their masks, each encoded as a video.

Source: docs/reference/gen3c.md, "Conditioning". Shape letters: B samples, L frames, N buffers, H W image,
D = 32 channels for each buffer the network reads, T latent frames, h w latent.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.codec.interface import VideoCodec
from lyra_ns.generation.gen3c.transformer import NUM_BUFFERS


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
