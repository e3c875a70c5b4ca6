"""Tables of what was measured at the paper's size, from the file of `python -m benchmarks.full_size`.

Each begins with a sentence of its own, so that nothing of it stands in the document while its part of the
file is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.full_size_goals import OFFICIAL_WAY, goals_table
from benchmarks.table_text import NOTHING, Row, cell, origin, read, table

RESULT_FILE = "full_size_h200.json"
"""The file that the documentation shows."""
PLUCKER_TITLES = {
    "plain encoder, six views": "diffusers' own encoder",
    "fast encoder, six views, as many as fit at once": "ours, as many trajectories at once as fit",
    "fast encoder, six views, 1 at once": "ours, one trajectory at a time",
    "ray maps alone, six views": "the ray maps alone, not encoded",
    "repeated cameras, memory": "cameras seen before, kept in memory",
    "repeated cameras, disk": "cameras seen before, read from the disk",
}
"""What the rows of the Plücker stage are."""
ENCODER_TITLES = {
    "plain encoder in bfloat16 against float32": "diffusers' own encoder",
    "fast encoder in bfloat16 against float32": "ours",
}
"""What the rows of the encoders' errors are."""
RESPONSE_TITLES = {"ewa": "EWA splats", "ray3d": "3DGUT"}
"""What the responses of the renderer are called."""


def forward_table(part: Row) -> str:
    """Time of the forward pass by way and trajectories; the speed and memory beside it."""
    return _forward_pass(
        part,
        "Forward pass, latents and ray latents to pruned Gaussians, by the number of trajectories: "
        "milliseconds, and how many times as fast as the first way.",
    )


def ablations_table(part: Row) -> str:
    """Time of the network without Mamba, whose blocks are all attention."""
    return _forward_pass(
        part,
        "The same network with attention in place of every Mamba block: milliseconds, and how many times "
        "as fast as the first way.",
    )


def _forward_pass(part: Row, sentence: str) -> str:
    rows = part["rows"]
    ways, views = _values(rows, "way"), sorted(_values(rows, "num_views"))
    by_case = {(row["way"], row["num_views"]): row for row in rows}
    first = OFFICIAL_WAY if OFFICIAL_WAY in ways else ways[0]
    lines = []
    for way in ways:
        cells = [_time_beside(by_case.get((way, count)), by_case.get((first, count))) for count in views]
        peak = by_case.get((way, views[-1]), {}).get("peak_gib")
        lines.append([way, *cells, cell([peak], 1)])
    titles = ["way", *map(_trajectories, views), f"peak GiB, {_trajectories(views[-1])}"]
    return f"{sentence}\n\n{table(titles, lines)}"


def _time_beside(row: Row | None, reference: Row | None) -> str:
    if row is None:
        return NOTHING
    text = _milliseconds(row["ms"])
    return text if reference in (None, row) else f"{text} ({_times(reference['ms'] / row['ms'])})"


def errors_table(part: Row) -> str:
    """Distance of each way's raw outputs from float32."""
    rows = part["rows"]
    lines = [[row["way"], f"{row['relative_error']:.1e}"] for row in rows]
    versions = part["environment"]["versions"]
    without = "" if versions.get("causal-conv1d") else ", causal-conv1d not installed"
    views = " and ".join(map(_trajectories, sorted(_values(rows, "num_views"))))
    return (
        "Relative error of the network's raw outputs against the same random weights all in float32, "
        f"{views}{without}.\n\n" + table(["way", "relative error"], lines)
    )


def low_precision_table(part: Row) -> str:
    """What the form of attention does to renders of the shipped decoder."""
    rows = part["rows"]
    first = rows[0]["form"]
    lines = [
        [
            row["form"],
            row["group"],
            cell([row["psnr"]], 3),
            cell([row["lpips"]], 4),
            cell([row["psnr_against_first"]], 1),
        ]
        for row in rows
    ]
    titles = ["attention", "views", "PSNR dB", "LPIPS", f"PSNR dB of the renders against those of {first}"]
    return (
        "Renders of the small decoder that ships, on held-out scenes, by the form of its attention.\n\n"
        + table(titles, lines)
    )


