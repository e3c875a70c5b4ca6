"""Memory policies: where the parts of a GEN3C pipeline live, and how much memory each stage needs.

A policy also says how the network computes. All use our own blocks and keep positions; they differ in what is
on the device when. Their latents are equal but for rounding; only 8-bit weights change them.

- `fast`: everything on the device.
- `balanced`: the network and the tokenizer on the device, T5 layer by layer from main memory.
- `low`: the blocks of the network from main memory, too, one ahead of the one that computes, and the
  perceptrons over parts of the tokens.

The tokenizer (0.2 GB) always stays on the device: its activations are what is large. Needs are arithmetic,
before anything is moved: weights are counted; activations are products of sizes with the numbers of tensors
that are alive at once (constants below), which tests on a GPU hold against measured peaks.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lyra_ns.device import MemoryName, numbered
from lyra_ns.gen3c.layers import WHOLE, RopeType, keep_positions, use_eight_bits, use_own_blocks
from lyra_ns.memory import DoesNotFit, available_bytes, gib

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


logger = logging.getLogger(__name__)

PARTS_OF_TOKENS = 8
"""Parts in which the perceptron takes the tokens under `low`."""


@dataclass(frozen=True)
class MemorySetup:
    """How a pipeline was set up; what `apply_memory_policy` was given."""

    policy: MemoryName
    """Which of the policies."""
    device: torch.device
    """Where it computes."""
    eight_bits: bool = False
    """Whether the large matrices are stored in 8 bits."""
    rope_dtype: RopeType = "fp32"
    """Precision of the rotary positions."""


def apply_memory_policy(
    pipeline: Any,
    policy: MemoryName,
    device: torch.device | str,
    *,
    eight_bits: bool = False,
    size: ClipSize | None = None,
    rope_dtype: RopeType = "fp32",
) -> None:
    """Moves a Gen3CPipeline to `device` and sets it up, in place; bfloat16 on CUDA, its own dtype elsewhere.

    `eight_bits` stores the large matrices in 8 bits, which changes results a little and halves what `low`
    fetches. `size` is that of the clips to come (default: 121 x 704 x 1280). Set up once: a second call with
    the same options only checks the size. ValueError for others; DoesNotFit, before anything is moved, if the
    latents of such clips cannot be made; a warning if only their decoding does not fit.
    """
    if policy not in POLICIES:
        raise ValueError(f"the memory policy must be one of {', '.join(POLICIES)}, found {policy!r}")
    device = torch.device(device)
    setup, size = MemorySetup(policy, device, eight_bits, rope_dtype), size or ClipSize()
    if pipeline.memory_setup is not None:
        _check_unchanged(pipeline.memory_setup, setup)
        check_memory(pipeline, size)
        return
    _check_fit(pipeline, setup, size)
    dtype = torch.bfloat16 if device.type == "cuda" else None
    transformer = pipeline.transformer
    use_own_blocks(transformer, device.type == "cuda", PARTS_OF_TOKENS if policy == "low" else WHOLE)
    if eight_bits:
        use_eight_bits(transformer, "store")
    _convert(transformer, dtype)
    keep_positions(transformer, rope_dtype)
    pipeline.vae.to(device, dtype)
    if policy == "low":
        _fetch_while_computing(transformer, device, "block_level")
    else:
        transformer.to(device)
    if pipeline.text_encoder is not None:
        place_text_encoder(pipeline.text_encoder.to(dtype=dtype), policy, device)
    pipeline.memory_setup = setup


def check_memory(pipeline: Any, size: ClipSize) -> None:
    """DoesNotFit if the latents of such clips cannot be made; a warning if only their decoding does not fit.

    What is free now counts, and the policy that the pipeline was set up with; without one nothing is checked.
    """
    if pipeline.memory_setup is not None:
        _check_fit(pipeline, pipeline.memory_setup, size)


def place_text_encoder(text_encoder: nn.Module, policy: MemoryName, device: torch.device | str) -> None:
    """Makes T5 ready to encode on `device`, in place, its weights in main memory or on the device already.

    Under `fast` all of it goes there, if there is room beside what is there; else it stays in main memory,
    and its layers go there one by one.
    """
    device = torch.device(device)
    if policy == "fast" and _has_room(text_encoder, device):
        text_encoder.to(device)
    else:
        _fetch_while_computing(text_encoder, device, "leaf_level")


def _has_room(text_encoder: nn.Module, device: torch.device) -> bool:
    free = available_bytes(device) if device.type == "cuda" else None
    if free is None:
        return True
    weights = list(text_encoder.parameters())
    missing = sum(each.numel() * each.element_size() for each in weights if each.device.type != device.type)
    return missing + TEXT_BYTES <= free


def _check_unchanged(old: MemorySetup, new: MemorySetup) -> None:
    """ValueError if a pipeline that is set up in one way should become another."""
    before, after = vars(old), vars(new)
    changes = [
        f"{name} {before[name]}, which cannot become {after[name]}"
        for name in before
        if before[name] != after[name]
        and not (name == "device" and numbered(old.device) == numbered(new.device))
    ]
    if changes:
        raise ValueError(f"the pipeline is set up with {', and '.join(changes)}: load it again")


def _fetch_while_computing(module: nn.Module, device: torch.device, level: str) -> None:
    """Weights stay in main memory (pinned, for CUDA); what comes next is fetched while one part computes."""
    from diffusers.hooks.group_offloading import apply_group_offloading

    apply_group_offloading(
        module,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=level,
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )


def _convert(transformer: Any, dtype: torch.dtype | None) -> None:
    """Everything but the learnable positions, which diffusers keeps in float32, too."""
    if dtype is None:
        return
    for name, child in transformer.named_children():
        if name != "learnable_pos_embed":
            child.to(dtype)


def _check_fit(pipeline: Any, setup: MemorySetup, size: ClipSize) -> None:
    """DoesNotFit with numbers and the next policy, if there is one."""
    policy, device = setup.policy, setup.device
    free = available_bytes(device)
    if free is None or device.type != "cuda":
        return
    free += _bytes_on(pipeline, device)
    needs = memory_needs(pipeline, policy, size, eight_bits=setup.eight_bits)
    if needs.of_latents > free:
        raise DoesNotFit(
            f"{_sentence(policy, size, needs)}, and {gib(free)} of {device} are free: "
            f"{_advice(policy, setup.eight_bits)}"
        )
    if needs.decoding > free:
        logger.warning(
            "%s, and %s of %s are free: latents can be made, but videos of this size not be decoded there",
            _sentence(policy, size, needs),
            gib(free),
            device,
        )


def _sentence(policy: MemoryName, size: ClipSize, needs: MemoryNeeds) -> str:
    what = f"{size.num_frames} frames of {size.height}x{size.width}"
    if size.num_clips > 1:
        what = f"{size.num_clips} clips at once of {what}"
    return f"the memory policy {policy} needs for {what} about: {needs}"


def _advice(policy: MemoryName, eight_bits: bool) -> str:
    if policy != POLICIES[-1]:
        return f"take the policy {POLICIES[POLICIES.index(policy) + 1]}"
    smaller = "make smaller or shorter videos"
    return smaller if eight_bits else f"store the weights in 8 bits (eight_bits=True) or {smaller}"


def _bytes_on(pipeline: Any, device: torch.device) -> int:
    """Bytes of the pipeline's weights that are on the device already."""
    parts = [pipeline.transformer, pipeline.vae, pipeline.text_encoder]
    return sum(
        weight.numel() * weight.element_size()
        for part in parts
        if part is not None
        for weight in part.parameters()
        if weight.device.type == device.type
    )
