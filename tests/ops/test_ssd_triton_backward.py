"""The gradients of the state scan in Triton kernels equal those of the recurrence; they compile for Hopper.

Run as a program, this file prints the errors of CASES as JSON: the interpreter must be chosen before triton
is imported, hence in a process of its own.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.interpreter import interpreted
from tests.ops.test_ssd_triton import (
    INTEGERS,
    SHARED_MEMORY,
    SIZES,
    Case,
    compiled,
    draw,
    small_tiles,
    stack_bytes,
    tile,
    truth,
)

pytest.importorskip("triton.tools.tensor_descriptor")

from lyra_ns.ops import ssd_triton_backward_kernels
from lyra_ns.ops.ssd_triton_backward import ScanGradients, ssd_backward
from lyra_ns.ops.ssd_triton_backward_kernels import HOPPER_BACKWARD_TILES, BackwardTiles

CASES = {
    "two segments": Case(1, 70, 1, 2, small_tiles(32, 32, 2)),
    "batch": Case(2, 37, 2, 2, small_tiles(32, 32, 3)),
    "less than a chunk": Case(1, 5, 1, 1, small_tiles(32, 32, 8)),
    "one segment per chunk": Case(1, 100, 1, 1, small_tiles(32, 32, 100)),
    "three heads a group": Case(1, 40, 2, 3, small_tiles(32, 32, 2)),
    "wide state in parts": Case(1, 70, 1, 2, small_tiles(32, 32, 2), channels=32, state=64),
    "hardly fades": Case(1, 100, 1, 2, small_tiles(32, 32, 3), rate=1e-3),
    "fades fast": Case(1, 100, 1, 2, small_tiles(32, 32, 3), rate=10.0),
    "half precision": Case(1, 70, 1, 2, small_tiles(32, 32, 2), dtype=torch.float16),
}
TOLERANCES = {torch.float32: 1e-5, torch.float16: 6e-4}
SMALL_SUMS = 16
"""State columns of one program in the small cases."""


def gradients(case: Case) -> tuple[ScanGradients, ScanGradients]:
    """Those of the kernels, and those of the recurrence in float64."""
    inputs = draw(case)
    grad_y = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    tiles = BackwardTiles(walk=case.tiles, sum_state=SMALL_SUMS)
    found = ssd_backward(grad_y, **inputs, tiles=tiles)
    leaves = {name: tensor.double().requires_grad_() for name, tensor in inputs.items()}
    expected = torch.autograd.grad(truth(leaves), list(leaves.values()), grad_y.double())
    by_name = dict(zip(inputs, expected, strict=True))
    return found, ScanGradients(**by_name)


def errors(case: Case) -> dict[str, float]:
    """Norm of each difference relative to the gradient's norm; both runs are the same to the bit."""
    (found, expected), (again, _) = gradients(case), gradients(case)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert (found.x.dtype, found.write.dtype, found.decay.dtype) == (case.dtype, case.dtype, torch.float32)
    pairs = zip(ScanGradients._fields, found, expected, strict=True)
    return {name: ((a.double() - b).norm() / b.norm()).item() for name, a, b in pairs}


def check_empty(batch: int, num_tokens: int) -> None:
    """Gradients of no tokens have their shapes, and those of a head's numbers are zero."""
    inputs = draw(Case(batch, num_tokens, 1, 2, small_tiles(32, 32, 2)))
    found = ssd_backward(torch.zeros_like(inputs["x"]), **inputs)
    assert all(getattr(found, name).shape == tensor.shape for name, tensor in inputs.items())
    assert not any(tensor.any() for tensor in found)


@pytest.fixture(scope="module")
def interpreted_errors() -> dict[str, dict[str, float]]:
    """Errors of all cases by name, from one process with the interpreter."""
    return json.loads(interpreted(__file__))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equals_gradients_of_the_recurrence(
    interpreted_errors: dict[str, dict[str, float]], name: str
) -> None:
    """All seven, for any length, grouping and tiling, fast and slow decay."""
    found = interpreted_errors[name]
    assert len(found) == 7
    assert max(found.values()) < TOLERANCES[CASES[name].dtype], found


