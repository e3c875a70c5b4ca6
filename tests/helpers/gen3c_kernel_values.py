"""Runs GEN3C's kernels in triton's interpreter beside torch and prints relative errors as JSON.

A program of its own, because the interpreter must be chosen before triton is imported.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
from torch import Tensor

from lyra_ns.gen3c.layers import rotated, rounded_rows
from lyra_ns.gen3c.triton import add_and_modulate, add_gated, normalise_and_rotate, round_rows
from tests.helpers.small_gen3c import drawn

WIDTH, NUM_TOKENS, NUM_HEADS = 48, 7, 2


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def in_torch(
    stream: Tensor, addend: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor
) -> list[Tensor]:
    added = stream + (addend if gate is None else gate[:, None] * addend)
    normed = torch.nn.functional.layer_norm(added, (WIDTH,), eps=1e-6)
    return [added, normed * (1 + scale[:, None]) + shift[:, None]]


def sums() -> dict[str, float]:
    stream, branch, positions = (
        drawn(2, NUM_TOKENS, WIDTH),
        drawn(2, NUM_TOKENS, WIDTH, seed=1),
        drawn(1, NUM_TOKENS, WIDTH),
    )
    gate, shift, scale = (drawn(2, WIDTH, seed=seed) for seed in (2, 3, 4))
    errors = {}
    for name, addend, factor in (("add, gate, norm", branch, gate), ("add, norm", positions, None)):
        expected = in_torch(stream, addend, factor, shift, scale)
        untouched = stream.clone()
        for in_place in (False, True):
            given = stream.clone()
            found = add_and_modulate(given, addend, factor, shift, scale, 1e-6, in_place)
            assert torch.equal(given, found[0] if in_place else untouched)
            worst = max(relative(a, b) for a, b in zip(found, expected, strict=True))
            errors[name] = max(worst, errors.get(name, 0.0))
    errors["add, gate"] = relative(add_gated(stream.clone(), branch, gate), stream + gate[:, None] * branch)
    return errors


def heads() -> dict[str, float]:
    projected, weight = drawn(2, NUM_TOKENS, WIDTH), drawn(WIDTH // NUM_HEADS, seed=1)
    angles = drawn(NUM_TOKENS, WIDTH // NUM_HEADS, seed=2)
    errors = {}
    for name, rotation in (("rotated", (angles.cos(), angles.sin())), ("not rotated", None)):
        split = projected.unflatten(2, (NUM_HEADS, -1))
        normed = split * torch.rsqrt(split.square().mean(-1, keepdim=True) + 1e-5) * weight
        found = normalise_and_rotate(projected.clone(), NUM_HEADS, weight, 1e-5, rotation)
        errors[name] = relative(found, rotated(normed, rotation))
    return errors


def rounding() -> dict[str, float]:
    rows = drawn(NUM_TOKENS, WIDTH) * torch.logspace(-3, 3, NUM_TOKENS)[:, None]
    rows[0] = 0
    (found, found_scale), (expected, expected_scale) = round_rows(rows), rounded_rows(rows)
    # The interpreter forgets the carry where rounding reaches the next power of two.
    found, expected = found.float(), expected.float()
    comparable = torch.frexp(expected).mantissa.abs() != 0.5
    assert comparable.float().mean() > 0.7
    return {
        "rounded": relative(found[comparable], expected[comparable]),
        "scales": relative(found_scale[1:], expected_scale[1:]),
    }


def whole_block() -> dict[str, float]:
    """A block that believes to be on CUDA."""
    from lyra_ns.gen3c import layers
    from tests.helpers.gen3c_speed_cases import guided, prepared

    stock = guided(prepared())
    transformer = prepared(layers.use_own_blocks)
    layers._plain_add_norm, layers._plain_add = layers._fused_add_norm, layers._fused_add
    layers.Gen3CAttnProcessor._prepared = lambda self, projected, num_heads, norm, rotation: (  # type: ignore[method-assign]
        normalise_and_rotate(projected, num_heads, norm.weight, norm.eps, rotation)
    )
    return {"block": relative(guided(transformer), stock)}


if __name__ == "__main__":
    with torch.no_grad():
        print(json.dumps(sums() | heads() | rounding() | whole_block()))
