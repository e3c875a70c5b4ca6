"""One clip on two GPUs: a view of guidance on each, or half of the tokens on each."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from benchmarks.full_size.inputs import Size
from benchmarks.full_size.measure import measure
from benchmarks.generation.network import Bench, evaluation_of, random_network, relative
from benchmarks.generation.result_file import Row
from lyra_ns.gen3c.layers import keep_positions, use_own_blocks
from lyra_ns.gen3c.parallel import GuidanceHalves, run_on_processes, split_tokens
from lyra_ns.gen3c.transformer import Evaluation

ALONE, HALVES, SPLIT = (
    "one GPU, two passes",
    "a view of guidance on each GPU",
    "half of the tokens on each GPU",
)


def two_gpu_rows(bench: Bench, device_type: str = "cuda") -> None:
    """Rows of both ways beside one GPU; all come from the same two processes."""

    @cache
    def made() -> dict[str, Row]:
        arguments = (dict(bench.config), vars(bench.size), bench.repetitions)
        return run_on_processes(measure_ways, 2, *arguments, device_type=device_type)[0]

    for way in (ALONE, HALVES, SPLIT):
        if "failed" in bench.file.row(way, lambda way=way: made()[way]):
            break


def measure_ways(
    device: torch.device, config: dict[str, Any], size: dict[str, int], repetitions: int
) -> dict[str, Row]:
    """One guided step in each way, as this process sees it; runs on both."""
    clip, place = Size(**size), str(device)
    network = random_network(config, place)
    keep_positions(network)
    use_own_blocks(network)
    alone = evaluation_of(network, clip, place, guidance=1.0)
    expected = alone()
    rows = {ALONE: measure(alone, repetitions, warm_up=0).row()}
    halves = Evaluation(halves=GuidanceHalves())
    both = evaluation_of(network, clip, place, guidance=1.0, evaluation=halves)
    rows[HALVES] = {"deviation": relative(both(), expected)} | measure(both, repetitions, warm_up=0).row()
    split_tokens(network, device)
    rows[SPLIT] = {"deviation": relative(alone(), expected)} | measure(alone, repetitions, warm_up=0).row()
    return rows
