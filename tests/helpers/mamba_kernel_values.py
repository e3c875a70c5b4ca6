"""Runs the kernels around the Mamba-2 scan in triton's interpreter, in float32 on the CPU, beside torch.

    TRITON_INTERPRET=1 python tests/helpers/mamba_kernel_values.py convolution

prints, as JSON, for each case the largest relative error of every result and gradient by its name. A program
of its own, because the interpreter must be chosen before triton is imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lyra_ns.decoder.blocks import MambaBlock
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder, suits_chain
from lyra_ns.ops import convolution_triton, norm_triton, ssd
from lyra_ns.ops.ssd import ScanBackend, convolve_in_torch, join_in_torch

Errors = dict[str, float]


def compare(
    kernel: Callable[..., tuple[Tensor, ...]],
    truth: Callable[..., tuple[Tensor, ...]],
    inputs: dict[str, Tensor],
) -> Errors:
    """Errors of all results, and of the gradients of all inputs under a random weighting of the results."""
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    found, expected = kernel(*leaves), truth(*leaves)
    weightings = [torch.randn_like(tensor) for tensor in expected]
    gradients = [
        torch.autograd.grad(sum((a * b).sum() for a, b in zip(results, weightings, strict=True)), leaves)
        for results in (found, expected)
    ]
    errors = {f"result {i}": error(*pair) for i, pair in enumerate(zip(found, expected, strict=True))}
    pairs = zip(inputs, *gradients, strict=True)
    return errors | {f"gradient of {name}": error(a, b) for name, a, b in pairs}


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compare_convolution(batch: int, tokens: int, inner: int, state: int, heads: int, taps: int) -> Errors:
    """Both directions' convolution; the sizes may end inside a block of the kernel."""
    channels = inner + 2 * state
    inputs = {
        "projected": torch.randn(batch, tokens, inner + channels + heads),
        "weight": torch.randn(2, taps, channels),
        "bias": torch.randn(2, channels),
    }
    return compare(
        lambda *leaves: convolution_triton.convolve_both_directions(*leaves, inner),
        lambda *leaves: convolve_in_torch(*leaves, inner),
        inputs,
    )


def compare_gated_norm(batch: int, tokens: int, inner: int) -> Errors:
    """Gate, norm and sum, with the gate a slice of wider rows."""
    inputs = {
        "y": torch.randn(batch, tokens, 2, inner),
        "projected": torch.randn(batch, tokens, inner + 5),
        "weight": torch.randn(2, inner),
    }
    return compare(
        lambda y, rows, weight: (norm_triton.gated_norm_sum(y, rows[..., :inner], weight, 1e-5),),
        lambda y, rows, weight: (join_in_torch(y, rows[..., :inner], weight, 1e-5),),
        inputs,
    )


def compare_branch_norm(batch: int, tokens: int, width: int) -> Errors:
    """The norm of a branch, and the stream past it."""
    inputs = {"stream": torch.randn(batch, tokens, width), "weight": torch.randn(width)}
    return compare(
        lambda stream, weight: norm_triton.branch_norm(stream, weight, 1e-5, torch.float32),
        lambda stream, weight: (stream, nn.functional.rms_norm(stream, (width,), weight, 1e-5)),
        inputs,
    )


def compare_added_norm(norm: nn.RMSNorm | nn.LayerNorm, has_update: bool) -> Errors:
    """The stream after an addition, and its norm."""
    nn.init.normal_(norm.weight)
    if isinstance(norm, nn.LayerNorm):
        nn.init.normal_(norm.bias)
    stream, update = torch.randn(2, 2, 7, *norm.normalized_shape).add(0.5)
    with torch.no_grad():
        found = norm_triton.add_and_norm(stream, update if has_update else None, norm, torch.float32)
        added = stream + update if has_update else stream
        expected = added, norm(added)
    return {f"result {i}": error(*pair) for i, pair in enumerate(zip(found, expected, strict=True))}


def pretend_to_be_on_a_gpu() -> None:
    """The choice of the form knows that kernels need a CUDA device; the interpreter does not."""
    ScanBackend.form_on = lambda backend, device: backend.on_cpu
    ssd.suits_scan_kernels = lambda x, write: False


def compare_chain() -> Errors:
    """A trunk of both kinds of blocks as a chain of branches, beside the blocks one after the other."""
    pretend_to_be_on_a_gpu()
    config = DecoderConfig(width=16, depth=3, pattern="1M1T", head_dim=8, state_size=4, num_heads=2)
    decoder = LatentGaussianDecoder(config)
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter)
    plain, fused = (ScanBackend(name, name, "as asked") for name in ("chunked", "fused"))
    tokens, results = torch.randn(2, 5, 16), []
    for backend in (plain, fused):
        decoder.scan = backend
        for block in (decoder.enc_blocks[0], decoder.enc_blocks[2]):
            block.mamba.scan = backend
        with torch.no_grad():
            assert suits_chain(backend.on_cpu) == (backend is fused)
            results.append(decoder.trunk(tokens))
    return {"tokens": error(*reversed(results))}


def compare_block() -> Errors:
    """A whole block around the kernels, with the state scan in torch, beside the block in torch."""
    config = DecoderConfig(width=16, head_dim=8, state_size=4, num_heads=2)
    backends = {name: ScanBackend(name, name, "as asked") for name in ("fused", "chunked")}
    pretend_to_be_on_a_gpu()
    plain, fused = (MambaBlock(config, backends[name]) for name in ("chunked", "fused"))
    names = [name for name, _ in plain.named_parameters()]

    def run(block: MambaBlock) -> Callable[..., tuple[Tensor, ...]]:
        return lambda tokens, *weights: (
            torch.func.functional_call(block, dict(zip(names, weights, strict=True)), (tokens,)),
        )

    weights = {name: weight.detach().clone() for name, weight in plain.named_parameters()}
    return compare(run(fused), run(plain), {"tokens": torch.randn(2, 5, 16), **weights})


CASES: dict[str, list[Callable[[], Errors]]] = {
    "convolution": [
        lambda: compare_convolution(2, 13, 32, 16, 4, 4),
        lambda: compare_convolution(1, 3, 70, 6, 3, 4),
        lambda: compare_convolution(2, 1, 8, 4, 1, 4),
        lambda: compare_convolution(1, 9, 12, 4, 2, 3),
    ],
    "gated_norm": [
        lambda: compare_gated_norm(2, 13, 32),
        lambda: compare_gated_norm(1, 1, 12),
        lambda: compare_gated_norm(3, 8, 5),
    ],
    "branch_norm": [lambda: compare_branch_norm(2, 13, 32), lambda: compare_branch_norm(1, 1, 5)],
    "added_norm": [
        lambda: compare_added_norm(nn.RMSNorm(32, eps=1e-5), True),
        lambda: compare_added_norm(nn.RMSNorm(5, eps=1e-5), False),
        lambda: compare_added_norm(nn.LayerNorm(12, eps=1e-6), True),
        lambda: compare_added_norm(nn.LayerNorm(16, eps=1e-6), False),
    ],
    "block": [compare_block],
    "chain": [compare_chain],
}

if __name__ == "__main__":
    torch.manual_seed(0)
    # Several programs per sequence, although it is short.
    convolution_triton.FORWARD = convolution_triton.Walk(channels=32, stride=2, tokens=8)
    convolution_triton.BACKWARD = convolution_triton.Walk(channels=16, stride=3, tokens=8)
    norm_triton.GATED_BACKWARD_TOKENS = norm_triton.RESIDUAL_BACKWARD_TOKENS = 8
    print(json.dumps([case() for case in CASES[sys.argv[1]]]))
