"""The stages of a run as they pass: which one, how far, and how long it will still take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lyra_ns.stage_meter import StageMeter


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
