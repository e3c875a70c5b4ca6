"""`python -m benchmarks.kernels.training_choices`: the ways of kernels/choices.py in training, side by side.

For one Mamba-2 block in automatic mixed precision: the convolution alone forward and with its backward pass,
the whole block with its backward pass, both at the paper's size, and the error of the block's gradients on a
shorter sequence against the same block all in float32. Needs a CUDA device and mamba-ssm.
"""

from __future__ import annotations

import torch
import tyro
from torch import Tensor

from benchmarks.full_size.measure import measure
from benchmarks.kernels.mamba import Stages
from lyra_ns.decoder_blocks import MambaBlock
from lyra_ns.decoder_config import DecoderConfig
from lyra_ns.kernels.choices import chosen
from lyra_ns.ssd import choose_scan_backend

WAYS: dict[str, dict[str, bool]] = {
    "as before": {},
    "walk convolution": {"walk_convolution": True},
    "own scan": {"train_with_own_scan": True},
    "own scan, rounded": {"train_with_own_scan": True, "round_state_updates": True},
    "all": {"walk_convolution": True, "train_with_own_scan": True, "round_state_updates": True},
}
"""Choices by the name that the table gives them."""
NUM_CHECKED_TOKENS = 8192
"""Length of the sequence whose gradients are compared."""


def convolution_milliseconds(tokens: int, repetitions: int) -> dict[str, tuple[float, float]]:
    """Time of the convolution forward, and with its backward pass, in tiles and walking."""
    stages = Stages(tokens)
    forward, both = stages.forward()["convolution"][0], stages.backward()["convolution, both ways"]
    times = {}
    for name in ("as before", "walk convolution"):
        with chosen(**WAYS[name]):
            measured = [measure(work, repetitions).milliseconds for work in (forward, both)]
        times[name] = (measured[0], measured[1])
    return times


def gradients(block: MambaBlock, tokens: Tensor, weighting: Tensor, autocast: bool) -> list[Tensor]:
    """Gradients of the tokens and of all weights."""
    with torch.autocast("cuda", torch.bfloat16, autocast, cache_enabled=False):
        output = block(tokens)
    return list(torch.autograd.grad(output, [tokens, *block.parameters()], weighting))


def block_rows(tokens: int, repetitions: int) -> dict[str, tuple[float, float, float]]:
    """Time of the block and its backward pass, and mean and largest relative error of its gradients."""
    torch.manual_seed(0)
    exact = MambaBlock(DecoderConfig(), choose_scan_backend("chunked")).cuda()
    block = MambaBlock(DecoderConfig(), choose_scan_backend("fused")).cuda()
    block.load_state_dict(exact.state_dict())
    short, short_weighting = torch.randn(2, 1, NUM_CHECKED_TOKENS, 512, device="cuda")
    short.requires_grad_()
    expected = gradients(exact, short, short_weighting, autocast=False)
    long, weighting = torch.randn(2, 1, tokens, 512, device="cuda")
    long.requires_grad_()
    rows = {}
    for name, changes in WAYS.items():
        with chosen(**changes):
            found = gradients(block, short, short_weighting, autocast=True)
            time = measure(lambda: gradients(block, long, weighting, True), repetitions).milliseconds
        errors = torch.stack([(a - b).norm() / b.norm() for a, b in zip(found, expected, strict=True)])
        rows[name] = (time, errors.mean().item(), errors.max().item())
    return rows


def main(tokens: int = 337_920, repetitions: int = 3) -> None:
    """Measure and print."""
    print(f"{'convolution, ms':<24}{'forward':>10}{'both ways':>10}", flush=True)
    for name, times in convolution_milliseconds(tokens, repetitions).items():
        print(f"{name:<24}{times[0]:>10.2f}{times[1]:>10.2f}", flush=True)
    print(f"{'block':<24}{'both, ms':>10}{'mean error':>12}{'largest':>10}", flush=True)
    for name, (time, mean, largest) in block_rows(tokens, repetitions).items():
        print(f"{name:<24}{time:>10.2f}{mean:>12.3%}{largest:>10.3%}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
