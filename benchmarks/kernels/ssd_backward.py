"""`python -m benchmarks.kernels.ssd_backward`: the way back through our state scan under different tiles.

Both directions of one layer of the decoder, side by side as 32 heads, in bfloat16, beside the backward
kernels of mamba-ssm where it is installed: milliseconds of the whole and of every kernel, and errors of all
gradients relative to float64 on a shorter sequence, for heads that fade faster and slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.full_size.measure import measure
from benchmarks.kernels.ssd_forward import Inputs, exact, random_inputs, relative_error
from lyra_ns.ops.ssd_triton_backward import ScanGradients, ssd_backward
from lyra_ns.ops.ssd_triton_backward_kernels import HOPPER_BACKWARD_TILES, BackwardTiles

NAMES = ScanGradients._fields
"""Inputs in the order of their gradients."""
DEFAULT = HOPPER_BACKWARD_TILES
TILES = {
    "default": DEFAULT,
    "rounded updates": replace(DEFAULT, walk=replace(DEFAULT.walk, exact_updates=False)),
    "33 segments": replace(DEFAULT, walk=replace(DEFAULT.walk, num_segments=33)),
    "1 head of x in flight": replace(DEFAULT, written_stages=1),
    "2 heads of products in flight": replace(DEFAULT, product_stages=2),
    "4 heads of products in flight": replace(DEFAULT, product_stages=4),
    "2 heads of sums in flight": replace(DEFAULT, sum_stages=2),
    "4 heads of sums in flight": replace(DEFAULT, sum_stages=4),
    "sums of 64 columns": replace(DEFAULT, sum_state=64, sum_warps=4),
}
"""What is timed."""
Gradients = Callable[[Inputs, Tensor], tuple[Tensor, ...]]


def ours(tiles: BackwardTiles) -> Gradients:
    """Our kernels."""
    return lambda inputs, grad_y: ssd_backward(grad_y, *(inputs[name] for name in NAMES), tiles=tiles)


def theirs(inputs: Inputs, grad_y: Tensor) -> tuple[Tensor, ...]:
    """Those of mamba-ssm, in the same order."""
    from mamba_ssm.ops.triton.ssd_combined import _mamba_chunk_scan_combined_bwd

    x, step, write, read, decay, skip, step_bias = (inputs[name] for name in NAMES)
    of_x, of_step, of_decay, of_write, of_read, of_skip, _, of_bias, _ = _mamba_chunk_scan_combined_bwd(
        grad_y, x, step, decay, write, read, x, 256, D=skip, dt_bias=step_bias, dt_softplus=True
    )
    return of_x, of_step, of_write, of_read, of_decay, of_skip, of_bias


def ways() -> dict[str, Gradients]:
    """Ours, and those of mamba-ssm where it is installed."""
    try:
        import mamba_ssm.ops.triton.ssd_combined  # noqa: F401
    except ImportError as error:
        print(f"mamba-ssm is not measured: {error}")
        return {"ours": ours(DEFAULT)}
    return {"ours": ours(DEFAULT), "mamba-ssm": theirs}


def print_errors(gradients: dict[str, Gradients], num_tokens: int) -> None:
    """Of every gradient, for three speeds of fading."""
    for slowness in (0.01, 1.0, 100.0):
        inputs = random_inputs(num_tokens)
        inputs["decay"] = inputs["decay"] / slowness
        grad_y = torch.randn_like(inputs["x"].contiguous())
        leaves = {name: inputs[name].double().requires_grad_() for name in NAMES}
        expected = torch.autograd.grad(exact(leaves), list(leaves.values()), grad_y.double())
        for title, function in gradients.items():
            found = function(inputs, grad_y)
            errors = (relative_error(*pair) for pair in zip(found, expected, strict=True))
            print(f"{slowness:6} {title:<20}", *(f"{n} {e}" for n, e in zip(NAMES, errors, strict=True)))


def print_times(title: str, gradients: Gradients, num_tokens: int, repeats: int, kernels: bool) -> None:
    """Milliseconds of the whole, and of each kernel if asked for."""
    inputs = random_inputs(num_tokens)
    grad_y = torch.randn_like(inputs["x"].contiguous())
    try:
        cost = measure(lambda: gradients(inputs, grad_y), repeats)
    except Exception as error:  # tiles that do not fit must not end the sweep
        print(f"{title:<32} {type(error).__name__}: {error}"[:200])
        return
    print(f"{title:<32}{cost.milliseconds:9.2f} ms {cost.growth_gib:6.2f} GiB", flush=True)
    if not kernels:
        return
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        gradients(inputs, grad_y)
    for event in sorted(recorded.key_averages(), key=lambda event: -event.self_device_time_total)[:14]:
        print(f"    {event.self_device_time_total / 1000:9.2f} {event.count:3} {event.key[:80]}")


def main(tokens: int = 337_920, checked_tokens: int = 6001, repeats: int = 3, tune: bool = True) -> None:
    """Print the errors and the times; `tune` tries all tiles."""
    measured = ways()
    print_errors(measured, checked_tokens)
    for title, gradients in measured.items():
        print_times(title, gradients, tokens, repeats, True)
    for title, tiles in TILES.items() if tune else ():
        print_times(title, ours(tiles), tokens, repeats, False)


if __name__ == "__main__":
    tyro.cli(main)
