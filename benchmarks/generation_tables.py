"""Tables of GEN3C's speed, from the file of `python -m benchmarks.generation`.

Each begins with a sentence of its own, so that nothing of it stands in the document while its part of the
file is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.table_text import NOTHING, Measure, Row, cell, numbers, origin, read, table

RESULT_FILE = "generation_h200.json"
"""The file that the documentation shows."""
SPLAT_FILE = "splat_h200.json"
"""The file of `python -m benchmarks.splat` that the documentation shows."""
SPLAT_COLUMNS = (
    Measure("ms_per_frame", "ms per frame", 2),
    Measure("growth_gib", "GiB above the inputs", 2),
    Measure("same_mask", "same mask", 5),
    Measure("colour_difference", "difference of colours", 6),
)
"""What is measured of the 3D cache."""
CAVEAT = (
    "Random weights: how far a way changes results must be judged again on released ones, step caching above "
    "all."
)
"""What tables with deviations say."""


def evaluations_table(parts: Row) -> str:
    """One evaluation in every way, with the compiled one if it was measured."""
    rows = [*parts["evaluations"]["rows"], *parts.get("compiled", {"rows": []})["rows"]]
    first = next((row for row in rows if "ms" in row), None)
    lines = [
        [
            row["way"],
            _seconds(row.get("ms")),
            _times(first, row) if row is not first else NOTHING,
            cell([row.get("peak_gib")], 1),
            _relative(row.get("deviation")),
        ]
        for row in rows
    ]
    titles = ["way", "s", "faster", "peak GiB", "deviation of the prediction"]
    return (
        f"One evaluation of the network for {_clip(parts['evaluations'])}. {CAVEAT}\n\n{table(titles, lines)}"
    )


def guidance_table(parts: Row) -> str:
    """A guided step on one GPU and on two."""
    rows = [row for name in ("guidance", "two_gpus") for row in parts.get(name, {"rows": []})["rows"]]
    lines = [
        [row["way"], _seconds(row.get("ms")), cell([row.get("peak_gib")], 1), _relative(row.get("deviation"))]
        for row in rows
    ]
    titles = ["way", "s", "peak GiB per GPU", "deviation"]
    return "One step with guidance, which evaluates the network twice.\n\n" + table(titles, lines)


def errors_table(parts: Row) -> str:
    """Error of each way against float32."""
    rows = parts["errors"]["rows"]
    frames = next((row["num_frames"] for row in rows if "num_frames" in row), NOTHING)
    lines = [[row["way"], _relative(row.get("error"))] for row in rows]
    sentence = f"Relative error of one evaluation in bfloat16 against float32, {frames} frames. {CAVEAT}"
    return f"{sentence}\n\n{table(['way', 'relative error'], lines)}"


def deviations_table(parts: Row) -> str:
    """What each way does to latents after a run of the sampler."""
    rows = parts["deviations"]["rows"]
    known = next((row for row in rows if "failed" not in row), {})
    lines = [
        [
            row["way"],
            _relative(row.get("deviation")),
            f"{row['skipped']} of {row['evaluations']}" if "skipped" in row else NOTHING,
        ]
        for row in rows
    ]
    sentence = (
        "Relative deviation of the latents from those of diffusers as it comes, after "
        f"{known.get('num_steps', NOTHING)} steps with guidance on {known.get('num_frames', NOTHING)} "
        f"frames. {CAVEAT}"
    )
    return f"{sentence}\n\n{table(['way', 'deviation', 'predicted evaluations'], lines)}"


def policies_table(parts: Row) -> str:
    """Time and memory of each memory policy."""
    lines = [
        [
            row["way"],
            _seconds(row.get("ms")),
            cell([row.get("peak_gib")], 1),
            cell([row.get("estimate_gib")], 1),
            _seconds(row.get("text_ms")),
            cell([row.get("text_peak_gib")], 1),
        ]
        for row in parts["policies"]["rows"]
    ]
    titles = ["policy", "s per evaluation", "peak GiB", "estimated", "s per text", "peak GiB for a text"]
    return f"Memory policies for {_clip(parts['policies'])}, T5-11B included.\n\n{table(titles, lines)}"


def codec_table(parts: Row) -> str:
    """Time and memory of the tokenizer."""
    lines = [
        [row["way"], _seconds(row.get("ms")), cell([row.get("peak_gib")], 1)]
        for row in parts["codec"]["rows"]
    ]
    return f"The tokenizer at {_clip(parts['codec'])}.\n\n{table(['what', 's', 'peak GiB'], lines)}"


def splat_table(results: Path) -> str:
    """Time of the 3D cache by way, each beside a loop over frames; empty where it was not measured."""
    if not (results / SPLAT_FILE).is_file():
        return ""
    content = read(results / SPLAT_FILE)
    lines = [[row["way"], *numbers([row], SPLAT_COLUMNS)] for row in content["rows"]]
    titles = ["way", *(column.title for column in SPLAT_COLUMNS)]
    sentence = f"The 3D cache of one picture seen along a path, {_clip(content)}; colours beside the loop's."
    return f"{sentence}\n\n{table(titles, lines)}\n\n{origin(content)}"


def _clip(part: Row) -> str:
    size = part["size"]
    return f"{size['num_frames']} frames of {size['height']}x{size['width']}"


def _seconds(milliseconds: float | None) -> str:
    return NOTHING if milliseconds is None else f"{milliseconds / 1000:.2f}"


def _relative(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1e}"


def _times(first: Row | None, row: Row) -> str:
    return f"{first['ms'] / row['ms']:.2f}x" if first is not None and "ms" in row else NOTHING


TABLE_OF_PART: dict[str, Callable[[Row], str]] = {
    "evaluations": evaluations_table,
    "compiled": lambda parts: evaluations_table({"evaluations": parts["compiled"]} | parts),
    "guidance": guidance_table,
    "two_gpus": guidance_table,
    "errors": errors_table,
    "deviations": deviations_table,
    "policies": policies_table,
    "codec": codec_table,
}
"""What is printed after each part was measured."""


BESIDE = {"evaluations": "compiled", "guidance": "two_gpus"}
"""Parts whose rows stand in the table of another one."""


def _table_of(part: str) -> Callable[[Path], str]:
    """The table of one part with its origin; empty where the file lacks the part, or is not there."""

    def made(results: Path) -> str:
        if not (results / RESULT_FILE).is_file():
            return ""
        parts = read(results / RESULT_FILE)["parts"]
        if part not in parts:
            return ""
        names = (part, BESIDE[part]) if part in BESIDE else (part,)
        origins = dict.fromkeys(origin(parts[name]) for name in names if name in parts)
        return f"{TABLE_OF_PART[part](parts)}\n\n{' '.join(origins)}"

    return made


GENERATION_TABLES: dict[str, Callable[[Path], str]] = {
    f"generation_{part}": _table_of(part)
    for part in ("evaluations", "guidance", "errors", "deviations", "policies", "codec")
} | {"splat": splat_table}
"""Tables by the name in their marker."""
