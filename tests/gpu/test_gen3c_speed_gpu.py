"""GEN3C's speed on a GPU: kernels against torch, policies with equal latents, 8 bits, memory at full size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.gen3c.layers import (
    LARGEST,
    can_multiply,
    keep_positions,
    multiply,
    rotated,
    rounded_rows,
    use_eight_bits,
    use_own_attention,
    use_own_blocks,
)
from lyra_ns.gen3c.memory import POLICIES, ClipSize, apply_memory_policy, memory_needs
from lyra_ns.gen3c.step_cache import StepCache, StepCacheSettings
from lyra_ns.gen3c.transformer import Evaluation
from tests.helpers.gen3c_speed_cases import guided, latents_of, prepared, relative, small_pipeline
from tests.helpers.small_gen3c import drawn, small_transformer

pytestmark = pytest.mark.gpu

SMALL = ClipSize(17, 32, 48)
WIDTH, NUM_HEADS = 4096, 32
"""Of the full network."""


def on_gpu(*shape: int, seed: int = 0) -> Tensor:
    return drawn(*shape, seed=seed).to("cuda", torch.bfloat16)


def widened(*tensors: Tensor) -> list[Tensor]:
    return [tensor.float() for tensor in tensors]


def share_unequal(found: Tensor, expected: Tensor) -> float:
    """Numbers that are rounded to another neighbour: the kernels multiply and add at once."""
    return (found != expected.bfloat16()).float().mean().item()


@pytest.mark.parametrize("num_samples", [1, 2])
def test_sums_and_norms_are_those_of_float32(num_samples: int) -> None:
    from lyra_ns.gen3c.triton import add_and_modulate, add_gated

    stream, branch = on_gpu(num_samples, 70, WIDTH), on_gpu(num_samples, 70, WIDTH, seed=1)
    gate, shift, scale = (on_gpu(num_samples, WIDTH, seed=seed) for seed in (2, 3, 4))
    positions = on_gpu(1, 70, WIDTH, seed=5)
    wide, addend = widened(stream, branch)
    factor, offset, gain = (part[:, None] for part in widened(gate, shift, scale))
    added, normed = add_and_modulate(stream, branch, gate, shift, scale, 1e-6, False)
    expected = wide + factor * addend
    assert share_unequal(added, expected) < 1e-3
    norm = torch.nn.functional.layer_norm(added.float(), (WIDTH,), eps=1e-6) * (1 + gain) + offset
    assert relative(normed, norm) < 3e-3
    added, _ = add_and_modulate(stream, positions, None, shift, scale, 1e-6, False)
    assert share_unequal(added, wide + positions.float()) < 1e-3
    assert share_unequal(add_gated(stream, branch, gate), expected) < 1e-3


@pytest.mark.parametrize("has_rotation", [True, False])
def test_rotation_is_that_of_float32(has_rotation: bool) -> None:
    from lyra_ns.gen3c.triton import normalise_and_rotate

    projected, weight = on_gpu(2, 70, WIDTH), on_gpu(128, seed=1)
    angles = drawn(70, 128, seed=2).cuda()
    rotation = (angles.cos(), angles.sin()) if has_rotation else None
    heads = projected.float().unflatten(2, (NUM_HEADS, -1))
    normed = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + 1e-5) * weight.float()
    expected = rotated(normed, rotation)
    assert relative(normalise_and_rotate(projected, NUM_HEADS, weight, 1e-5, rotation), expected) < 3e-3


def test_rows_are_rounded_as_torch_rounds_them() -> None:
    """Scales up to their last bit, and under the kernel's scales the same numbers.

    On CUDA torch divides by a number by multiplying with its rounded reciprocal, so that its own scales are
    off by a bit in half of the rows, which sends ties elsewhere.
    """
    from lyra_ns.gen3c.triton import round_rows

    for width in (WIDTH, 4 * WIDTH, 48):
        rows = on_gpu(33, width) * torch.logspace(-3, 3, 33, device="cuda", dtype=torch.bfloat16)[:, None]
        found, scale = round_rows(rows)
        torch.testing.assert_close(scale, rounded_rows(rows)[1])
        expected = (rows.float() / scale).clamp(-LARGEST, LARGEST).to(found.dtype)
        assert torch.equal(found.float(), expected.float())


def test_eight_bit_products_are_those_of_the_rounded_numbers() -> None:
    if not can_multiply(torch.device("cuda")):
        pytest.skip("no 8-bit tensor cores with a scale for each row")
    rows, weight = on_gpu(130, 4096), on_gpu(512, 4096, seed=1)
    weight8, scale = rounded_rows(weight)
    rows8, row_scale = rounded_rows(rows)
    exact = (rows8.double() * row_scale) @ (weight8.double() * scale).t()
    assert relative(multiply(rows, weight8, scale).double(), exact) < 0.01


def test_own_blocks_are_as_close_to_float32_as_diffusers() -> None:
    exact = guided(small_transformer())
    stock = guided(small_transformer().to("cuda", torch.bfloat16))
    ours = prepared(use_own_blocks).to("cuda", torch.bfloat16)
    keep_positions(ours)
    assert relative(guided(ours), exact) < 1.2 * relative(stock, exact) + 1e-3
    attention = prepared(use_own_attention).to("cuda", torch.bfloat16)
    assert relative(guided(attention), exact) < 1.2 * relative(stock, exact) + 1e-3


def test_backends_run() -> None:
    transformer = small_transformer().to("cuda", torch.bfloat16)
    expected = guided(transformer)
    use_own_attention(transformer, backend="_native_flash")
    assert relative(guided(transformer), expected) < 0.05


@pytest.fixture(scope="module")
def by_policy() -> dict[str, Tensor]:
    """Latents under each policy; the second clip is the one with everything prefetched."""
    found = {}
    for policy in POLICIES:
        pipeline = small_pipeline()
        apply_memory_policy(pipeline, policy, "cuda", size=SMALL)
        latents_of(pipeline)
        found[policy] = latents_of(pipeline)
    return found


@pytest.mark.parametrize("policy", ["balanced", "low"])
def test_policies_give_the_same_latents(by_policy: dict[str, Tensor], policy: str) -> None:
    assert relative(by_policy[policy], by_policy["fast"]) < 0.05
    assert relative(by_policy["fast"], latents_of(small_pipeline())) < 0.2


def test_low_memory_keeps_no_block_on_the_gpu() -> None:
    for eight_bits in (False, True):
        pipeline = small_pipeline()
        pipeline.transformer.to("cuda")
        apply_memory_policy(pipeline, "low", "cuda", size=SMALL, eight_bits=eight_bits)
        blocks = pipeline.transformer.transformer_blocks
        assert not any(tensor.is_cuda for tensor in blocks.state_dict().values())


def test_low_memory_with_eight_bits_and_step_cache(by_policy: dict[str, Tensor]) -> None:
    pipeline = small_pipeline()
    apply_memory_policy(pipeline, "low", "cuda", size=SMALL, eight_bits=True)
    assert relative(latents_of(pipeline), by_policy["fast"]) < 0.3
    settings = StepCacheSettings(threshold=1e9, num_first=2, num_last=1)
    pipeline.evaluation = Evaluation(step_cache=StepCache(pipeline.transformer, settings))
    predicted = latents_of(pipeline, 8)
    assert pipeline.evaluation.step_cache.num_skipped > 0
    assert predicted.isfinite().all()
    assert torch.equal(latents_of(pipeline, 8), predicted)


def full_network() -> Any:
    """The full network with random weights, in bfloat16 on the GPU."""
    from benchmarks.generation.network import FULL_CONFIG, random_network

    return random_network(FULL_CONFIG, "cuda")


def test_the_full_network_needs_what_was_estimated() -> None:
    """A short clip of full resolution: one evaluation with own blocks, then with 8-bit products."""
    from types import SimpleNamespace

    from benchmarks.full_size.inputs import Size
    from benchmarks.generation.network import evaluation_of

    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    size = Size(num_frames=33)
    before = torch.cuda.memory_allocated()
    network = full_network()
    exact = evaluation_of(network, size, "cuda")()
    keep_positions(network)
    use_own_blocks(network)
    torch.cuda.reset_peak_memory_stats()
    found = evaluation_of(network, size, "cuda")()
    peak = torch.cuda.max_memory_allocated() - before
    assert relative(found, exact) < 0.2
    strides = SimpleNamespace(temporal_compression_ratio=8, spatial_compression_ratio=8)
    vae = torch.nn.Module()
    vae.config = strides
    pipeline = SimpleNamespace(transformer=network, vae=vae, text_encoder=None)
    estimate = memory_needs(pipeline, "fast", ClipSize(**vars(size))).denoising
    assert peak < 1.02 * estimate
    assert estimate < 1.3 * peak
    use_eight_bits(network, "multiply")
    assert 1e-3 < relative(evaluation_of(network, size, "cuda")(), exact) < 0.8