def test_refuses_what_it_cannot_read() -> None:
    """Tensors on the CPU without the interpreter, and chunks of several blocks."""
    inputs = draw(CASES["less than a chunk"])
    with pytest.raises(ValueError, match="need CUDA tensors"):
        ssd_backward(inputs["x"], **inputs)
    with pytest.raises(
        ValueError, match=r"grad_y must be of the shape of x, \(1, 5, 1, 16\), found \(1, 4, 1"
    ):
        ssd_backward(inputs["x"][:, :4], **inputs)
    with pytest.raises(ValueError, match="a chunk must be one block of rows, found chunk 256"):
        BackwardTiles(walk=replace(HOPPER_BACKWARD_TILES.walk, chunk=256))


CHUNK = HOPPER_BACKWARD_TILES.walk.chunk
ROWS, HALF, STATE = tile(CHUNK, 64), tile(CHUNK // 2, 64), tile(64, 256)
KERNELS: dict[str, tuple[dict[str, str], dict[str, Any], int]] = {
    "written_gradients": (
        {
            **dict.fromkeys(("x_tiles", "grad_tiles", "grad_x_tiles"), ROWS),
            **dict.fromkeys(("write_tiles", "read_tiles"), tile(CHUNK, 256)),
            **dict.fromkeys(("behind_tiles", "at_end_tiles"), STATE),
        },
        {"STAGES": HOPPER_BACKWARD_TILES.written_stages},
        HOPPER_BACKWARD_TILES.written_warps,
    ),
    "product_gradients": (
        {
            **dict.fromkeys(("x_tiles", "grad_tiles"), HALF),
            **dict.fromkeys(("write_tiles", "read_tiles"), tile(CHUNK // 2, 256)),
            "result_tiles": tile(CHUNK // 2, CHUNK // 2),
        },
        {"BLOCK": CHUNK // 2, "STAGES": HOPPER_BACKWARD_TILES.product_stages},
        HOPPER_BACKWARD_TILES.product_warps,
    ),
    "sum_over_heads": (
        {
            "row_tiles": ROWS,
            **dict.fromkeys(("state_tiles", "start_tiles"), tile(64, HOPPER_BACKWARD_TILES.sum_state)),
            **dict.fromkeys(
                ("own_tiles", "other_tiles", "result_tiles"), tile(CHUNK, HOPPER_BACKWARD_TILES.sum_state)
            ),
            "product_tiles": tile(CHUNK, CHUNK),
        },
        {
            "BLOCK_STATE": HOPPER_BACKWARD_TILES.sum_state,
            "OF_READ": True,
            "STAGES": HOPPER_BACKWARD_TILES.sum_stages,
        },
        HOPPER_BACKWARD_TILES.sum_warps,
    ),
}
SPILLED = {"written_gradients": 8, "product_gradients": 0, "sum_over_heads": 0}
"""Bytes of a thread that do not fit into registers: two words are not worth smaller tiles."""


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_fit_hopper(tmp_path: Path, name: str) -> None:
    """With the default tiles: tensor cores in use, registers hold what they can, shared memory suffices."""
    tensors, constants, num_warps = KERNELS[name]
    kernel = compiled(
        getattr(ssd_triton_backward_kernels, name), {**INTEGERS, **tensors}, {**SIZES, **constants}, num_warps
    )
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert kernel.metadata.shared <= SHARED_MEMORY
    assert stack_bytes(kernel.asm["cubin"], tmp_path) <= SPILLED[name]


if __name__ == "__main__":
    check_empty(batch=1, num_tokens=0)
    check_empty(batch=0, num_tokens=5)
    print(json.dumps({name: errors(case) for name, case in CASES.items()}))
