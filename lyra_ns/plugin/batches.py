"""Training batches for the data manager: streamed from disk by workers, or gathered from scenes in memory.

Either way batch number i of a rank depends on (seed, rank, i) only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch.utils.data import DataLoader

from lyra_ns.data.gathering import PendingBatch, gather
from lyra_ns.data.loaded import LoadedScene
from lyra_ns.data.plans import (
    ALL_RANKS,
    SamplingConfig,
    batch_generator,
    draw_num_trajectories,
    draw_plans,
    scene_order,
)
from lyra_ns.plugin.errors import reading_data

if TYPE_CHECKING:
    from lyra_ns.data.store import LyraStore


@dataclass(frozen=True)
class BatchSettings:
    """What both kinds of batches need to know."""

    batch_size: int
    """Scenes per batch."""
    seed: int
    """Seed of everything random."""
    rank: int
    """Number of this process."""
    world_size: int
    """Number of processes; each has its own scenes."""
    device: torch.device | str
    """Where batches go."""


class Batches(Protocol):
    """A source of batches."""

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """Batch number `index`, on the device."""
        ...


class StreamedBatches:
    """Read from disk by worker processes, which run ahead of the training."""

    def __init__(self, store: LyraStore, names: list[str], settings: BatchSettings, num_workers: int) -> None:
        self._store, self._names, self._settings = store, names, settings
        self._num_workers = num_workers
        self._iterator: Iterator[PendingBatch] | None = None
        self._expected: tuple[int, SamplingConfig] | None = None

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """Batch number `index`; the workers start anew when it does not follow the one before."""
        if self._iterator is None or self._expected != (index, sampling):
            self._iterator = iter(self._loader(index, sampling))
        with reading_data():
            pending = next(self._iterator)
        self._expected = (index + 1, sampling)
        return pending.to(self._settings.device)

    def _loader(self, first_batch: int, sampling: SamplingConfig) -> DataLoader:
        from lyra_ns.data.stream import TrainingStream

        settings = self._settings
        with reading_data():
            stream = TrainingStream(
                self._store,
                self._names,
                sampling,
                batch_size=settings.batch_size,
                seed=settings.seed,
                rank=settings.rank,
                world_size=settings.world_size,
                first_batch=first_batch,
            )
        return DataLoader(stream, batch_size=None, num_workers=self._num_workers)


class CachedBatches:
    """Gathered from scenes that were decoded once and stay in memory: nothing but indexing."""

    def __init__(self, scenes: list[LoadedScene], settings: BatchSettings) -> None:
        self._scenes, self._settings = scenes, settings

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """Batch number `index`."""
        settings = self._settings
        scenes = [self._scene(index * settings.batch_size + place) for place in range(settings.batch_size)]
        shared = batch_generator(settings.seed, index, ALL_RANKS)
        num_trajectories = draw_num_trajectories(scenes, sampling, shared)
        generator = batch_generator(settings.seed, index, settings.rank)
        with reading_data():
            plans = draw_plans(scenes, sampling, generator, num_trajectories)
            return gather(scenes, plans, sampling).to(settings.device)

    def _scene(self, position: int) -> LoadedScene:
        """Scene number `position` of an endless series of shuffled passes."""
        order = scene_order(position, len(self._scenes), self._settings.seed, self._settings.rank)
        return self._scenes[order[0]]
