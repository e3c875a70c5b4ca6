"""Pieces that all tables of the documentation are made of: result files, cells, captions, markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

NOTHING = "–"
"""Shown where there is no value."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One column of numbers."""

    key: str
    """Key of the rows."""
    title: str
    """Head of the column."""
    digits: int
    """Digits after the point."""


def read(path: Path) -> dict[str, Any]:
    """Contents of a result file; FileNotFoundError that says where results come from."""
    if not path.is_file():
        raise FileNotFoundError(f"no result file {path}: benchmarks/README.md says which command writes it")
    return json.loads(path.read_text())


def numbers(rows: Sequence[Row], measures: Sequence[Measure]) -> list[str]:
    """One cell per measure: the value, or mean ± standard deviation over several rows."""
    return [cell([row[measure.key] for row in rows], measure.digits) for measure in measures]


def cell(values: Sequence[float | None], digits: int) -> str:
    """Mean ± sample standard deviation of the values, NOTHING without any; tells how many are missing."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    text = f"{mean(known):.{digits}f}"
    if len(known) > 1:
        text += f" ± {stdev(known):.{digits}f}"
    missing = len(values) - len(known)
    return f"{text} ({missing} failed)" if missing else text


def origin(content: dict[str, Any]) -> str:
    """Sentence on the device and commit of a result file."""
    environment = content["environment"]
    commit = environment["commit"] or "unknown"
    changes = " with changes" if "+" in commit else ""
    torch_version = environment.get("versions", environment)["torch"]
    return f"{environment['device']}, torch {torch_version}, commit {commit[:10]}{changes}."


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table: texts to the left, numbers to the right."""
    columns = zip(*lines, strict=True)
    are_numbers = [all(re.match(rf"[-\d{NOTHING}]", text) for text in column) for column in columns]
    rule = ["---:" if is_number else "---" for is_number in are_numbers]
    return "\n".join("| " + " | ".join(line) + " |" for line in [titles, rule, *lines])
