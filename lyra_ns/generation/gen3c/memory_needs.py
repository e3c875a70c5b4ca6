"""How much memory a pipeline of GEN3C needs in each stage, by arithmetic, before anything is moved.

Weights are counted; activations are products of sizes with the numbers of tensors that are alive at once
(constants below), which tests on a GPU hold against measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lyra_ns.device import MemoryName
from lyra_ns.memory_estimate import gib

POLICIES: tuple[MemoryName, ...] = ("fast", "balanced", "low")
"""From the most memory to the least."""

STREAMS = {"fast": 13, "balanced": 13, "low": 10}
"""Tensors of tokens x channels alive inside a block; the perceptron takes parts of the tokens in `low`."""
BLOCKS_AT_ONCE = 2
"""Blocks whose weights are on the device in `low`: one that computes, one that arrives."""
ENCODE_BYTES_PER_PIXEL = {2: 56 + 12, 4: 2 * 275}
"""Activations while one video is encoded, with the float32 copy of it, by the bytes of a number."""
BUFFER_BYTES_PER_PIXEL = 16
"""Colours and mask of a 3D buffer in float32; those of all buffers are there while one is encoded."""
DECODE_BYTES_PER_PIXEL = {2: 275, 4: 2 * 275}
"""Activations while one video is decoded by diffusers."""
TEXT_BYTES = 2**30
"""Activations of T5 for one text."""
ENCODE_BYTES = 3 * 2**29
"""What the encoder needs at any size."""


@dataclass(frozen=True)
class ClipSize:
    """Sizes of the clips that are made at once."""

    num_frames: int = 121
    """Frames of a clip, 8 k + 1."""
    height: int = 704
    """Rows of pixels."""
    width: int = 1280
    """Columns of pixels."""
    num_clips: int = 1
    """Clips that are sampled together."""
    num_buffers: int = 1
    """3D buffers of a clip, each of them a warped video; they are encoded clip by clip."""

    @property
    def num_pixels(self) -> int:
        """Pixels of one clip."""
        return self.num_frames * self.height * self.width


SMALLEST = ClipSize(num_frames=9, height=16, width=16)
"""A clip that needs hardly more than the weights."""


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes on the device in each stage, the weights that are there included."""

    text: int
    """A text goes through T5; 0 without T5."""
    encoding: int
    """One video of a 3D buffer becomes latents."""
    denoising: int
    """One evaluation of the network."""
    decoding: int
    """Latents of one clip become a video."""

    @property
    def of_latents(self) -> int:
        """What it takes to make latents; decoding is not part of that."""
        return max(self.text, self.encoding, self.denoising)

    def __str__(self) -> str:
        return ", ".join(f"{name} {gib(value)}" for name, value in vars(self).items() if value)


def memory_needs(
    pipeline: Any, policy: MemoryName, size: ClipSize, bytes_per_number: int = 2, eight_bits: bool = False
) -> MemoryNeeds:
    """What a Gen3CPipeline needs under a policy, its weights stored in numbers of so many bytes."""
    transformer, blocks = pipeline.transformer, pipeline.transformer.transformer_blocks
    block = num_weights(blocks[0]) * (1 if eight_bits else bytes_per_number)
    around = (num_weights(transformer) - num_weights(blocks)) * bytes_per_number
    network = around + block * (min(BLOCKS_AT_ONCE, len(blocks)) if policy == "low" else len(blocks))
    autoencoder = num_weights(pipeline.vae) * bytes_per_number
    text = 0 if pipeline.text_encoder is None else num_weights(pipeline.text_encoder) * bytes_per_number
    always = autoencoder + (around if policy == "low" else network) + (text if policy == "fast" else 0)
    stream = size.num_clips * num_tokens(pipeline, size) * _channels(transformer) * bytes_per_number
    fetched = 0 if policy == "fast" or not text else _largest_leaf(pipeline.text_encoder)
    encoding = ENCODE_BYTES_PER_PIXEL[bytes_per_number] + size.num_buffers * BUFFER_BYTES_PER_PIXEL
    return MemoryNeeds(
        text=always + TEXT_BYTES + fetched if text else 0,
        encoding=always + ENCODE_BYTES + size.num_pixels * encoding,
        denoising=always + (network - around if policy == "low" else 0) + STREAMS[policy] * stream,
        decoding=always + size.num_pixels * DECODE_BYTES_PER_PIXEL[bytes_per_number],
    )


def num_tokens(pipeline: Any, size: ClipSize) -> int:
    """Tokens of one clip."""
    strides, patch = pipeline.vae.config, pipeline.transformer.config.patch_size
    frames = (size.num_frames - 1) // strides.temporal_compression_ratio + 1
    rows, columns = (side // strides.spatial_compression_ratio for side in (size.height, size.width))
    return (frames // patch[0]) * (rows // patch[1]) * (columns // patch[2])


def num_weights(module: nn.Module) -> int:
    """Numbers in parameters."""
    return sum(weight.numel() for weight in module.parameters())


def _channels(transformer: Any) -> int:
    return transformer.config.num_attention_heads * transformer.config.attention_head_dim


def _largest_leaf(module: nn.Module) -> int:
    """Bytes of the largest parameter twice: one layer computes while the next arrives."""
    return 2 * max(weight.numel() * weight.element_size() for weight in module.parameters())
