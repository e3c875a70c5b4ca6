"""The state scan in Triton kernels equals the recurrence, in Triton's interpreter; it compiles for Hopper.

Run as a program, this file prints the errors of CASES as JSON: the interpreter must be chosen before triton
is imported, hence in a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.helpers.interpreter import interpreted

triton = pytest.importorskip("triton")
pytest.importorskip("triton.tools.tensor_descriptor")

from lyra_ns.ops import ssd_triton  # noqa: E402
from lyra_ns.ops.ssd import recurrent_states  # noqa: E402
from lyra_ns.ops.ssd_triton import HOPPER_TILES, ScanTiles, ssd_forward  # noqa: E402

SHARED_MEMORY = 227 * 1024
"""Bytes that a block of threads may have on Hopper."""


@dataclass(frozen=True)
class Case:
    """One call: its shapes, its tiles and what is special about its numbers."""

    batch: int
    tokens: int
    groups: int
    heads_per_group: int
    tiles: ScanTiles
    channels: int = 16
    state: int = 16
    dtype: torch.dtype = torch.float32
    rate: float = 1.0
    """Factor of the decay: far below one every segment sees the first, far above one none does."""
    raw_step: float = -2.0
    """Mean of the raw steps."""


def small_tiles(chunk: int, block_rows: int, num_segments: int, **others: Any) -> ScanTiles:
    """Tiles that fit the small cases."""
    return ScanTiles(
        chunk=chunk,
        block_rows=block_rows,
        num_segments=num_segments,
        **{"block_tokens": 16, "block_state": 16, **others},
    )


CASES = {
    "one block a chunk": Case(1, 50, 1, 2, small_tiles(16, 16, 2)),
    "two blocks a chunk": Case(1, 100, 2, 2, small_tiles(32, 16, 2)),
    "batch": Case(2, 37, 2, 2, small_tiles(16, 16, 3)),
    "one segment per chunk": Case(1, 45, 1, 1, small_tiles(16, 16, 100)),
    "one segment": Case(1, 70, 1, 2, small_tiles(32, 16, 1)),
    "less than a chunk": Case(1, 5, 1, 1, small_tiles(32, 16, 8)),
    "three heads a group": Case(1, 40, 2, 3, small_tiles(16, 16, 2)),
    "wide state in parts": Case(1, 40, 1, 2, small_tiles(32, 32, 2), channels=32, state=64),
    "four heads walk together": Case(1, 40, 1, 4, small_tiles(16, 16, 2, walk_heads=4, read_heads=2)),
    "hardly fades": Case(1, 100, 1, 2, small_tiles(16, 16, 3), rate=1e-3),
    "fades at once": Case(1, 100, 1, 2, small_tiles(32, 16, 3), rate=1e3),
    "long steps": Case(1, 60, 1, 2, small_tiles(32, 16, 2), raw_step=40.0),
    "short steps": Case(1, 60, 1, 2, small_tiles(32, 16, 2), rate=1e-2, raw_step=-18.0),
    "half precision": Case(1, 70, 1, 2, small_tiles(32, 16, 2), dtype=torch.float16),
    "half precision rounded": Case(
        1, 70, 1, 2, small_tiles(32, 16, 2, exact_updates=False), dtype=torch.float16
    ),
}
TOLERANCES = {torch.float32: 1e-5, torch.float16: 6e-4}


def draw(case: Case) -> dict[str, torch.Tensor]:
    """Inputs of one call; x, write and read are views into wider rows, as the convolution leaves them."""
    generator = torch.Generator().manual_seed(0)
    heads = case.groups * case.heads_per_group
    inner, shared = heads * case.channels, case.groups * case.state
    rows = torch.randn(case.batch, case.tokens, inner + 2 * shared, generator=generator).to(case.dtype)
    x, write, read = rows.split([inner, shared, shared], -1)
    normal = [torch.randn(heads, generator=generator) for _ in range(3)]
    step = torch.randn(case.batch, case.tokens, heads, generator=generator) + case.raw_step
    return {
        "x": x.unflatten(-1, (heads, -1)),
        "step": step.to(case.dtype),
        "write": write.unflatten(-1, (case.groups, -1)),
        "read": read.unflatten(-1, (case.groups, -1)),
        "decay": -case.rate * normal[0].exp(),
        "skip": normal[1],
        "step_bias": normal[2],
    }


def truth(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same in float64, token after token."""
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    step = functional.softplus(exact["step"] + exact["step_bias"])
    y = recurrent_states(exact["x"], step, exact["decay"], exact["write"], exact["read"])
    return y + exact["skip"][:, None] * exact["x"]


