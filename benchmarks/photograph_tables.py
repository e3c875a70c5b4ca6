"""Tables of what `generate` makes of photographs, from the file of `python -m benchmarks.photographs`.

Rows of several labels stand side by side: what there was before, and what there is now. A table whose part
is missing stays empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.table_text import NOTHING, Measure, Row, origin, read, table

RESULT_FILE = "photographs.json"
"""The file that the documentation shows."""
EIGHT_MEASURES = (
    Measure("codec_psnr", "codec, dB", 2),
    Measure("codec_lpips", "codec, LPIPS", 3),
    Measure("psnr", "Gaussians, dB", 2),
    Measure("lpips", "Gaussians, LPIPS", 3),
    Measure("input_psnr", "first view, dB", 2),
)
"""What is measured of clips."""
FIVE_MEASURES = (
    Measure("input_psnr", "the photograph, dB", 1),
    Measure("input_lpips", "LPIPS", 3),
    Measure("lpips_8", "LPIPS at 8 degrees", 3),
    Measure("lpips_16", "at 16 degrees", 3),
    Measure("kept", "of the picture", 2),
    Measure("seconds", "s", 0),
    Measure("peak_gib", "GiB", 1),
)
"""What is measured of scenes."""
RIGHT_MEASURES = (Measure("psnr", "PSNR dB", 1), Measure("lpips", "LPIPS", 3))
"""What is measured at the right photograph."""


def eight_table(part: Row) -> str:
    """Means over the photographs, a line for each label."""
    means = [
        (label, row)
        for label, measured in part.items()
        for row in measured["rows"]
        if row["photograph"] == "mean"
    ]
    lines = [[label, *(mean_cell([row], measure) for measure in EIGHT_MEASURES)] for label, row in means]
    num = len(next(iter(part.values()))["rows"]) - 1
    sentence = (
        f"Clips of {num} held-out photographs, moved by the depth that ships: what is left of them after the "
        "codec, and what the decoder's Gaussians show."
    )
    titles = ["", *(measure.title for measure in EIGHT_MEASURES)]
    return f"{sentence}\n\n{table(titles, lines)}"


def five_table(part: Row) -> str:
    """Means over the photographs, a line for each label and way of making a scene."""
    names = dict.fromkeys(row["photograph"] for measured in part.values() for row in measured["rows"])
    sentence = (
        f"`ns-lyra generate` at default settings, the mean of {len(names)} photographs ({', '.join(names)}): "
        "closeness to the photograph from where it was taken and, from beside, to one Gaussian per pixel "
        "where that covers."
    )
    return f"{sentence}\n\n{ways_table(part, FIVE_MEASURES)}"


def right_table(part: Row) -> str:
    """Closeness to the right photograph, a line for each label and way."""
    sentence = "The real right photograph of the stereo pair, from the left one alone."
    return f"{sentence}\n\n{ways_table(part, RIGHT_MEASURES)}"


def ways_table(part: Row, measures: Sequence[Measure]) -> str:
    """Means by way and label; labels whose numbers are the same share a line."""
    labels: dict[tuple[str, ...], list[str]] = {}
    for label, measured in part.items():
        by_way: dict[str, list[Row]] = {}
        for row in measured["rows"]:
            by_way.setdefault(row["way"], []).append(row)
        for way, rows in by_way.items():
            cells = (way, *(mean_cell(rows, measure) for measure in measures))
            labels.setdefault(cells, []).append(label)
    lines = [[way, ", ".join(names), *cells] for (way, *cells), names in labels.items()]
    return table(["way", "", *(measure.title for measure in measures)], lines)


def mean_cell(rows: Sequence[Row], measure: Measure) -> str:
    """Mean of the rows that have this number, NOTHING if none has."""
    known = [row[measure.key] for row in rows if measure.key in row]
    return f"{mean(known):.{measure.digits}f}" if known else NOTHING


TABLE_OF_PART: dict[str, Callable[[Row], str]] = {
    "eight": eight_table,
    "five": five_table,
    "right": right_table,
}
"""Tables of the parts that have numbers."""


def _table_of(name: str) -> Callable[[Path], str]:
    """The table of one part with its origins; empty where the file lacks the part, or is not there."""

    def made(results: Path) -> str:
        if not (results / RESULT_FILE).is_file():
            return ""
        part = read(results / RESULT_FILE)["parts"].get(name)
        if not part:
            return ""
        origins = [f"{label}: {origin(measured)}" for label, measured in part.items()]
        return f"{TABLE_OF_PART[name](part)}\n\n{' '.join(origins)}"

    return made


PHOTOGRAPH_TABLES: dict[str, Callable[[Path], str]] = {
    f"photographs_{name}": _table_of(name) for name in TABLE_OF_PART
}
"""Tables by the name in their marker."""
