"""Stage after stage, each from the weights of its predecessor; whatever was interrupted goes on."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lyra_ns.curriculum.options import (
    RunChoices,
    command_of,
    settings_of,
    stage_options,
    trainer_config_of,
)
from lyra_ns.curriculum.stages import SCALES, ScaleName, Stage
from lyra_ns.curriculum.state import (
    WEIGHTS_FOLDER,
    StageRecord,
    Weights,
    check_unchanged,
    read_state,
    weights_of,
    write_state,
)

logger = logging.getLogger(__name__)

LOCK_NAME = ".curriculum.lock"
NUM_LISTED = 4
"""Differing settings that an error lists."""


class Curriculum:
    """Some stages of one scale in one folder."""

    def __init__(
        self, scale: ScaleName, stages: Sequence[Stage], choices: RunChoices, init_from: Path | None = None
    ) -> None:
        """Check that every stage has data and weights; ValueError or FileNotFoundError if not."""
        self.scale, self.stages, self.choices = SCALES[scale], list(stages), choices
        self.folder, self.init_from = choices.output, init_from
        self.state = read_state(self.folder, scale)
        self._check_starts()
        self._codec_digests = {dynamic: self._codec_digest(dynamic) for dynamic in self._kinds_of_data()}

    def run(self) -> list[Path]:
        """The weights of each stage, trained now unless they were finished before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(self.folder):
            # Once more: another process may have been at work until now.
            self.state = read_state(self.folder, self.state.scale)
            return [self._run_stage(stage) for stage in self.stages]

    def _run_stage(self, stage: Stage) -> Path:
        number, start = self.scale.number(stage), self._start_of(stage)
        start_path = None if start is None else self.folder / start.file
        options = stage_options(self.scale, stage, self.choices, start_path)
        finished = self.state.finished(stage.name)
        if finished is not None:
            self._check_record(stage, {}, start)
            print(f"Stage {number}, {stage.name}: finished before", flush=True)
            return check_unchanged(finished, self.folder, stage.name)
        self._check_record(stage, settings_of(options), start)
        # Imported only now: nerfstudio takes longer to load than finished stages take to skip.
        from lyra_ns.curriculum.training import export_weights, train_to_end

        record = StageRecord(settings_of(options), command_of(options), start)
        self._keep(stage, record)
        print(f"\nStage {number}, {stage.name}: {stage.num_steps} steps, as\n{record.command}\n", flush=True)
        config = trainer_config_of(options)
        checkpoint = train_to_end(config, stage.num_steps)
        path = self.folder / WEIGHTS_FOLDER / f"{stage.name}.safetensors"
        export_weights(checkpoint, config, self._codec_digests[stage.is_dynamic], path)
        self._keep(stage, replace(record, weights=weights_of(path, self.folder)))
        print(f"Stage {number}, {stage.name}: {path}", flush=True)
        return path

    def _keep(self, stage: Stage, record: StageRecord) -> None:
        self.state = self.state.with_record(stage.name, record)
        write_state(self.folder, self.state)

    def _start_of(self, stage: Stage) -> Weights | None:
        """The weights that a stage starts from, as its predecessor left them."""
        if self.init_from is not None and stage == self.stages[0]:
            return weights_of(self.init_from, self.folder)
        if stage.starts_from is None:
            return None
        weights = self.state.finished(stage.starts_from)
        assert weights is not None, "checked before the first stage"
        check_unchanged(weights, self.folder, stage.starts_from)
        return weights

    def _check_starts(self) -> None:
        """ValueError unless each predecessor is finished, asked for before its stage, or given as a file."""
        if self.init_from is not None:
            weights_of(self.init_from, self.folder)
        ready = {name for name in self.state.stages if self.state.finished(name)}
        for stage in self.stages:
            given = self.init_from is not None and stage == self.stages[0]
            if not given and stage.starts_from is not None and stage.starts_from not in ready:
                raise ValueError(
                    f"stage {stage.name} starts from {stage.starts_from}, which is neither finished in "
                    f"{self.folder} nor asked for: begin with stage {stage.starts_from}, or give weights for "
                    "the first stage with --init-from"
                )
            ready.add(stage.name)

    def _check_record(self, stage: Stage, settings: dict[str, str], start: Weights | None) -> None:
        """ValueError if the stage was begun with other settings (compared where given) or other weights."""
        record = self.state.stages.get(stage.name)
        if record is None:
            return
        names = sorted(record.settings.keys() | settings.keys()) if settings else []
        differing = [
            f"{name} was {record.settings.get(name)}, is {settings.get(name)}"
            for name in names
            if record.settings.get(name) != settings.get(name)
        ]
        digests = [None if weights is None else weights.sha256 for weights in (record.starts_from, start)]
        if digests[0] != digests[1]:
            differing.insert(0, f"the weights it started from were {digests[0]}, are {digests[1]}")
        if differing:
            raise ValueError(
                f"stage {stage.name} in {self.folder} was begun differently: "
                f"{'; '.join(differing[:NUM_LISTED])}; give what it was begun with, or another --output"
            )

    def _kinds_of_data(self) -> set[bool]:
        return {stage.is_dynamic for stage in self.stages}

    def _codec_digest(self, dynamic: bool) -> str:
        """Fingerprint of a data set's codec; ValueError if the data is not given or of the other kind."""
        from lyra_ns.data.store import LyraStore

        path = self.choices.dynamic_data if dynamic else self.choices.data
        kind, option = ("dynamic", "--dynamic-data") if dynamic else ("static", "--data")
        if path is None:
            raise ValueError(
                f"{'stages with dynamic in their names' if dynamic else 'stages 1 to 7'} train on {kind} "
                f"scenes, found no {option}: give it, or leave these stages out with --stages"
            )
        store = LyraStore(path)
        if store.is_dynamic != dynamic:
            raise ValueError(
                f"{option} must name {kind} scenes, found {path} with scenes that "
                f"{'move' if store.is_dynamic else 'stand still'}: give the other folder"
            )
        return store.spec.digest


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Keeps other processes from training into the same folder; ValueError if one is at it."""
    with open(folder / LOCK_NAME, "w") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"another process is training in {folder}: wait for it, or give another --output"
                ) from error
        yield
