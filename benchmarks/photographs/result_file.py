"""The result file: rows of each part under the labels of the code that made them, side by side.

{"parts": {"eight": {"before (f59b86e)": {"environment": ..., "rows": [...]}, "now": ...}, ...}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment
from lyra_ns.data.atomic import write_whole

RESULT_FILE = "photographs.json"
"""The file that the documentation shows."""
DIGITS = 4
"""Digits after the point that numbers are kept with."""
Row = dict[str, Any]


def write_rows(
    path: Path,
    part: str,
    label: str,
    rows: Sequence[Row],
    *,
    device: str = "cpu",
    commit: str | None = None,
    **about: Any,
) -> None:
    """Puts the rows of one part under one label into the file, in place of those that it had there.

    Everything else in the file stays. `about` says what the rows were measured with; `commit` names the code
    where it is not that of this repository's last commit. ValueError if the file is no result file.
    """
    content = read_results(path)
    environment = describe_environment(device)
    environment["commit"] = commit or environment["commit"]
    measured = {"environment": environment, **about, "rows": [_rounded(row) for row in rows]}
    content["parts"].setdefault(part, {})[label] = measured
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_results(path: Path) -> dict[str, Any]:
    """Contents of the file, without parts where there is none yet; ValueError if it is no result file."""
    if not path.is_file():
        return {"parts": {}}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} must be a result file in JSON, found damage ({error}): move it away"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("parts"), dict):
        raise ValueError(f"{path} must be a result file with parts, found other JSON: give another --output")
    return content


def _rounded(row: Row) -> Row:
    return {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in row.items()}
