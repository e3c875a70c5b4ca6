"""Both directions of a Mamba layer in our own kernels on a GPU: the same numbers as in torch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.decoder.blocks import MambaBlock
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.ops.convolution_triton import convolve_both_directions
from lyra_ns.ops.norm_triton import branch_norm, gated_norm_sum
from lyra_ns.ops.ssd import (
    ScanBackend,
    choose_scan_backend,
    convolve_in_torch,
    describe_scan_backend,
    join_in_torch,
    suits_scan_kernels,
)
from lyra_ns.ops.ssd_types import ScanWeights
from tests.helpers import golden

pytestmark = pytest.mark.gpu

SMALL, OFFICIAL = (4, 64), (16, 256)
"""Heads of 64 channels in each direction, and state size."""


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cuda").to(dtype)


def make_weights(heads: int, state: int, seed: int) -> ScanWeights:
    """Weights of one direction, float64."""
    inner, channels = heads * 64, heads * 64 + 2 * state
    return ScanWeights(
        conv_weight=random(channels, 4, seed=seed) / 2,
        conv_bias=random(channels, seed=seed + 1) / 4,
        step_bias=random(heads, seed=seed + 2) - 3,
        decay=-random(heads, seed=seed + 3).exp(),
        skip=1 + random(heads, seed=seed + 4) / 4,
        norm_weight=1 + random(inner, seed=seed + 5) / 4,
    )


def make_case(batch: int, tokens: int, sizes: tuple[int, int]) -> tuple[Tensor, list[ScanWeights]]:
    """Projected tokens and the weights of both directions, float64."""
    heads, state = sizes
    projected = random(batch, tokens, 2 * heads * 64 + 2 * state + heads, seed=1)
    return projected, [make_weights(heads, state, seed) for seed in (10, 20)]


def values_and_gradients(
    backend: ScanBackend, projected: Tensor, weights: list[ScanWeights], dtype: torch.dtype
) -> list[Tensor]:
    """The sum of both scans and all thirteen gradients, as float64; only the tokens get `dtype`."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    names = [field.name for field in fields(ScanWeights) if field.name not in ("num_groups", "eps")]
    leaves = [{name: getattr(one, name).to(exact).requires_grad_() for name in names} for one in weights]
    projected = projected.to(dtype).requires_grad_()
    both = [replace(one, **values) for one, values in zip(weights, leaves, strict=True)]
    result = backend.both_directions(projected, *both)
    weighting = random(*result.shape, seed=99, dtype=result.dtype)
    inputs = [projected, *leaves[0].values(), *leaves[1].values()]
    gradients = torch.autograd.grad((result * weighting).sum(), inputs)
    return [tensor.detach().double() for tensor in (result, *gradients)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the expected norm."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(("batch", "tokens", "sizes"), [(2, 37, SMALL), (2, 701, SMALL), (1, 2049, OFFICIAL)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 3e-2)])
def test_fused_equals_plain(
    batch: int, tokens: int, sizes: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    """Values and all gradients, up to the tf32 or bfloat16 products of the state scan."""
    projected, weights = make_case(batch, tokens, sizes)
    projected = projected.to(dtype).double()
    expected = values_and_gradients(choose_scan_backend("chunked"), projected, weights, torch.float64)
    found = values_and_gradients(choose_scan_backend("fused"), projected, weights, dtype)
    errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < tolerance, errors


@pytest.mark.parametrize("sizes", [SMALL, OFFICIAL])
def test_inference_equals_plain(sizes: tuple[int, int]) -> None:
    """Without gradient the state scan is our own, too."""
    projected, weights = make_case(2, 1500, sizes)
    half = projected.bfloat16()
    x = half.new_empty(1, 1, 2 * sizes[0], 64)
    if not suits_scan_kernels(x, half.new_empty(1, 1, 2, sizes[1])):
        pytest.skip("our state scan has kernels for Hopper cards alone")
    with torch.no_grad():
        found = choose_scan_backend("fused").both_directions(half, *weights)
        expected = choose_scan_backend("chunked").both_directions(half.double(), *weights)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, expected) < 1e-2


def compare_stage(kernel: Any, truth: Any, inputs: list[Tensor], dtype: torch.dtype) -> list[float]:
    """Errors of results and gradients; the first input gets `dtype`. The kernel must repeat itself."""
    runs = []
    for function, first, others in (
        (kernel, dtype, torch.float32),
        (kernel, dtype, torch.float32),
        (truth, torch.float64, torch.float64),
    ):
        leaves = [inputs[0].to(dtype).to(first), *(tensor.to(others) for tensor in inputs[1:])]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        results = function(*leaves)
        weightings = [random(*result.shape, seed=5, dtype=dtype) for result in results]
        loss = sum((a * b.to(a)).sum() for a, b in zip(results, weightings, strict=True))
        runs.append([*results, *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    return [relative_error(a, b) for a, b in zip(runs[0], runs[2], strict=True)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize(("batch", "tokens"), [(3, 2), (2, 1037)])
def test_stages_equal_torch(batch: int, tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    """The kernels alone, which round bfloat16 only on the way in and out and sum in a fixed order."""
    heads, state = OFFICIAL
    inner = heads * 64
    channels = inner + 2 * state
    inputs = [
        random(batch, tokens, inner + channels + heads, seed=1),
        random(2, 4, channels, seed=2) / 2,
        random(2, channels, seed=3) / 4,
    ]
    errors = compare_stage(
        lambda *leaves: convolve_both_directions(*leaves, inner),
        lambda *leaves: convolve_in_torch(*leaves, inner),
        inputs,
        dtype,
    )
    assert max(errors) < tolerance, errors
    wide = random(batch, tokens, 3 * inner, seed=4)
    errors = compare_stage(
        lambda rows, weight: (gated_norm_sum(*split_rows(rows, inner), weight, 1e-5),),
        lambda rows, weight: (join_in_torch(*split_rows(rows, inner), weight, 1e-5),),
        [wide, random(2, inner, seed=6)],
        dtype,
    )
    assert max(errors) < tolerance, errors
    errors = compare_stage(
        lambda stream, weight: branch_norm(stream, weight, 1e-5, dtype),
        lambda stream, weight: (stream, torch.nn.functional.rms_norm(stream, (inner,), weight, 1e-5)),
        [random(batch, tokens, inner, seed=7), random(inner, seed=8)],
        dtype,
    )
    assert max(errors) < tolerance, errors


def split_rows(rows: Tensor, inner: int) -> tuple[Tensor, Tensor]:
    """Scanned values of both directions and a gate that is a slice of wider rows."""
    return rows[..., inner:].unflatten(-1, (2, inner)), rows[..., :inner]


@pytest.mark.parametrize("autocast", [False, True])
def test_block_equals_plain_block(autocast: bool) -> None:
    """A whole block in both regimes: float32 stream, gradients of every weight and of the tokens.

    Under autocast sums over all tokens (steps, decay) gather roundings: the plain block's say how many.
    """
    config = DecoderConfig(width=128, num_heads=2, state_size=64)
    torch.manual_seed(0)
    plain = MambaBlock(config, choose_scan_backend("chunked")).cuda()
    fused = MambaBlock(config, choose_scan_backend("fused")).cuda()
    fused.load_state_dict(plain.state_dict())

    def run(block: MambaBlock, autocast: bool) -> list[Tensor]:
        tokens = random(2, 333, 128, seed=3, dtype=torch.float32).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, autocast):
            result = block(tokens)
        assert result.dtype == torch.float32
        loss = (result * random(*result.shape, seed=4, dtype=torch.float32)).sum()
        return [result - tokens, *torch.autograd.grad(loss, [tokens, *block.parameters()])]

    truth = run(plain, False)
    for ours, theirs, true in zip(run(fused, autocast), run(plain, autocast), truth, strict=True):
        assert relative_error(ours, true) < 1.5 * relative_error(theirs, true) + 5e-3


def test_rows_beyond_32_bit_offsets() -> None:
    """A sequence whose tensors have more than 2^31 numbers, seen at its end."""
    if torch.cuda.get_device_properties(0).total_memory < 30e9:
        pytest.skip("needs 30 GB")
    heads, state = OFFICIAL
    inner, tail = heads * 64, 50
    channels = inner + 2 * state
    tokens = 2**31 // (2 * inner) + 1000
    projected = torch.randn(1, tokens, inner + channels + heads, dtype=torch.bfloat16, device="cuda")
    weight = random(2, 4, channels, seed=2, dtype=torch.float32)
    bias, gain = random(2, channels, seed=3, dtype=torch.float32), torch.ones(2, inner, device="cuda")
    with torch.no_grad():
        found = convolve_both_directions(projected, weight, bias, inner)
        expected = convolve_in_torch(projected[:, -tail:].double(), weight, bias, inner)
        # The first three tokens of the tail lack those before them.
        assert relative_error(found.x[:, 3 - tail :, 0], expected.x[:, 3:, 0]) < 5e-3
        assert relative_error(found.x[:, :tail, 1], expected.x[:, :, 1]) < 5e-3
        ends = torch.stack([found.x[:, -tail:, 0], found.x[:, :tail, 1]], 2).double()
        joined = gated_norm_sum(found.x, found.gate, gain, 1e-5)[:, -tail:]
        assert relative_error(joined, join_in_torch(ends, found.gate[:, -tail:], gain, 1e-5)) < 5e-3


def test_golden_network_with_auto() -> None:
    """The official sizes with the backend that auto takes, near the plain torch form."""
    latents = golden.latents().cuda()
    conditioning = Conditioning(golden.plucker(), golden.rays()).to("cuda")
    raws = []
    for changes in (
        {"ssd_backend": "chunked", "trunk_dtype": "float32"},
        {"ssd_backend": "auto", "trunk_dtype": "float32"},
        {"ssd_backend": "auto"},
    ):
        decoder = LatentGaussianDecoder(DecoderConfig(**changes))  # type: ignore[arg-type]
        shapes = {key: value.shape for key, value in decoder.state_dict().items()}
        decoder.load_state_dict(golden.weights(shapes))
        with torch.no_grad():
            raws.append(decoder.cuda().raw(latents, conditioning.plucker))
    assert raws[0].abs().mean().item() == pytest.approx(0.6562442, rel=1e-4)
    assert relative_error(raws[1], raws[0]) < 1e-2
    assert relative_error(raws[2], raws[0]) < 3e-2


def test_auto_takes_our_kernels() -> None:
    """Where triton works, with and without mamba-ssm."""
    backend = choose_scan_backend("auto")
    assert (backend.on_cuda, backend.on_cpu) == ("fused", "chunked")
    assert "fused on CUDA" in describe_scan_backend(backend)


def test_double_precision_is_refused() -> None:
    """The kernels would compute in float32 without a word."""
    projected, weights = make_case(1, 5, SMALL)
    with pytest.raises(ValueError, match="found float64 tokens"):
        choose_scan_backend("fused").both_directions(projected, *weights)
