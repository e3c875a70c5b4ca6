"""What the processes of tests/gen3c/test_parallel.py do; each is a process of its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lyra_ns.gen3c.layers import keep_positions, use_own_blocks
from lyra_ns.gen3c.parallel import GuidanceHalves, share_of, split_tokens
from lyra_ns.gen3c.transformer import Evaluation
from tests.helpers.gen3c_speed_cases import guided, latents_of, prepared, small_pipeline


def everything(device: torch.device, clips: list[str]) -> dict[str, Any]:
    """All ways on this process, since starting one takes long."""
    torch.manual_seed(dist.get_rank())  # Or both would draw the same noise without a seed.
    pipeline = small_pipeline()
    pipeline.evaluation = Evaluation(halves=GuidanceHalves())
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    halves = latents_of(pipeline)
    without_seed = latents_of(pipeline, generator=None)
    hook.remove()
    return {
        "halves": halves,
        "without_seed": without_seed,
        "calls": len(calls),
        "tokens": tokens_split(device),
        "tokens_without_seed": clip_without_seed(device),
        "own_clips": share_of(clips, dist.get_rank(), dist.get_world_size()),
    }


def tokens_split(device: torch.device) -> dict[str, Tensor | list[int] | str]:
    """Predictions for one and for two samples, and how many tokens the blocks have seen."""
    transformer = prepared(use_own_blocks, keep_positions)
    seen: list[int] = []
    transformer.transformer_blocks[1].attn1.to_q.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    split_tokens(transformer, device)
    return {"one": guided(transformer), "two": guided(transformer, size=2), "seen": seen}


def clip_without_seed(device: torch.device) -> Tensor:
    """Latents of a clip whose tokens are split, from noise that each process draws for itself."""
    pipeline = small_pipeline()
    use_own_blocks(pipeline.transformer)
    split_tokens(pipeline.transformer, device)
    return latents_of(pipeline, generator=None)


def fail_on_second(device: torch.device) -> None:
    """Raises on one of the processes."""
    if dist.get_rank() == 1:
        raise RuntimeError("no room left on this one")
