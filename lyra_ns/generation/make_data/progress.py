"""Progress of a run with the time that is left: a bar on a terminal, lines now and then in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 30.0


@dataclass
class RunProgress:
    """Counts what is done."""

    what: str
    """Things that are counted, in the plural."""
    total: int
    """How many there will be."""
    bar: Progress | None
    """Bar on a terminal; None writes lines."""
    console: Console
    """Where lines go."""
    num_done: int = 0
    """Done in this run."""
    num_failed: int = 0
    """Of them, those that could not be made."""
    _task: TaskID | None = None
    _started: float = field(default_factory=monotonic)
    _last_line: float = field(default_factory=monotonic)

    def __post_init__(self) -> None:
        if self.bar is not None:
            self._task = self.bar.add_task(self.what, total=self.total)

    @property
    def num_left(self) -> int:
        """Not done yet."""
        return self.total - self.num_done

    def advance(self, count: int, failed: bool = False) -> None:
        """Takes note of `count` more things."""
        self.num_done += count
        self.num_failed += count if failed else 0
        if self.bar is not None and self._task is not None:
            label = f"{self.what} ({self.num_failed} failed)" if self.num_failed else self.what
            self.bar.update(self._task, advance=count, description=label)
        elif monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = monotonic()
            self.console.print(self.line(monotonic() - self._started), highlight=False)

    def line(self, elapsed: float) -> str:
        """One line about the state after so many seconds."""
        left = elapsed / max(self.num_done, 1) * self.num_left
        failed = f", {self.num_failed} failed" if self.num_failed else ""
        return f"{self.what}: {self.num_done} of {self.total}{failed}, about {in_words(left)} left"


@contextmanager
def run_progress(what: str, total: int) -> Iterator[RunProgress]:
    """Progress of `total` things, shown while the block runs."""
    console = Console()
    if not console.is_terminal:
        yield RunProgress(what, total, None, console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, speed_estimate_period=3600) as bar:
        yield RunProgress(what, total, bar, console)


def in_words(seconds: float) -> str:
    """A span of time in its largest fitting unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
