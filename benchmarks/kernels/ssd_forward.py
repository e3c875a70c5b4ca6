"""`python -m benchmarks.kernels.ssd_forward`: time of every stage of our state scan under different tiles.

Both directions of one layer of the decoder, side by side as 32 heads, in bfloat16, beside
`mamba_chunk_scan_combined` of mamba-ssm where it is installed. The likely tiles come first; what no longer
fits into `--seconds` is left out. Errors are relative to float64 on a shorter sequence.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn import functional

from benchmarks.environment import describe_environment
from benchmarks.full_size.measure import measure
from lyra_ns.ops import ssd_triton
from lyra_ns.ops.ssd import scan_states_in_torch
from lyra_ns.ops.ssd_triton import HOPPER_TILES, ScanTiles, ssd_forward

Row = dict[str, Any]
Inputs = dict[str, Tensor]

NUM_HEADS, NUM_GROUPS, CHANNELS, STATE = 32, 2, 64, 256
CHECKED_TOKENS = 8192
"""Length of the sequence that errors are measured on."""

WIDE = replace(HOPPER_TILES, chunk=256)
HALVED = replace(HOPPER_TILES, block_rows=64, read_warps=4, read_stages=1)
TILES = (
    HOPPER_TILES,
    WIDE,
    replace(HOPPER_TILES, exact_updates=False),
    replace(WIDE, exact_updates=False),
    HALVED,
    replace(HALVED, chunk=64),
    replace(HALVED, chunk=64, read_stages=2),
    replace(HOPPER_TILES, num_segments=16, read_heads=8),
    replace(HOPPER_TILES, num_segments=33, read_stages=1),
    replace(WIDE, num_segments=33, walk_stages=2),
    replace(HOPPER_TILES, walk_stages=2),
    replace(HOPPER_TILES, walk_heads=1, walk_warps=4, walk_stages=2),
    replace(HOPPER_TILES, walk_heads=4, block_state=128, walk_stages=2),
    replace(HOPPER_TILES, walk_heads=2, block_state=128, walk_warps=4, walk_stages=2),
    replace(HOPPER_TILES, block_tokens=32, walk_stages=4),
    replace(WIDE, num_segments=10_000),
)
"""What is timed, the likely ones first; the last walks no further than one chunk."""


def random_inputs(num_tokens: int) -> Inputs:
    """Inputs as a fresh decoder makes them: rates from 1 to 16, steps from 0.001 to 0.1, SiLU before."""
    torch.manual_seed(0)
    inner, shared = NUM_HEADS * CHANNELS, NUM_GROUPS * STATE
    rows = torch.randn(1, num_tokens, inner + 2 * shared, device="cuda", dtype=torch.bfloat16)
    x, write, read = functional.silu(rows).split([inner, shared, shared], -1)
    step_size = torch.exp(torch.empty(NUM_HEADS, device="cuda").uniform_(-6.9, -2.3))
    return {
        "x": x.unflatten(-1, (NUM_HEADS, CHANNELS)),
        "step": torch.randn(1, num_tokens, NUM_HEADS, device="cuda").mul(0.3).bfloat16(),
        "write": write.unflatten(-1, (NUM_GROUPS, STATE)),
        "read": read.unflatten(-1, (NUM_GROUPS, STATE)),
        "decay": -torch.empty(NUM_HEADS, device="cuda").uniform_(1, 16),
        "skip": torch.ones(NUM_HEADS, device="cuda"),
        "step_bias": torch.log(torch.expm1(step_size)),
    }


def exact(inputs: Inputs) -> Tensor:
    """The scan of torch in float64."""
    return scan_states_in_torch(**{name: tensor.double() for name, tensor in inputs.items()})


def relative_error(found: Tensor, expected: Tensor) -> str:
    """Norm of the difference relative to the expected norm."""
    return f"{((found.double() - expected).norm() / expected.norm()).item():.3e}"


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median time on the device, after one call that compiles and warms up."""
    return round(measure(function, repeats).milliseconds, 3)


