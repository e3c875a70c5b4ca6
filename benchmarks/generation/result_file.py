"""A result file that grows row by row, so that a run can be cut, and a row can fail without the others."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe_environment
from lyra_ns.data.atomic import write_whole

Row = dict[str, Any]
NOTE = (
    "Random weights: times and memory are those of the released network, whose sizes these are; deviations "
    "are not. Attention of random weights looks at everything alike, and its steps change in other ways than "
    "those of a trained network, so that step caching in particular must be judged on released weights."
)
"""What every part says about its numbers."""


class ResultFile:
    """Rows of one part in a JSON file; a row that is there already, of the same commit, is not made again."""

    def __init__(self, path: Path, part: str, size: Row, commit: str | None, device: str = "cuda") -> None:
        self.path, self.part = path, part
        self.content: Row = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
        environment = describe_environment(device)
        environment["commit"] = environment["commit"] or commit
        self.commit = environment["commit"]
        known = self.content["parts"].get(part)
        if known is None or known["environment"] != environment or known["size"] != size:
            known = {"environment": environment, "size": size, "note": NOTE, "rows": []}
            self.content["parts"][part] = known
        self.rows: list[Row] = known["rows"]

    def has(self, way: str) -> bool:
        """Whether the row is there and did not fail."""
        return any(row["way"] == way and "failed" not in row for row in self.rows)

    def row(self, way: str, make: Callable[[], Row]) -> Row:
        """The row of this way, made and written if it was not there; with `failed` if it cannot be made."""
        if self.has(way):
            return next(row for row in self.rows if row["way"] == way)
        start = time.perf_counter()
        try:
            made = make()
        except Exception as error:
            traceback.print_exc()
            made = {"failed": f"{type(error).__name__}: {error}"[:400]}
        made = {"way": way} | made | {"took_s": round(time.perf_counter() - start, 1)}
        self.rows[:] = [row for row in self.rows if row["way"] != way] + [made]
        write_whole(self.path, (json.dumps(self.content, indent=1) + "\n").encode())
        print(made, flush=True)
        free_memory()
        return made


def free_memory() -> None:
    """Gives back what nothing holds any more: a row that failed may leave much behind."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
