"""Memory policies: where the parts of a GEN3C pipeline live, and how its network computes.

All policies use our own blocks and keep positions; they differ in what is on the device when. Their latents
are equal but for rounding; only 8-bit weights change them.

- `fast`: everything on the device.
- `balanced`: the network and the tokenizer on the device, T5 layer by layer from main memory.
- `low`: the blocks of the network from main memory, too, one ahead of the one that computes, and the
  perceptrons over parts of the tokens.

The tokenizer (0.2 GB) always stays on the device: its activations are what is large.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from lyra_ns.generation.gen3c.blocks import WHOLE, use_own_blocks
from lyra_ns.generation.gen3c.low_precision import use_eight_bits
from lyra_ns.generation.gen3c.memory_needs import POLICIES, ClipSize, MemoryNeeds, MemoryPolicy, memory_needs
from lyra_ns.generation.gen3c.position_embedding import RopeType, keep_positions
from lyra_ns.memory_estimate import gib
from lyra_ns.memory_limits import DoesNotFit, available_bytes

logger = logging.getLogger(__name__)

PARTS_OF_TOKENS = 8
"""Parts in which the perceptron takes the tokens under `low`."""


def apply_memory_policy(
    pipeline: Any,
    policy: MemoryPolicy,
    device: torch.device | str,
    *,
    eight_bits: bool = False,
    size: ClipSize | None = None,
    rope_dtype: RopeType = "fp32",
) -> None:
    """Moves a Gen3CPipeline to `device` and sets it up, in place; bfloat16 on CUDA, its own dtype elsewhere.

    `eight_bits` stores the large matrices in 8 bits, which changes results a little and halves what `low`
    fetches. `size` is that of the clips to come (default: 121 x 704 x 1280). Set up once: a second call with
    the same policy does nothing. ValueError for another one; DoesNotFit, before anything is moved, if the
    latents of such clips cannot be made; a warning if only their decoding does not fit.
    """
    if policy not in POLICIES:
        raise ValueError(f"the memory policy must be one of {', '.join(POLICIES)}, found {policy!r}")
    if pipeline.memory_policy == policy:
        return
    if pipeline.memory_policy is not None:
        raise ValueError(
            f"the pipeline is set up for {pipeline.memory_policy}, which cannot become {policy}: load it "
            "again"
        )
    device = torch.device(device)
    _check_fit(pipeline, policy, device, size or ClipSize(), eight_bits)
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
    _place_text_encoder(pipeline.text_encoder, policy, device, dtype)
    pipeline.memory_policy = policy


def _place_text_encoder(
    text_encoder: nn.Module | None, policy: MemoryPolicy, device: torch.device, dtype: torch.dtype | None
) -> None:
    if text_encoder is None:
        return
    text_encoder.to(dtype=dtype)
    if policy == "fast":
        text_encoder.to(device)
    else:
        _fetch_while_computing(text_encoder, device, "leaf_level")


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


def _check_fit(
    pipeline: Any, policy: MemoryPolicy, device: torch.device, size: ClipSize, eight_bits: bool
) -> None:
    """DoesNotFit with numbers and the next policy, if there is one."""
    free = available_bytes(device)
    if free is None or device.type != "cuda":
        return
    free += _bytes_on(pipeline, device)
    needs = memory_needs(pipeline, policy, size, eight_bits=eight_bits)
    if needs.of_latents > free:
        raise DoesNotFit(
            f"{_sentence(policy, size, needs)}, and {gib(free)} of {device} are free: "
            f"{_advice(policy, eight_bits)}"
        )
    if needs.decoding > free:
        logger.warning(
            "%s, and %s of %s are free: latents can be made, but videos of this size not be decoded there",
            _sentence(policy, size, needs),
            gib(free),
            device,
        )


def _sentence(policy: MemoryPolicy, size: ClipSize, needs: MemoryNeeds) -> str:
    what = f"{size.num_frames} frames of {size.height}x{size.width}"
    return f"the memory policy {policy} needs for {what} about: {needs}"


def _advice(policy: MemoryPolicy, eight_bits: bool) -> str:
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