def relative_error(case: Case) -> float:
    """Norm of the difference from the recurrence, relative to its norm."""
    inputs = draw(case)
    expected = truth(inputs)
    found = ssd_forward(**inputs, tiles=case.tiles)
    assert found.dtype == case.dtype
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def interpreted_errors() -> dict[str, float]:
    """Errors of all cases by name, from one process with the interpreter."""
    return json.loads(interpreted(__file__))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_equals_recurrence(interpreted_errors: dict[str, float], name: str) -> None:
    """Any length, grouping and tiling, fast and slow decay."""
    assert interpreted_errors[name] < TOLERANCES[CASES[name].dtype]


def test_exact_updates_are_more_exact(interpreted_errors: dict[str, float]) -> None:
    """The second product brings back what rounding the faded tokens loses."""
    assert interpreted_errors["half precision"] < interpreted_errors["half precision rounded"]


def test_refuses_what_it_cannot_read() -> None:
    """Tensors on the CPU without the interpreter, and tiles that do not fit each other."""
    with pytest.raises(ValueError, match="need CUDA tensors"):
        ssd_forward(**draw(CASES["less than a chunk"]))
    with pytest.raises(ValueError, match="one or two blocks of rows"):
        ScanTiles(chunk=256, block_rows=64)


def compiled(kernel: Any, tensors: dict[str, str], constants: dict[str, Any], num_warps: int) -> Any:
    """The kernel for a Hopper GPU, which need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        name: "constexpr" if name in constants else tensors.get(name, "*fp32") for name in kernel.arg_names
    }
    # What the launcher finds out about every tensor that torch allocates.
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, kind in enumerate(signature.values()) if kind[0] == "*"
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})


def stack_bytes(binary: bytes, folder: Path) -> int:
    """Bytes per thread that did not fit into registers."""
    (folder / "kernel.cubin").write_bytes(binary)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run(
        [tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    )
    found = re.search(r"STACK:(\d+)", usage.stdout)
    assert found, usage.stdout
    return int(found[1])


SIZES = {"NUM_HEADS": 32, "HEADS_PER_GROUP": 16, "CHANNELS": 64, "STATE": 256, "CHUNK": HOPPER_TILES.chunk}
INTEGERS = {"num_chunks": "i32", "chunks_per_segment": "i32", "padded_tokens": "i32"}


def tile(rows: int, columns: int) -> str:
    """Type of a descriptor."""
    return f"tensordesc<bf16[{rows}, {columns}]>"


def test_walk_fits_hopper(tmp_path: Path) -> None:
    """With the default tiles: tensor cores in use, no spilled register, shared memory within the limit."""
    tiles = HOPPER_TILES
    walked = tiles.walk_heads * 64
    tensors = {
        **INTEGERS,
        "x_tiles": tile(tiles.block_tokens, walked),
        "write_tiles": tile(tiles.block_tokens, tiles.block_state),
        "before_tiles": tile(walked, tiles.block_state),
    }
    constants = {
        **SIZES,
        "BLOCK_ROWS": tiles.block_rows,
        "HEADS": tiles.walk_heads,
        "BLOCK_STATE": tiles.block_state,
        "BLOCK_TOKENS": tiles.block_tokens,
        "EXACT": tiles.exact_updates,
        "REVERSED": False,
        "STAGES": tiles.walk_stages,
    }
    kernel = compiled(ssd_triton.walk_segments, tensors, constants, tiles.walk_warps)
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert kernel.metadata.shared <= SHARED_MEMORY
    assert stack_bytes(kernel.asm["cubin"], tmp_path) == 0


def test_read_out_fits_hopper(tmp_path: Path) -> None:
    """With the default tiles: tensor cores in use, no spilled register, shared memory within the limit."""
    tiles = HOPPER_TILES
    rows = tiles.block_rows
    tensors = {
        **INTEGERS,
        "x_tiles": tile(rows, 64),
        "write_tiles": tile(rows, 256),
        "read_tiles": tile(rows, 256),
        "before_tiles": tile(64, 256),
        "at_start_tiles": tile(64, 256),
        "y_tiles": tile(rows, 64),
    }
    constants = {**SIZES, "HEADS": tiles.read_heads, "BLOCK_ROWS": rows, "STAGES": tiles.read_stages}
    kernel = compiled(ssd_triton.read_out, tensors, constants, tiles.read_warps)
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert kernel.metadata.shared <= SHARED_MEMORY
    assert stack_bytes(kernel.asm["cubin"], tmp_path) == 0


if __name__ == "__main__":
    print(json.dumps({name: relative_error(case) for name, case in CASES.items()}))
