"""What the blocks keep for the backward pass and what they compute once more there.

A Mamba block or a perceptron is cheap to run again and expensive to keep; attention is the other way round:
its cost grows with the square of the number of tokens, its output and log-sum-exp do not. So the middle way,
"scans", keeps attention and recomputes everything else; the official training recomputes both attention
layers while most of the card stays empty (docs/reference/performance.md, "Training step"). Where there is
room, "states" keeps what the state scans give, too, which only our own kernels can: with other forms of the
scan it is the same as "scans".

Shape letters: B scenes, N tokens of all views, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from lyra_ns.decoder_blocks import TransformerBlock
from lyra_ns.decoder_config import DecoderConfig, block_kinds
from lyra_ns.ssd_bidirectional import runs_scan_kernels
from lyra_ns.ssd_types import ScanForm, ScanName

RecomputePolicy = Literal["none", "states", "scans", "all"]
"""What is computed again in the backward pass, from the fastest to the smallest."""

SHARE_FOR_BLOCKS = 0.5
"""Part of a card's memory that the blocks may fill; Gaussians, renders and LPIPS need the rest."""
STREAM_BYTES = 4
"""Bytes of a number in the stream between the blocks, which is float32."""
TORCH_SCAN_COPIES = 6
"""Float32 copies of the projected and inner channels that a scan written in torch keeps in each direction."""


def run_block(
    block: nn.Module, tokens: Float[Tensor, "B N E"], policy: RecomputePolicy
) -> Float[Tensor, "B N E"]:
    """The tokens after `block`; equal values and gradients for every policy."""
    if policy == "none" or not torch.is_grad_enabled():
        return block(tokens)
    if policy in ("states", "scans") and isinstance(block, TransformerBlock):
        tokens = tokens + block.attn(block.norm1(tokens))
        return _recomputed(_Perceived(block), tokens)
    if policy == "states" and runs_scan_kernels(tokens.device):
        return _recomputed(block, tokens, keeping_states)
    return _recomputed(block, tokens)


class _Perceived:
    """The second half of an attention block."""

    def __init__(self, block: TransformerBlock) -> None:
        self._block = block

    def __call__(self, tokens: Tensor) -> Tensor:
        return tokens + self._block.mlp(self._block.norm2(tokens))


def _recomputed(
    function: nn.Module | _Perceived, tokens: Tensor, contexts: Callable[[], Any] = noop_context_fn
) -> Tensor:
    # No random numbers inside: saving their state would only wait for the device.
    return checkpoint(function, tokens, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def keeping_states() -> tuple[Any, Any]:
    """Contexts of a checkpoint that computes everything again but our state scan."""
    from lyra_ns.kernels import ssd_training  # noqa: F401  registers the operator

    return create_selective_checkpoint_contexts([torch.ops.lyra_ns.scan_states.default])


def choose_policy(
    config: DecoderConfig, num_tokens: int, device: torch.device, scan: ScanName
) -> RecomputePolicy:
    """The policy of `config.recompute`; for auto the fastest whose kept bytes fit the card.

    `num_tokens` counts all scenes of the batch, `scan` is the form of the scan on `device`. The size of the
    card decides and not what is free on it, so that a run repeats itself; main memory is never measured.
    """
    if config.recompute != "auto":
        return config.recompute
    if device.type != "cuda":
        return "none"
    memory_bytes = torch.cuda.get_device_properties(device).total_memory
    return policy_for_memory(config, num_tokens, config.scan_form(scan, device), memory_bytes)


def policy_for_memory(
    config: DecoderConfig, num_tokens: int, scan: ScanForm, memory_bytes: int
) -> RecomputePolicy:
    """The fastest policy under which the blocks fill at most their share of `memory_bytes`."""
    policies: tuple[RecomputePolicy, ...] = (
        ("none", "states", "scans") if scan == "fused" else ("none", "scans")
    )
    for policy in policies:
        if kept_bytes(config, num_tokens, policy, scan) <= SHARE_FOR_BLOCKS * memory_bytes:
            return policy
    return "all"


def kept_bytes(config: DecoderConfig, num_tokens: int, policy: RecomputePolicy, scan: ScanForm) -> int:
    """Estimate of what all blocks keep for the backward pass, the one being recomputed there included.

    An upper estimate for bfloat16 (`config.trunk_dtype` float32: for float32); forms of the scan that are
    written in torch keep much more than kernels.
    """
    kinds = block_kinds(config.pattern, config.depth)
    whole = {kind: _kept_numbers(config, kind, scan) for kind in kinds}
    if policy == "none":
        return num_tokens * sum(whole[kind] for kind in kinds)
    stream = STREAM_BYTES * config.width
    attention = 0 if policy == "all" else _attention_bytes(config) + stream
    states = _result_bytes(config) if policy == "states" and scan == "fused" else 0
    between = sum(stream + (attention if kind == "T" else states) for kind in kinds)
    return num_tokens * (between + max(whole.values()))


def _number_bytes(config: DecoderConfig) -> int:
    return 4 if config.trunk_dtype == "float32" else 2


def _kept_numbers(config: DecoderConfig, kind: str, scan: ScanForm) -> int:
    """Bytes per token that one whole block keeps."""
    stream = STREAM_BYTES * config.width
    if kind == "T":
        perceptron = config.width * (2 + 2 * config.mlp_ratio)
        return 2 * stream + _attention_bytes(config) + _number_bytes(config) * perceptron
    return stream + _scan_bytes(config, scan)


def _attention_bytes(config: DecoderConfig) -> int:
    """Normed tokens, queries, keys, values, the output in two layouts, and a log-sum-exp per head."""
    return 6 * config.width * _number_bytes(config) + 4 * config.num_heads


def _result_bytes(config: DecoderConfig) -> int:
    """What the state scans of both directions give."""
    return 2 * config.inner_width * _number_bytes(config)


def _scan_bytes(config: DecoderConfig, scan: ScanForm) -> int:
    """Normed tokens; for each direction the projected ones and the result; their sum."""
    inner, heads = config.inner_width, config.inner_width // config.head_dim
    projected = 2 * inner + 2 * config.state_size + heads
    numbers = config.width + inner + 2 * (projected + 2 * inner)
    kept = numbers * _number_bytes(config)
    if scan in ("reference", "chunked", "fused_in_torch"):
        kept += 2 * 4 * TORCH_SCAN_COPIES * (projected + inner)
    return kept
