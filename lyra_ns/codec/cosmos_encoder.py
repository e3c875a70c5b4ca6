"""The Cosmos encoder as a short program over the weights of diffusers' AutoencoderKLCosmos.

Same function, other execution: channels last from the first layer to the last, two-dimensional convolutions,
no padded copies, norms with SiLU in one pass, attention by matrix products. `cosmos_layers` holds the
operations, `cosmos_blocks` reads the weights; tests compare the whole with diffusers' own `encode`.

A clip without motion is encoded from its first frame alone: everything is causal and repeats the first frame
at the edge, so all its latent frames are equal. Directions of a camera that does not turn are such a clip.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.codec.cosmos_blocks import blocks_of, linear_of, norm_of, pair_of
from lyra_ns.codec.cosmos_layers import Linear, convolve, normalise
from lyra_ns.device_memory import free_bytes

LIVE_ACTIVATIONS = 6
"""Activations of the largest size that exist at one time, a convolution's workspace included."""
ATTENTION_BYTES = 3 * 2**30 // 2
"""Memory for the scores of the spatial attention and what lies around them."""
MAX_NUMBERS = 2**30
"""Numbers of one activation, at most: convolutions index with 32 bits."""
CPU_BYTES = 2**32
"""Memory that clips encoded together may take where there is no GPU to ask."""


class CosmosEncoder:
    """Encodes clips with the weights of one autoencoder, in the type and on the device that these have then.

    Made anew after the autoencoder is moved: it holds rearranged copies of weights. UnsupportedEncoder when
    the autoencoder has several heads or groups. With `plain` only torch operations run, for comparison.
    """

    def __init__(self, autoencoder: Any, plain: bool = False) -> None:
        encoder, config = autoencoder.encoder, autoencoder.config
        self._plain = plain
        self._temporal_ratio = config.temporal_compression_ratio
        self._patch_size = encoder.patch_embed.patch_size
        self._patch_matrix = _patch_matrix(encoder.patch_embed, config.in_channels).to(
            encoder.norm_out.norm.weight
        )
        self._stem, self._head = pair_of(encoder.conv_in), pair_of(encoder.conv_out)
        self._blocks, self._norm = blocks_of(encoder), norm_of(encoder.norm_out)
        quant = linear_of(autoencoder.quant_conv)
        self._quant = Linear(quant.weight.float(), quant.bias.float())
        self._widest = max(*config.encoder_block_out_channels[:2], len(self._patch_matrix))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return self._patch_matrix.dtype

    def clips_at_once(self, num_frames: int, height: int, width: int) -> int:
        """Clips of this size that one pass may hold, from the memory that is free now; at least 1."""
        size = self._patch_size
        pixels = ((num_frames - 1) // size + 1) * (height // size) * (width // size)
        numbers = pixels * self._widest
        clip_bytes = LIVE_ACTIVATIONS * numbers * self.dtype.itemsize
        return max(min((self._free_bytes() - ATTENTION_BYTES) // clip_bytes, MAX_NUMBERS // numbers), 1)

    @torch.no_grad()
    def __call__(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        """Raw latents, float32; clips of which all frames are equal cost one frame."""
        num_frames = video.shape[2]
        still = [is_still(clip) for clip in video]
        latents: dict[int, Tensor] = {}
        for kind, frames in ((False, num_frames), (True, 1)):
            chosen = [index for index, flag in enumerate(still) if flag == kind]
            size = self.clips_at_once(frames, *video.shape[3:])
            for group in (chosen[start : start + size] for start in range(0, len(chosen), size)):
                clips = torch.stack([video[index, :, :frames] for index in group])
                latents.update(zip(group, self._encode(clips), strict=True))
        latent_frames = (num_frames - 1) // self._temporal_ratio + 1
        return torch.stack([latents[index].expand(-1, latent_frames, -1, -1) for index in range(len(video))])

    def _encode(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        # Triton launches on the current device, whichever one its tensors are on.
        with torch.cuda.device_of(video):
            x = convolve(self._patches(video) @ self._patch_matrix, self._stem, plain=self._plain)
            for block in self._blocks:
                x = block(x, self._plain)
            x = convolve(normalise(x, self._norm, True, self._plain), self._head, plain=self._plain)
        return self._quant(x.float()).permute(0, 4, 1, 2, 3)

    def _patches(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N F h w D"]:
        """Patches as rows (colour, frame, row, column); the first frame is repeated to fill its patch."""
        num_clips, colours, num_frames, height, width = video.shape
        size = self._patch_size
        later = (num_frames - 1) // size
        grid = (num_clips, later + 1, height // size, width // size)
        patches = torch.empty(*grid, colours, size, size, size, dtype=self.dtype, device=video.device)
        by_colour = patches.permute(0, 4, 1, 5, 2, 6, 3, 7)  # clip, colour, frame, in, row, in, column, in
        cells = video.unflatten(4, (-1, size)).unflatten(3, (-1, size))
        by_colour[:, :, 0] = cells[:, :, :1]
        by_colour[:, :, 1:] = cells[:, :, 1:].unflatten(2, (later, size))
        return patches.flatten(4)

    def _free_bytes(self) -> int:
        free = free_bytes(self._patch_matrix.device)
        return CPU_BYTES if free is None else free


def is_still(clip: Float[Tensor, "3 L H W"]) -> bool:
    """Whether a clip has several frames that all equal the first; waits for a GPU."""
    return clip.shape[1] > 1 and torch.equal(clip[:, 1:], clip[:, :1].expand_as(clip[:, 1:]))


def _patch_matrix(patch_embed: Any, colours: int) -> Float[Tensor, "D D"]:
    """What the patching does to one patch, as a matrix: the images of all unit patches, float32.

    Haar's numbers are powers of two up to rounding, so that the matrix is exact in bfloat16.
    """
    size = patch_embed.patch_size
    module = type(patch_embed)(size, patch_embed.patch_method)
    num_numbers = colours * size**3
    video = torch.zeros(num_numbers, colours, 1 + size, size, size)
    video[:, :, 1:] = torch.eye(num_numbers).view(num_numbers, colours, size, size, size)
    return module(video)[:, :, 1, 0, 0]
