"""Endless training batches from disk, prefetched by worker processes.

Batch i of a rank depends on (seed, rank, i) only, so any number of workers gives the same batches in the
same order: use `DataLoader(stream, batch_size=None, num_workers=n)`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from lyra_ns.codec.base import VideoCodec
from lyra_ns.data.batch import PendingBatch, gather
from lyra_ns.data.scenes import StoredScene
from lyra_ns.data.store import LyraStore
from lyra_ns.data.types import SceneBatch
from lyra_ns.data.view_sampling import (
    ALL_RANKS,
    SamplingConfig,
    batch_generator,
    draw_num_trajectories,
    draw_plans,
    scene_order,
)

logger = logging.getLogger(__name__)

READ_ERRORS = (ValueError, FileNotFoundError)
"""What readers raise for a bad clip."""
Result = TypeVar("Result")


def rank_share(names: Sequence[str], rank: int, world_size: int) -> list[str]:
    """The scenes of one rank: disjoint between ranks, together all; ValueError if a rank would get none."""
    if len(names) < world_size:
        raise ValueError(
            f"{world_size} processes need at least as many training scenes, found {len(names)}: add scenes "
            "or start fewer processes"
        )
    return sorted(names)[rank::world_size]


class TrainingStream(IterableDataset):
    """Batches of stored scenes: SceneBatch with a codec, PendingBatch (to be completed elsewhere) without.

    A scene that cannot be read is replaced in that batch by the next one, once, and named in the log and in
    `bad_scenes`; ValueError when too few readable scenes are left for a batch.
    """

    def __init__(
        self,
        store: LyraStore,
        names: Sequence[str],
        config: SamplingConfig,
        *,
        batch_size: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        codec: VideoCodec | None = None,
        num_frames: int | None = None,
        first_batch: int = 0,
        num_batches: int | None = None,
    ) -> None:
        super().__init__()
        self.store, self.config, self.codec = store, config, codec
        self.names = rank_share(names, rank, world_size)
        self.batch_size, self.seed, self.rank = batch_size, seed, rank
        self.num_frames = num_frames
        self.first_batch, self.num_batches = first_batch, num_batches
        self.bad_scenes: dict[str, str] = {}
        """Why each scene that could not be read was skipped, in the process that met it."""

    def __iter__(self) -> Iterator[SceneBatch | PendingBatch]:
        """Batches of this worker's turn: every n-th of n workers."""
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        index = self.first_batch + offset
        while self.num_batches is None or index < self.first_batch + self.num_batches:
            yield self.batch(index)
            index += stride

    def batch(self, index: int) -> SceneBatch | PendingBatch:
        """Batch number `index`. Scenes are bad for one batch only, so batches do not depend on each other."""
        bad: set[str] = set()
        while True:
            pending = self._attempt(index, self._scene_names(index, bad), bad)
            if pending is not None:
                return pending if self.codec is None else pending.complete(self.codec)

    def _attempt(self, index: int, names: list[str], bad: set[str]) -> PendingBatch | None:
        """The batch of these scenes; None after adding at least one to `bad`, so that attempts end."""
        opened = [self._guarded(name, bad, partial(self._open, name)) for name in names]
        sources = [source for source in opened if source is not None]
        if len(sources) < len(names):
            return None
        shared = draw_num_trajectories(sources, self.config, batch_generator(self.seed, index, ALL_RANKS))
        generator = batch_generator(self.seed, index, self.rank)
        plans = draw_plans(sources, self.config, generator, shared)
        try:
            return gather(sources, plans, self.config)
        except READ_ERRORS:
            for source, plan in zip(sources, plans, strict=True):
                alone = partial(gather, [source], [plan], self.config)
                self._guarded(source.name, bad, alone)
            if not bad.intersection(names):
                raise
            return None

    def _open(self, name: str) -> StoredScene:
        source = StoredScene(
            self.store.scene(name), self.store.novel_clips(name), self.num_frames, self.store.spec
        )
        if len(source.input_ids) < self.config.num_trajectories_min:
            raise ValueError(
                f"scene {name} has {len(source.input_ids)} trajectories with latents, expected at least "
                f"{self.config.num_trajectories_min}: complete it or lower num_trajectories_min"
            )
        # Read here, where a failure is laid to this scene.
        _ = source.num_frames
        return source

    def _guarded(self, name: str, bad: set[str], read: Callable[[], Result]) -> Result | None:
        try:
            return read()
        except READ_ERRORS as error:
            bad.add(name)
            if name not in self.bad_scenes:
                self.bad_scenes[name] = str(error)
                logger.warning("scene %s skipped (%d so far): %s", name, len(self.bad_scenes), error)
            return None

    def _scene_names(self, index: int, bad: set[str]) -> list[str]:
        """The scenes of a batch: one pass over all in random order, then the next; without the bad ones."""
        good = len(self.names) - len(bad)
        if good == 0:
            reasons = "; ".join(f"{name}: {self.bad_scenes[name]}" for name in sorted(bad)[:3])
            raise ValueError(f"none of the {len(self.names)} training scenes can be read ({reasons})")
        chosen: list[str] = []
        for place in range(self.batch_size):
            taken = bad | set(chosen if good >= self.batch_size else [])
            chosen.append(self._scene_at(index * self.batch_size + place, taken))
        return chosen

    def _scene_at(self, position: int, taken: set[str]) -> str:
        """The scene at a position of the endless sequence of shuffled passes, or the next one not taken."""
        order = scene_order(position, len(self.names), self.seed, self.rank)
        return next(self.names[number] for number in order if self.names[number] not in taken)
