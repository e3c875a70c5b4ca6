"""`python -m benchmarks.kernels.mamba`: one Mamba-2 block at the paper's size, stage by stage and as a whole.

Times in milliseconds of the fast path beside the plain torch form of the same stage, and of the whole block
in every form that runs here, forward and with its backward pass. With `--tune` the sizes of the kernels'
tiles are varied instead. Random weights: speed does not depend on their values. Needs a CUDA device of 80 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from types import ModuleType
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from benchmarks.full_size.measure import measure
from lyra_ns.decoder.blocks import MambaBlock
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.device import GIB
from lyra_ns.ops import convolution_triton, norm_triton
from lyra_ns.ops.ssd import TORCH_STAGES, choose_scan_backend, kernel_stages
from lyra_ns.ops.ssd_types import DirectedTokens, ScanName

Work = Callable[[], Any]

SCANS: tuple[ScanName, ...] = ("fused", "mamba_ssm", "chunked")
"""Forms of the whole block; the last keeps too much for a backward pass at full size."""


@dataclass
class Benchmark:
    """Print the table."""

    tokens: int = 337_920
    """Length of the sequence: six trajectories."""
    repetitions: int = 5
    """Times of which the median counts."""
    tune: bool = False
    """Vary the tiles of the convolution and the norms instead."""

    def run(self) -> None:
        """Measure and print."""
        print(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {self.tokens} tokens, bfloat16, ms"
        )
        stages = Stages(self.tokens)
        if self.tune:
            for title, milliseconds in stages.tuned(self.repetitions):
                print(f"{title:<72}{milliseconds:9.2f}")
            return
        print(f"{'stage':<24}{'kernels':>9}{'torch':>9}")
        for title, works in stages.forward().items():
            times = [measure(work, self.repetitions).milliseconds for work in works]
            print(f"{title:<24}" + "".join(f"{time:9.2f}" for time in times))
        for title, work in stages.backward().items():
            print(f"{title:<24}{measure(work, self.repetitions).milliseconds:9.2f}")
        del stages
        print(f"{'whole block':<24}{'forward':>9}{'training':>9}{'GB':>9}{'GB':>9}")
        for scan in SCANS:
            print(f"{scan:<24}{self.whole_block(scan)}")

    def whole_block(self, scan: ScanName) -> str:
        """Times and peak memory of the block with one form of the scan, or why it does not run here."""
        try:
            block = MambaBlock(DecoderConfig(), choose_scan_backend(scan)).cuda()
        except ValueError as error:
            return str(error)
        tokens = torch.randn(1, self.tokens, 512, device="cuda", requires_grad=True)

        def forward() -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return block(tokens)

        def infer() -> None:
            with torch.no_grad():
                forward()

        def train() -> None:
            output = forward()
            torch.autograd.grad(output, [tokens, *block.parameters()], tokens.detach())

        works = (infer,) if scan == "chunked" else (infer, train)
        costs = [measure(work, self.repetitions) for work in works]
        measured = [(cost.milliseconds, cost.peak_gib * GIB / 1e9) for cost in costs]
        blank = " " * 9 * (2 - len(works))
        return (
            "".join(f"{time:9.2f}" for time, _ in measured)
            + blank
            + "".join(f"{gb:9.2f}" for _, gb in measured)
        )


class Stages:
    """Inputs of every stage of one block at full size."""

    def __init__(self, tokens: int) -> None:
        torch.manual_seed(0)
        self.layer = MambaBlock(DecoderConfig(), choose_scan_backend("fused")).cuda().requires_grad_(False)
        self.forwards, self.backwards = (direction() for direction in self.layer.mamba.mamba_scans)
        both = (self.forwards, self.backwards)
        self.taps = torch.stack([weights.conv_weight.mT for weights in both])
        self.bias = torch.stack([weights.conv_bias for weights in both])
        self.gain = torch.stack([weights.norm_weight for weights in both])
        self.heads = tuple(
            torch.cat([getattr(weights, name) for weights in both]) for name in ("decay", "skip", "step_bias")
        )
        self.stream = torch.randn(1, tokens, 512, device="cuda")
        self.normed = self.stream.bfloat16()
        self.in_weight = self.layer.mamba.in_proj.weight.bfloat16()
        self.out_weight = self.layer.mamba.out_proj.weight.bfloat16()
        self.projected = nn.functional.linear(self.normed, self.in_weight)
        self.directed = self.convolved(self.projected)
        self.y = self.scanned()
        self.joined = self.norm_sum(self.y, self.directed.gate)

    def convolved(self, projected: Tensor) -> DirectedTokens:
        """The convolution's kernel."""
        return convolution_triton.convolve_both_directions(projected, self.taps, self.bias, 1024)

    def scan_inputs(self, part: slice = slice(None)) -> tuple[Tensor, ...]:
        """What the state scan takes, of some of the tokens."""
        tokens = self.directed
        x, step = tokens.x[:, part].unflatten(-1, (16, 64)).flatten(2, 3), tokens.step[:, part].flatten(2)
        return (x, step, tokens.write[:, part], tokens.read[:, part], *self.heads)

    def scanned(self) -> Tensor:
        """The state scan's kernels."""
        return kernel_stages().scan_states(*self.scan_inputs()).unflatten(2, (2, 16)).flatten(3)

    def norm_sum(self, y: Tensor, gate: Tensor) -> Tensor:
        """The gated norm's kernel."""
        return norm_triton.gated_norm_sum(y, gate, self.gain, 1e-5)

    def forward(self) -> dict[str, tuple[Work, ...]]:
        """The stages of the forward pass in order: in kernels, and in torch where that is another thing."""
        norm = self.layer.norm
        return {
            "norm": (
                lambda: norm_triton.branch_norm(self.stream, norm.weight, 1e-5, torch.bfloat16),
                lambda: norm(self.stream).bfloat16(),
            ),
            "in projection": (lambda: nn.functional.linear(self.normed, self.in_weight),),
            "convolution": (
                lambda: self.convolved(self.projected),
                lambda: TORCH_STAGES.convolve(self.projected, self.taps, self.bias, 1024),
            ),
            "state scan": (self.scanned, lambda: TORCH_STAGES.scan_states(*self.scan_inputs())),
            "gated norm and sum": (
                lambda: self.norm_sum(self.y, self.directed.gate),
                lambda: TORCH_STAGES.join(self.y, self.directed.gate, self.gain, 1e-5),
            ),
            "out projection": (lambda: nn.functional.linear(self.joined, self.out_weight),),
            "residual": (lambda: self.stream + self.normed,),
        }

    def backward(self) -> dict[str, Work]:
        """The backward pass of our kernels, each with its forward pass."""

        def with_gradient(function: Callable[..., Any], *inputs: Tensor) -> Work:
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]

            def work() -> None:
                results = function(*leaves)
                results = results if isinstance(results, tuple) else (results,)
                torch.autograd.grad(results, leaves, [result.detach() for result in results])

            return work

        return {
            "norm, both ways": with_gradient(
                lambda stream, weight: norm_triton.branch_norm(stream, weight, 1e-5, torch.bfloat16),
                self.stream,
                self.layer.norm.weight,
            ),
            "convolution, both ways": with_gradient(self.convolved, self.projected),
            "gated norm, both ways": with_gradient(self.norm_sum, self.y, self.directed.gate),
        }

    def tuned(self, repetitions: int) -> Iterator[tuple[str, float]]:
        """Times of the kernels by the sizes of their tiles."""
        convolve = self.forward()["convolution"][0]
        walks = [convolution_triton.Walk(*sizes) for sizes in product((64, 128), (4, 8), (256, 512))]
        yield from _varied("convolution", convolution_triton, {"FORWARD": walks}, convolve, repetitions)
        both_ways = self.backward()
        work = both_ways["convolution, both ways"]
        yield from _varied(
            "convolution, both ways", convolution_triton, {"BACKWARD": walks}, work, repetitions
        )
        work = self.forward()["gated norm and sum"][0]
        yield from _varied("gated norm", norm_triton, {"FORWARD_BLOCK": (1, 2, 4)}, work, repetitions)
        sizes = {"BACKWARD_BLOCK": (1, 2), "BACKWARD_TOKENS": (32, 64, 128)}
        work = both_ways["gated norm, both ways"]
        yield from _varied("gated norm, both ways", norm_triton, sizes, work, repetitions)


def _varied(
    title: str, module: ModuleType, sizes: Mapping[str, Sequence[Any]], work: Work, repetitions: int
) -> Iterator[tuple[str, float]]:
    """Times of `work` under all combinations of the module's constants."""
    for values in product(*sizes.values()):
        chosen = dict(zip(sizes, values, strict=True))
        with _constants(module, chosen):
            described = ", ".join(f"{name} {value}" for name, value in chosen.items())
            yield f"{title}: {described}", measure(work, repetitions).milliseconds


@contextmanager
def _constants(module: ModuleType, values: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)


if __name__ == "__main__":
    tyro.cli(Benchmark, description=__doc__).run()
