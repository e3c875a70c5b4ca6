"""The table of `benchmarks.refinement`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.table_text import Measure, numbers, origin, read, table

RESULT_FILE = "refinement_h200.json"
"""The file that the documentation shows."""
MEASURES = (
    Measure("psnr", "held-out PSNR dB", 2),
    Measure("lpips", "LPIPS", 3),
    Measure("shown_psnr", "PSNR dB of frames shown", 2),
    Measure("millions", "million Gaussians", 2),
    Measure("seconds", "s", 1),
    Measure("peak_gib", "peak GiB", 1),
)
"""Columns of the table."""


def refinement_table(results: Path) -> str:
    """The rows beside each other: `refinement_h200.json`."""
    content = read(results / RESULT_FILE)
    lines = [[row["way"], *numbers([row], MEASURES)] for row in content["rows"]]
    titles = ["Gaussians", *(measure.title for measure in MEASURES)]
    size = content["size"]
    caption = (
        f"{size['frames_shown']} frames of {size['width']} x {size['height']} pixels shown, "
        f"{size['frames_held_out']} of other camera paths held out."
    )
    return table(titles, lines) + f"\n\n{caption} {origin(content)}"
