"""Frames of 8 bits and the latents that stand for them.

Shape letters: L frames, C latent channels, T latent frames, H W image, h w latent.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.codec.interface import VideoCodec


def eight_bits(colours: Float[Tensor, "*batch"]) -> UInt8[Tensor, "*batch"]:
    """Colours from 0 to 1 as numbers from 0 to 255, rounded; what lies outside is clamped."""
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def latents_of_frames(
    codec: VideoCodec, video: UInt8[Tensor, "L 3 H W"], device: torch.device | str
) -> Float[Tensor, "C T h w"]:
    """Latents in diffusion space of one clip, encoded on `device` (where the codec must be); on the CPU."""
    colours = video.to(device).transpose(0, 1)[None].float() / 127.5 - 1
    return codec.to_diffusion(codec.encode(colours))[0].float().cpu()


@torch.no_grad()
def frames_of_latents(
    codec: VideoCodec, z: Float[Tensor, "C T h w"], device: torch.device | str
) -> UInt8[Tensor, "L 3 H W"]:
    """The frames that latents in diffusion space decode to, rounded to 8 bits; on the CPU."""
    video = codec.decode(codec.from_diffusion(z.to(device).float()[None]))[0]
    return eight_bits((video.transpose(0, 1) + 1) / 2).cpu()
