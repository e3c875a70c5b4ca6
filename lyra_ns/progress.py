"""How far a computation has come: seconds and memory of its stages, and the time that a run still takes.

A stage is shown as a bar on a terminal and as lines now and then in a log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
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
SECONDS_BETWEEN_LOG_LINES = 30.0
"""The same for runs of hours or days."""
SPEED_SECONDS = 3600.0
"""The speed by which the time left is estimated is that of so many last seconds."""


def console_for_lines() -> Console:
    """A console that neither colours numbers nor breaks lines."""
    return Console(highlight=False, soft_wrap=True)


@contextmanager
def steps_shown(
    label: str,
    console: Console | None = None,
    seconds_between: float = SECONDS_BETWEEN_LINES,
    indent: str = "",
) -> Iterator[OnStep]:
    """Show the steps of what happens inside: call what it yields with the steps done and all steps.

    A bar on a terminal, gone at the end; elsewhere lines that start with `indent`, no closer than
    `seconds_between`.
    """
    console = console or console_for_lines()
    if not console.is_terminal:
        yield _lines(label, console, seconds_between, indent)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    note_column = TextColumn("{task.fields[note]}", markup=False)
    with Progress(
        *(*columns, TimeRemainingColumn(), note_column),
        console=console,
        transient=True,
        speed_estimate_period=SPEED_SECONDS,
    ) as progress:
        task = progress.add_task(label, total=None, note="")

        def on_step(done: int, total: int, note: str = "") -> None:
            progress.update(task, completed=done, total=total, note=note)

        yield on_step


def _lines(label: str, console: Console, seconds_between: float, indent: str) -> OnStep:
    """Prints how far a stage is, not too often, with the time left by what the steps took so far."""
    started = last = monotonic()

    def on_step(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = monotonic()
        if not 0 < done < total or now - last < seconds_between:
            return
        last = now
        console.print(indent + _line(label, done, total, note, now - started), markup=False)

    return on_step


def _line(label: str, done: int, total: int, note: str, seconds: float) -> str:
    """How far it is after so many seconds, and the time left if it goes on like that."""
    left = seconds / max(done, 1) * (total - done)
    said = f"{note}, " if note else ""
    return f"{label}: {done} of {total}, {said}about {in_words(left)} left"


def in_words(seconds: float) -> str:
    """A span of time in its largest fitting unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class StageProgress:
    """Shows stages one after the other: a bar with the time left on a terminal, plain lines elsewhere.

    Seconds and peak memory of the stages that are done are in `meter`.
    """

    def __init__(self, num_stages: int, device: torch.device, console: Console | None = None) -> None:
        self.console = console or console_for_lines()
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
        is_terminal = self.console.is_terminal
        if not is_terminal:
            self.say(label)
        with (
            self.meter.stage(title),
            steps_shown(
                label if is_terminal else title, self.console, SECONDS_BETWEEN_LINES, indent=" " * 6
            ) as on_step,
        ):
            yield on_step
        self.say(f"      {self.meter.stages[-1]}")


@dataclass
class RunProgress:
    """Counts what is done of many things, some of which fail."""

    total: int
    """How many there will be."""
    on_step: OnStep
    """Shows it."""
    num_done: int = 0
    """Done in this run."""
    num_failed: int = 0
    """Of them, those that could not be made."""

    def advance(self, count: int = 1, failed: bool = False) -> None:
        """Takes note of `count` more things."""
        self.num_done += count
        self.num_failed += count if failed else 0
        self.on_step(self.num_done, self.total, f"{self.num_failed} failed" if self.num_failed else "")


@contextmanager
def run_progress(what: str, total: int) -> Iterator[RunProgress]:
    """Progress of `total` things, shown while the block runs; `what` names them in the plural."""
    with steps_shown(what, seconds_between=SECONDS_BETWEEN_LOG_LINES) as on_step:
        yield RunProgress(total, on_step)
