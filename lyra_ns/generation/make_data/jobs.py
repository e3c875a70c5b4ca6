"""Pieces of work: the clips of one scene that are still missing, or some of them.

A clip is there when its pose file is, since writers put that last; so the folders say what is done.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lyra_ns.codec.interface import VideoLatentSpec
from lyra_ns.data.store import list_clips
from lyra_ns.generation.make_data.plan import PlannedScene


@dataclass(frozen=True)
class Job:
    """Work for one worker."""

    scene: PlannedScene
    """The scene."""
    trajectories: tuple[int, ...]
    """Clips to make, ascending; they share depth and cache."""


@dataclass(frozen=True)
class JobResult:
    """What became of a job."""

    job: Job
    """The job."""
    failure: str | None = None
    """One sentence if it could not be done."""
    is_fatal: bool = False
    """Whether every other job would end like this one, so that the run stops."""
    is_worker_lost: bool = False
    """Whether its worker can do nothing more; the job, and what that worker would have done, is left."""
    codec: VideoLatentSpec | None = None
    """Codec of the latents that were made."""


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of the scenes, for machines that do not know of each other."""

    index: int = 0
    """Number of the part, from 0."""
    count: int = 1
    """How many parts there are."""

    @staticmethod
    def parse(text: str) -> Shard:
        """The shard of a text such as 0/4; ValueError for others."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not int(found[1]) < int(found[2]):
            raise ValueError(f"expected a shard such as 0/4 (the first of four), found {text!r}")
        return Shard(int(found[1]), int(found[2]))

    def holds(self, scene: PlannedScene) -> bool:
        """Whether a scene is in this part, by its content."""
        digest = hashlib.sha256(scene.digest.encode()).digest()
        return int.from_bytes(digest[:8], "little") % self.count == self.index


def finished_clips(folder: Path) -> dict[str, set[int]]:
    """Numbers of the clips that are there, by scene; `folder` holds the numbered ones."""
    return {name: set(ids) for name, ids in list_clips(folder).items()} if folder.is_dir() else {}


def missing_jobs(
    scenes: Iterable[PlannedScene], finished: Mapping[str, set[int]], clips_per_job: int = 0
) -> Iterator[Job]:
    """Jobs for all clips that are not finished, scene by scene; 0 clips per job makes one job of a scene."""
    for scene in scenes:
        missing = [number for number in scene.trajectories if number not in finished.get(scene.name, ())]
        size = clips_per_job or max(len(missing), 1)
        for first in range(0, len(missing), size):
            yield Job(scene, tuple(missing[first : first + size]))