def measure_ours(inputs: Inputs, checked: Inputs, expected: Tensor, tiles: ScanTiles, repeats: int) -> Row:
    """Times of all stages and of the whole, and the error; the error's text where it does not run."""
    try:
        row = stage_times(inputs, tiles, repeats)
        whole = milliseconds(lambda: ssd_forward(**inputs, tiles=tiles), repeats)
        error = relative_error(ssd_forward(**checked, tiles=tiles), expected)
    except Exception as error:  # tiles that do not fit must not end the sweep
        return {"failed": f"{type(error).__name__}: {error}"[:200]}
    return {**row, "whole": whole, "error": error}


def stage_times(inputs: Inputs, tiles: ScanTiles, repeats: int) -> Row:
    """Milliseconds of each kernel alone."""
    x, step, write, read = (inputs[name][0] for name in ("x", "step", "write", "read"))
    decay, skip, step_bias = (inputs[name] for name in ("decay", "skip", "step_bias"))
    elapsed, length, left = ssd_triton.accumulate(step, step_bias, decay, tiles)
    before, since_start, last_state, last_faded = ssd_triton.walk(x, write, elapsed, left, tiles)
    at_start = ssd_triton.join(last_state, last_faded, x.dtype)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    prepared = (before, at_start, elapsed, length, left, since_start, skip, tiles, y)
    stages: dict[str, Callable[[], object]] = {
        "accumulate": lambda: ssd_triton.accumulate(step, step_bias, decay, tiles),
        "walk": lambda: ssd_triton.walk(x, write, elapsed, left, tiles),
        "join": lambda: ssd_triton.join(last_state, last_faded, x.dtype),
        "read": lambda: ssd_triton.read_states(x, write, read, *prepared),
    }
    return {name: milliseconds(stage, repeats) for name, stage in stages.items()}


def measure_theirs(inputs: Inputs, checked: Inputs, expected: Tensor, repeats: int) -> Row:
    """Time and error of mamba-ssm; ImportError where it is missing."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    def scan(inputs: Inputs) -> Tensor:
        parts = [inputs[name] for name in ("x", "step", "decay", "write", "read")]
        options = {"chunk_size": 256, "D": inputs["skip"], "dt_bias": inputs["step_bias"]}
        return mamba_chunk_scan_combined(*parts, **options, dt_softplus=True)

    return {
        "whole": milliseconds(lambda: scan(inputs), repeats),
        "error": relative_error(scan(checked), expected),
    }


def named(tiles: ScanTiles) -> str:
    """What differs from the default tiles."""
    changes = [
        f"{field.name}={getattr(tiles, field.name)}"
        for field in fields(tiles)
        if getattr(tiles, field.name) != getattr(HOPPER_TILES, field.name)
    ]
    return " ".join(changes) or "default"


@torch.no_grad()
def rows_within(num_tokens: int, seconds: float, repeats: int) -> Iterator[Row]:
    """One row for mamba-ssm, then one for each of TILES while there is time."""
    end = time.monotonic() + seconds
    inputs, checked = random_inputs(num_tokens), random_inputs(CHECKED_TOKENS)
    expected = exact(checked)
    try:
        yield {"tiles": "mamba-ssm", **measure_theirs(inputs, checked, expected, repeats)}
    except ImportError as error:
        print(f"mamba-ssm is not measured: {error}")
    for tiles in TILES:
        if time.monotonic() > end:
            print(f"not measured for lack of time: {named(tiles)} and what follows")
            return
        row = measure_ours(inputs, checked, expected, tiles, repeats)
        yield {"tiles": named(tiles), **row, "settings": asdict(tiles)}


COLUMNS = ("accumulate", "walk", "join", "read", "whole", "error")


def printed(row: Row) -> str:
    """One line of the table, in milliseconds."""
    if "failed" in row:
        return f"{row['failed']}  {row['tiles']}"
    return "".join(f"{row.get(column, '-')!s:>12}" for column in COLUMNS) + f"  {row['tiles']}"


def main(
    num_tokens: int = 337_920, seconds: float = 90.0, repeats: int = 10, output: Path | None = None
) -> None:
    """Print a line per tiling as it is measured; write all of it to `output` as JSON."""
    rows = []
    print("".join(f"{column:>12}" for column in COLUMNS), flush=True)
    for row in rows_within(num_tokens, seconds, repeats):
        print(printed(row), flush=True)
        rows.append(row)
    if output:
        content = {"environment": describe_environment("cuda"), "num_tokens": num_tokens, "rows": rows}
        output.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
