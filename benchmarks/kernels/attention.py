"""`python -m benchmarks.kernels.attention`: time and error of every form of attention on a CUDA device.

One scene of 8 heads with 64 channels in bfloat16, the case of the decoder. Errors are relative to float32 on
a sample of rows. `forms` compares the backends, `tiles` the sizes of our kernel's programs, `overlap` the
kernel that overlaps products and exponentials with the one that does not, `training` forward and backward.
Speed barely depends on the values; `--spread` makes scores flat (1), peaked (3) or so large that the bound of
every row fails (30), which times the slow way of our kernel.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from torch import Tensor

from benchmarks.environment import describe_environment
from benchmarks.full_size.measure import measure
from lyra_ns.ops.attention import AttentionName, attend_in_triton, choose_attention_backend
from lyra_ns.ops.attention_triton import AttentionTiles, attend, attend_in_eight_bits

Row = dict[str, Any]
Part = Literal["forms", "tiles", "overlap", "training"]
Form = Callable[[Tensor, Tensor, Tensor], Tensor]

NUM_HEADS, HEAD_DIM = 8, 64
NUM_SAMPLED_ROWS = 128
"""Queries whose exact result is computed."""

SMALL, TWO_GROUPS = AttentionTiles(), AttentionTiles(num_warps=8)
TILES = (
    *(replace(SMALL, polynomial_quarters=quarters) for quarters in (0, 1, 2)),
    *(replace(SMALL, polynomial_quarters=quarters, sum_columns=1) for quarters in (0, 1)),
    *(replace(SMALL, polynomial_quarters=quarters, query_in_registers=True) for quarters in (0, 1)),
    *(replace(SMALL, num_stages=stages) for stages in (2, 4)),
    *(replace(TWO_GROUPS, polynomial_quarters=quarters) for quarters in (0, 1)),
    *(replace(TWO_GROUPS, polynomial_quarters=quarters, sum_columns=1) for quarters in (0, 1)),
    replace(TWO_GROUPS, query_in_registers=True),
    replace(TWO_GROUPS, query_in_registers=True, sum_columns=1),
    replace(TWO_GROUPS, keys=128, num_stages=2),
    replace(TWO_GROUPS, queries=256),
    replace(TWO_GROUPS, queries=256, sum_columns=1),
    replace(TWO_GROUPS, queries=256, query_in_registers=True),
    replace(SMALL, queries=64, keys=128, num_stages=2),
    replace(SMALL, queries=64),
)
"""Programs that `tiles` times, the likely ones first."""


def random_parts(num_tokens: int, spread: float, requires_grad: bool = False) -> tuple[Tensor, ...]:
    """Query, key and value [1, N, H, D] as strided parts of one projection; scores deviate by spread^2."""
    torch.manual_seed(0)
    qkv = torch.randn(1, num_tokens, 3, NUM_HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    qkv[:, :, :2] *= spread
    return qkv.requires_grad_(requires_grad).unbind(2)


def exact_rows(parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Numbers of sampled rows, and their attention in float32, a head at a time."""
    query, key, value = (part[0] for part in parts)
    rows = torch.randperm(query.shape[0], device="cuda")[:NUM_SAMPLED_ROWS]
    heads = []
    for head in range(NUM_HEADS):
        scores = query[rows, head].float() @ key[:, head].float().T * HEAD_DIM**-0.5
        heads.append(scores.softmax(-1) @ value[:, head].float())
    return rows, torch.stack(heads, 1)


def form_row(form: Form, parts: tuple[Tensor, ...], truth: tuple[Tensor, Tensor], repeats: int) -> Row:
    """Time, speed and error of one form; the error's text where it does not run."""
    num_tokens = parts[0].shape[1]
    rows, exact = truth
    try:
        with torch.no_grad():
            found = form(*parts)[0, rows].float()
            time = measure(lambda: form(*parts), repeats).milliseconds
    except Exception as error:  # a backend that fails must not end the sweep
        return {"tokens": num_tokens, "failed": f"{type(error).__name__}: {error}"[:200]}
    teraflops = 4 * NUM_HEADS * HEAD_DIM * num_tokens**2 / time / 1e9
    return {
        "tokens": num_tokens,
        "ms": round(time, 2),
        "TFLOP/s": round(teraflops),
        "error": f"{((found - exact).norm() / exact.norm()).item():.2e}",
    }


