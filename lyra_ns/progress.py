"""How far a computation has come: seconds and memory of its stages, and the time that a run still takes.

A stage is shown as a bar on a terminal and as lines now and then in a log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Protocol, runtime_checkable

import torch
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

from lyra_ns.memory import gib


@dataclass(frozen=True)
class Stage:
    """What one stage took."""

    name: str
    """What was done."""
    seconds: float
    """Wall time, all work of the device included."""
    peak_bytes: int | None
    """Largest number of bytes of tensors on the device during the stage; None off CUDA."""

    def __str__(self) -> str:
        peak = "" if self.peak_bytes is None else f", peak {gib(self.peak_bytes)}"
        return f"{self.name} in {self.seconds:.2f} s{peak}"


class StageMeter:
    """Measures stages on one device; a GPU is waited for at the start and the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside as the stage `name`; one that fails is not noted."""
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        started = perf_counter()
        yield
        if is_cuda:
            torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) if is_cuda else None
        self.stages.append(Stage(name, perf_counter() - started, peak))

    def __str__(self) -> str:
        return "\n".join(f"  {stage}" for stage in self.stages)


@runtime_checkable
class OnStep(Protocol):
    """What a stage is told as it goes on."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Steps that are done and all steps, and what there is to say of the last."""


SECONDS_BETWEEN_LINES = 5.0
"""Where lines are printed, a stage says no more often how far it is."""


class StageProgress:
    """Shows stages one after the other: a bar with the time left on a terminal, plain lines elsewhere.

    Seconds and peak memory of the stages that are done are in `meter`.
    """

    def __init__(self, num_stages: int, device: torch.device, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.num_stages = num_stages
        self.meter = StageMeter(device)
        self._num_started = 0
        self._began = monotonic()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return monotonic() - self._began

    def say(self, text: str) -> None:
        """Print a line, above a bar if there is one."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, title: str) -> Iterator[OnStep]:
        """Measure and show what happens inside; call what it yields with the steps done and all steps."""
        self._num_started += 1
        label = f"[{self._num_started}/{self.num_stages}] {title}"
        with self.meter.stage(title):
            if self.console.is_terminal:
                with self._bar(label) as on_step:
                    yield on_step
            else:
                self.say(label)
                yield self._lines(title)
        self.say(f"      {self.meter.stages[-1]}")

    @contextmanager
    def _bar(self, label: str) -> Iterator[OnStep]:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        note_column = TextColumn("{task.fields[note]}", markup=False)
        with Progress(
            *columns, TimeRemainingColumn(), note_column, console=self.console, transient=True
        ) as progress:
            task = progress.add_task(label, total=None, note="")

            def on_step(done: int, total: int, note: str = "") -> None:
                progress.update(task, completed=done, total=total, note=note)

            yield on_step

    def _lines(self, title: str) -> OnStep:
        """Prints how far a stage is, not too often, with the time left by what the steps took so far."""
        started = last = monotonic()

        def on_step(done: int, total: int, note: str = "") -> None:
            nonlocal last
            now = monotonic()
            if not 0 < done < total or now - last < SECONDS_BETWEEN_LINES:
                return
            last = now
            left = (now - started) / done * (total - done)
            said = f"{note}, " if note else ""
            self.say(f"      {title}: {done} of {total}, {said}about {duration(left)} left")

        return on_step


def duration(seconds: float) -> str:
    """Seconds as text, in minutes from two minutes on."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


SECONDS_BETWEEN_LOG_LINES = 30.0


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
        elif monotonic() - self._last_line >= SECONDS_BETWEEN_LOG_LINES:
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