def plucker_table(part: Row) -> str:
    """Time of the Plücker stage, and the encoders' errors."""
    rows = part["rows"]
    timed = [row for row in rows if "ms" in row]
    reference = timed[0]
    lines = [
        [
            PLUCKER_TITLES.get(row["what"], row["what"]),
            _milliseconds(row["ms"]),
            _times(reference["ms"] / row["ms"])
            if row is not reference and "encoder" in row["what"]
            else NOTHING,
            cell([row["peak_gb"]], 1),
        ]
        for row in timed
    ]
    errors = [
        f"{ENCODER_TITLES.get(row['what'], row['what'])} {100 * row['relative_difference']:.1f} %"
        for row in rows
        if "relative_difference" in row
    ]
    sentence = "\n\nRelative error in bfloat16 against diffusers' encoder in float32, on a smaller clip: "
    sentence = f"{sentence}{', '.join(errors)}." if errors else ""
    return (
        "From the cameras of six trajectories to their ray latents.\n\n"
        + table(["how", "ms", "faster", "peak GB"], lines)
        + sentence
    )


def rendering_table(part: Row) -> str:
    """Time of one image for all and for the kept Gaussians."""
    lines = [
        [
            _count(row["num_gaussians"]),
            RESPONSE_TITLES[row["response"]],
            f"{row['ms']:.2f}",
            f"{1000 / row['ms']:.0f}",
            cell([row["peak_gib"]], 1),
        ]
        for row in part["rows"]
    ]
    size = f"{part['size']['width']}x{part['size']['height']}"
    return f"Rendering one image of {size}, colours and depth.\n\n" + table(
        ["Gaussians", "drawn as", "ms", "images per second", "peak GiB"], lines
    )


def writing_text(part: Row) -> str:
    """Time of writing the kept Gaussians, as a sentence."""
    return " ".join(
        f"Writing a PLY of {_count(row['num_gaussians'])} Gaussians from main memory: {row['seconds']:.2f} s."
        for row in part["rows"]
    )


def step_table(part: Row) -> str:
    """Time and memory of a training step, our settings beside plain ones."""
    rows = part["rows"]
    lines = []
    for row, plain in _pairs(rows):
        prune = row.get("prune", plain.get("prune"))
        is_known = "step_s" in row and "step_s" in plain
        lines.append(
            [
                str(row["V"]),
                str(row["targets"]),
                NOTHING if prune is None else f"{100 * prune:.0f} %",
                *(_seconds(one) for one in (row, plain)),
                _times(plain["step_s"] / row["step_s"]) if is_known else NOTHING,
                *(cell([one.get("peak_gib")], 1) for one in (row, plain)),
            ]
        )
    titles = ["trajectories", "targets", "pruned", "s", "s, plain", "faster", "peak GiB", "peak GiB, plain"]
    return (
        "One training step. Plain: the same kernels, but every block recomputed in the backward pass, views "
        "drawn one by one and once more in the backward pass, LPIPS in float32 image by image.\n\n"
        + table(titles, lines)
    )


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of our settings, each with the plain row that was measured after it."""
    return list(zip(rows[::2], rows[1::2], strict=True))


def _seconds(row: Row) -> str:
    """Seconds of a step, or that it did not fit."""
    return f"{row['step_s']:.2f}" if "step_s" in row else f"{NOTHING} (out of memory)"


def _values(rows: Sequence[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _trajectories(count: int) -> str:
    return "1 trajectory" if count == 1 else f"{count} trajectories"


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2f}x"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _table_of(part: str, text_of: Callable[[Row], str]) -> Callable[[Path], str]:
    """The table of one part with its origin; empty where the file lacks the part."""

    def made(results: Path) -> str:
        content = read(results / RESULT_FILE)["parts"].get(part)
        return f"{text_of(content)}\n\n{origin(content)}" if content else ""

    return made


FULL_SIZE_TABLES: dict[str, Callable[[Path], str]] = {
    "full_size_goals": lambda results: goals_table(read(results / RESULT_FILE)["parts"]),
    "full_size_forward": _table_of("forward", forward_table),
    "full_size_ablations": _table_of("ablations", ablations_table),
    "full_size_errors": _table_of("errors", errors_table),
    "full_size_low_precision": _table_of("low_precision", low_precision_table),
    "full_size_plucker": _table_of("plucker", plucker_table),
    "full_size_rendering": _table_of("rendering", rendering_table),
    "full_size_writing": _table_of("writing", writing_text),
    "full_size_training": _table_of("training", step_table),
}
"""Tables by the name in their marker."""