def available_forms() -> dict[str, Form]:
    """Every named backend that can run here."""
    forms: dict[str, Form] = {}
    for name in get_args(AttentionName):
        try:
            forms[name] = choose_attention_backend(name)
        except ValueError as error:
            print(f"{name}: {error}")
    return forms


def compare_forms(num_tokens: int, repeats: int, spread: float) -> list[Row]:
    """Rows of all backends."""
    parts = random_parts(num_tokens, spread)
    truth = exact_rows(parts)
    return [
        _shown({"form": name, **form_row(form, parts, truth, repeats)})
        for name, form in available_forms().items()
    ]


def compare_tiles(num_tokens: int, repeats: int, spread: float) -> list[Row]:
    """Rows of cuDNN and of our kernel with every program of TILES, with 16-bit and with 8-bit scores."""
    parts = random_parts(num_tokens, spread)
    truth = exact_rows(parts)
    by_cudnn = form_row(choose_attention_backend("cudnn"), parts, truth, repeats)
    rows = [_shown({"form": "cudnn", **by_cudnn})]
    for tiles in TILES:
        rows.append(
            _tiles_row("triton", lambda *parts, t=tiles: attend(*parts, t)[0], tiles, parts, truth, repeats)
        )
    for tiles in (SMALL, TWO_GROUPS):
        form = lambda *parts, t=tiles: attend_in_eight_bits(*parts, t)  # noqa: E731
        rows.append(_tiles_row("fp8", form, tiles, parts, truth, repeats))
    return rows


def compare_overlap(num_tokens: int, repeats: int, spread: float) -> list[Row]:
    """Rows of our kernel that waits for exponentials, and of the overlapping one with some rings of slots."""
    from lyra_ns.ops import attention_gluon

    parts = random_parts(num_tokens, spread)
    truth = exact_rows(parts)
    waiting = lambda *parts: attend(*parts, AttentionTiles())[0]  # noqa: E731
    rows = [_shown({"form": "waiting", **form_row(waiting, parts, truth, repeats)})]
    before = attention_gluon.NUM_SLOTS
    for attention_gluon.NUM_SLOTS in (before, 4):
        row = form_row(attend_in_triton, parts, truth, repeats)
        rows.append(_shown({"form": "overlapped", "slots": attention_gluon.NUM_SLOTS, **row}))
    attention_gluon.NUM_SLOTS = before
    return rows


def _tiles_row(
    name: str,
    form: Form,
    tiles: AttentionTiles,
    parts: tuple[Tensor, ...],
    truth: tuple[Tensor, Tensor],
    repeats: int,
) -> Row:
    return _shown({"form": name, **asdict(tiles), **form_row(form, parts, truth, repeats)})


def compare_training(num_tokens: int, repeats: int, spread: float) -> list[Row]:
    """Forward plus backward of the backends that have one."""
    parts = random_parts(num_tokens, spread, requires_grad=True)
    weighting = torch.randn_like(parts[0])
    rows = []
    for name, form in available_forms().items():
        if name in ("auto", "fp8", "torch"):
            continue
        row: Row = {"form": name, "tokens": num_tokens}
        try:
            gradients = lambda form=form: torch.autograd.grad(form(*parts), parts, weighting)  # noqa: E731
            time = measure(gradients, repeats).milliseconds
            row["ms, forward and backward"] = round(time, 2)
        except Exception as error:  # as in form_row
            row["failed"] = f"{type(error).__name__}: {error}"[:200]
        rows.append(_shown(row))
    return rows


def _shown(row: Row) -> Row:
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def main(
    parts: tuple[Part, ...] = ("forms",),
    tokens: tuple[int, ...] = (56_320, 112_640, 225_280, 337_920),
    repeats: int = 3,
    spread: float = 1.0,
    output: Path | None = None,
) -> None:
    """Measure and print, each row as soon as it is known.

    Args:
        parts: What to compare.
        tokens: Lengths of the sequence; the decoder has 56 320 for each trajectory.
        repeats: Timed calls of each form.
        spread: Deviation of queries and keys.
        output: JSON file to write.
    """
    compare = {
        "forms": compare_forms,
        "tiles": compare_tiles,
        "overlap": compare_overlap,
        "training": compare_training,
    }
    results = {
        part: [row for count in tokens for row in compare[part](count, repeats, spread)] for part in parts
    }
    if output is not None:
        output.write_text(
            json.dumps({"environment": describe_environment("cuda"), **results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    tyro.cli(main)
