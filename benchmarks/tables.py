"""Tables of the documentation, made from result files so that nobody types a number.

    python -m benchmarks.tables            # write them
    python -m benchmarks.tables --check    # fail if one is out of date

A table stands between two lines of their own, `<!-- table:NAME -->` and `<!-- /table -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from benchmarks.full_size_tables import FULL_SIZE_TABLES
from benchmarks.generation_tables import GENERATION_TABLES
from benchmarks.photograph_tables import PHOTOGRAPH_TABLES
from benchmarks.refinement_table import refinement_table
from benchmarks.table_text import Measure, Row, numbers, origin, read, table

ROOT = Path(__file__).resolve().parent.parent
"""Folder of the checkout."""
RESULTS = ROOT / "benchmarks" / "results"
"""Folder of the result files."""
MARKER = re.compile(r"^<!-- (?:table:(?P<name>\S+)|(?P<end>/table)) -->$", re.MULTILINE)
"""First or last line of a table."""
IMAGE_MEASURES = (
    Measure("psnr", "PSNR dB", 2),
    Measure("ssim", "SSIM", 3),
    Measure("lpips", "LPIPS", 3),
    Measure("depth_error", "depth error", 3),
)
"""What the evaluation protocol writes (`lyra_ns.evaluation.runner`)."""
PHOTO_MEASURES = (
    Measure("psnr", "PSNR dB", 2),
    Measure("lpips", "LPIPS", 3),
    Measure("psnr_covered", "PSNR dB, covered", 2),
    Measure("lpips_covered", "LPIPS, covered", 3),
)
"""What the check on a photograph writes (`lyra_ns.evaluation.photo_check`)."""
PHOTO_TITLES = {
    "left_copied": "left photograph as it is (floor)",
    "reconstruction": "reconstruction from the left photograph, in metres",
    "reconstruction_fitted": "the same, in the unit of length that reproduces its own input best",
    "own_pixels": "one Gaussian per pixel of the left photograph, by the depth that ships",
    "left_warped": "one Gaussian per pixel, by its measured depth (reference line)",
}
"""Methods of the check on a photograph, worst first."""


def held_out_table(results: Path) -> str:
    """Quality on held-out scenes: `held_out.json`, or the mean over `held_out_seed*.json`."""
    files = [read(path) for path in sorted(results.glob("held_out_seed*.json"))] or [
        read(results / "held_out.json")
    ]
    by_view: dict[tuple[str, int, str], list[Row]] = {}
    for row in (row for content in files for row in content["rows"]):
        by_view.setdefault((row["group"], row["num_trajectories"], row["method"]), []).append(row)
    incomplete = [key for key, rows in by_view.items() if len(rows) != len(files)]
    if incomplete:
        raise ValueError(
            f"every held_out_seed*.json must have the same rows, found {incomplete[0]} not in all: "
            "evaluate all seeds with the same options"
        )
    lines = [
        [group, str(number), method, str(rows[0]["num_views"]), *numbers(rows, IMAGE_MEASURES)]
        for (group, number, method), rows in by_view.items()
    ]
    titles = ["views", "inputs", "method", "images", *(measure.title for measure in IMAGE_MEASURES)]
    seeds = f"Mean ± standard deviation over {len(files)} seeds. " if len(files) > 1 else ""
    return table(titles, lines) + f"\n\n{seeds}{origin(files[0])}"


def stabilisers_table(results: Path) -> str:
    """Quality on held-out paths with and without each stabiliser: `stabilisers.json`."""
    content = read(results / "stabilisers.json")
    seeds = complete_seeds(content["rows"])
    by_variant: dict[str, list[Row]] = {}
    for run in content["rows"]:
        if run["seed"] in seeds:
            by_variant.setdefault(run["variant"], []).append(novel_row(run["measured"]))
    measures = [measure for measure in IMAGE_MEASURES if measure.key != "ssim"]
    lines = [[variant, *numbers(rows, measures)] for variant, rows in by_variant.items()]
    lines += [
        [f"no decoder: {row['method']}", *numbers([row], measures)]
        for row in content["floors"]
        if row["group"] == "novel"
    ]
    titles = ["stabilisers", *(measure.title for measure in measures)]
    return (
        table(titles, lines) + f"\n\n{stabilisers_caption(content['setting'], len(seeds))} {origin(content)}"
    )


def complete_seeds(runs: Sequence[Row]) -> set[int]:
    """Seeds that every variant was run with, so that their means compare like with like."""
    by_variant: dict[str, set[int]] = {}
    for run in runs:
        by_variant.setdefault(run["variant"], set()).add(run["seed"])
    return set.intersection(*by_variant.values())


def stabilisers_caption(setting: Row, num_seeds: int) -> str:
    """How the stabilisers were measured."""
    size = f"{setting['width']} x {setting['height']} pixels and {setting['num_frames']} frames"
    return (
        f"Mean ± standard deviation over {num_seeds} training seeds; {setting['steps']} steps from random "
        f"weights on {setting['num_scenes']} scenes of {size}; {setting['num_held_out']} held-out scenes, "
        "seen along camera paths that nothing was trained on."
    )


def novel_row(measured: Sequence[Row]) -> Row:
    """The row of held-out camera paths."""
    return next(row for row in measured if row["group"] == "novel")


def photo_table(results: Path) -> str:
    """Closeness to a real photograph: `photo_check.json`."""
    content = read(results / "photo_check.json")
    lines = [
        [title, *numbers([content["scores"][name]], PHOTO_MEASURES)]
        for name, title in PHOTO_TITLES.items()
        if name in content["scores"]
    ]
    titles = ["right photograph", *(measure.title for measure in PHOTO_MEASURES)]
    return table(titles, lines) + f"\n\n{origin(content)}"


def training_table(results: Path) -> str:
    """Speed and memory of training: `train_small_h200.json`, whose rows have a quantity, a value, a unit."""
    content = read(results / "train_small_h200.json")
    lines = [[row["quantity"], f"{row['value']:g} {row['unit']}"] for row in content["rows"]]
    return table(["quantity", "value"], lines) + f"\n\n{origin(content)}"


TABLES: dict[str, Callable[[Path], str]] = {
    "held_out": held_out_table,
    "stabilisers": stabilisers_table,
    "photo": photo_table,
    "training": training_table,
    "refinement": refinement_table,
    **FULL_SIZE_TABLES,
    **GENERATION_TABLES,
    **PHOTOGRAPH_TABLES,
}
"""Tables by the name in their marker."""


def updated(text: str, results: Path) -> str:
    """The document with its tables made anew; ValueError for unknown tables and markers without partner."""
    parts: list[str] = []
    position, open_name = 0, None
    for marker in MARKER.finditer(text):
        name = marker["name"]
        if (name is None) == (open_name is None):
            raise ValueError(f"markers must come in pairs, found {marker[0]} without its partner: add it")
        if name is not None:
            parts += [text[position : marker.end()], "\n", table_named(name, results), "\n"]
        position, open_name = marker.start(), name
    if open_name is not None:
        raise ValueError(f"the table {open_name} has no end: write <!-- /table --> after it")
    return "".join([*parts, text[position:]])


def table_named(name: str, results: Path) -> str:
    """The table that a marker asks for; ValueError if there is none of that name."""
    if name not in TABLES:
        raise ValueError(f"no table is called {name}: take one of {', '.join(TABLES)}")
    return TABLES[name](results)


def documents(root: Path) -> list[Path]:
    """Documents that may hold tables."""
    every = [root / "README.md", root / "benchmarks" / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path for path in every if path.is_file()]


def stale_documents(root: Path, results: Path) -> list[Path]:
    """Documents with a table that is out of date."""
    return [path for path in documents(root) if updated(path.read_text(), results) != path.read_text()]


def main(check: bool = False) -> None:
    """Write the tables of the documentation, or only check them with `check`."""
    stale = stale_documents(ROOT, RESULTS)
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if check and stale:
        raise SystemExit(f"out of date: {names}; run python -m benchmarks.tables")
    for path in stale:
        path.write_text(updated(path.read_text(), RESULTS))
    print(f"written: {names}" if stale else "all tables are up to date")


if __name__ == "__main__":
    tyro.cli(main)
