"""Whole scenes into memory, decoded by as many processes as there are cores.

Threads are no help: the loops over frames and scan lines hold Python's lock for most of the time.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from lyra_ns.data.loaded import LoadedScene, load_scene
from lyra_ns.data.plans import SamplingConfig
from lyra_ns.plugin.errors import DataError

if TYPE_CHECKING:
    from lyra_ns.data.store import LyraStore

FEW_SCENES = 16
"""So many scenes are read before another process has started."""


class _Scenes(Dataset[bytes]):
    """Scenes by position, pickled; in place of one that cannot be read, the sentence that says so.

    Pickled, because tensors would go through shared memory and hold a file of it open each, for good.
    """

    def __init__(self, store: LyraStore, names: list[str], sampling: SamplingConfig) -> None:
        self._store, self._names, self._sampling = store, names, sampling

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, position: int) -> bytes:
        return pickle.dumps(self.load(position), pickle.HIGHEST_PROTOCOL)

    def load(self, position: int) -> LoadedScene | str:
        """The scene itself, or the sentence."""
        store, name, sampling = self._store, self._names[position], self._sampling
        try:
            return load_scene(
                store.scene(name),
                store.novel_clips(name) if sampling.include_novel_paths else None,
                with_rgb=sampling.target_frames == "rgb" or sampling.include_novel_paths or store.is_dynamic,
                with_depth=sampling.with_depth or sampling.warm_start,
                latent_dtype=torch.float16,
                spec=store.spec,
            )
        except (ValueError, OSError) as error:
            return f"scene {name} is left out: {error}"


def load_scenes(
    store: LyraStore, names: list[str], sampling: SamplingConfig, device: torch.device | str
) -> list[LoadedScene]:
    """All scenes in memory, latents in half precision; one that cannot be read is named and left out.

    DataError if none can be read.
    """
    scenes, problems = [], []
    loading = _loaded(_Scenes(store, names, sampling), loading_processes(len(names)))
    for found in track(loading, "Loading scenes", total=len(names), transient=True):
        if isinstance(found, str):
            problems.append(found)
            CONSOLE.log(f"lyra: {found}")
        else:
            scenes.append(found.to(device))
    if not scenes:
        raise DataError(
            f"none of the {len(names)} training scenes can be read; the first problem: {problems[0]}"
        )
    return scenes


def loading_processes(num_scenes: int) -> int:
    """Processes to start: one per core if there are many scenes; 0 for none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if num_scenes < FEW_SCENES or cores < 2 else min(cores, num_scenes // 4)


def _loaded(scenes: _Scenes, num_processes: int) -> Iterator[LoadedScene | str]:
    """The scenes in their order."""
    if num_processes == 0:
        return map(scenes.load, range(len(scenes)))
    return map(pickle.loads, DataLoader(scenes, batch_size=None, num_workers=num_processes))
