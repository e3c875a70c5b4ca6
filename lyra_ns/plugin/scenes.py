"""The scenes of a data set as the glue sees them: which are held out or shown, what the decoder reads.

Whole scenes come into memory decoded by as many processes as there are cores (threads are no help: the loops
over frames and scan lines hold Python's lock for most of the time). The Gaussians of recently shown scenes
are kept, so that a viewer frame does not run the decoder again.

Shape letters: V trajectories, L frames, C T h w latent.
"""

from __future__ import annotations

import os
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lyra_ns.cameras import CameraPath, invert_rigid, stack_cameras
from lyra_ns.data.scenes import LoadedScene, load_scene
from lyra_ns.data.types import Clip, Scene
from lyra_ns.data.view_sampling import SamplingConfig
from lyra_ns.gaussians import Gaussians
from lyra_ns.plugin.errors import MISSING_DATA, DataError, reading_data
from lyra_ns.plugin.views import SceneViews, listed_trajectories, views_of

if TYPE_CHECKING:
    from lyra_ns.data.pose_order import FlippedPoseOrder
    from lyra_ns.data.splits import SceneSplit
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


MOST_FRAMES_SHOWN = 33
"""Frames of one trajectory that the viewer shows; of longer clips every second, third, ... is taken."""


@dataclass(frozen=True)
class SceneInputs:
    """What the decoder reads to reconstruct one scene."""

    z: Float[Tensor, "V C T h w"]
    """Latents in diffusion space."""
    cameras: CameraPath
    """Paths [V, L] as stored."""
    reference_from_first: Float[Tensor, "4 4"]
    """From the frame of the first camera of these trajectories to that of the scene's usual first one."""


class SceneLibrary:
    """Scenes of one data set; the active one is what viewer, ns-render and ns-export show."""

    def __init__(self, store: LyraStore, split: SceneSplit, order: Sequence[int], active: str = "") -> None:
        """Take scenes from `store`; `active` is a name or a position in `names`, the first by default."""
        self.store = store
        self.split = split
        self.order = tuple(order)
        self.names = [*split.test, *split.train]
        self.active = _chosen(self.names, active)
        self.is_dynamic = store.is_dynamic
        self._scene = lru_cache(maxsize=64)(store.scene)

    def scene(self, name: str) -> Scene:
        """The scene called `name`."""
        return self._scene(name)

    def trajectories(self, name: str) -> list[int]:
        """Ids of the scene's input trajectories in reading order."""
        with reading_data():
            return listed_trajectories(self.scene(name), self.order)

    def inputs(self, name: str, trajectories: Sequence[int]) -> SceneInputs:
        """Latents and cameras of some trajectories of a scene; DataError if a file is missing or damaged."""
        with reading_data():
            scene = self.scene(name)
            clips = [scene.clips[number] for number in trajectories]
            cameras = stack_cameras([clip.cameras() for clip in clips])
            usual_first = scene.clips[self.trajectories(name)[0]].cameras().camera_to_world[0]
            reference_from_first = invert_rigid(usual_first) @ cameras.camera_to_world[0, 0]
            return SceneInputs(torch.stack([clip.latents() for clip in clips]), cameras, reference_from_first)

    def input_views(self, name: str) -> SceneViews:
        """Frames of the input trajectories."""
        return self._views(name, self._input_clips(name), every=-(-self.num_frames // MOST_FRAMES_SHOWN))

    def true_views(self, name: str, every: int) -> SceneViews:
        """Frames to measure against: of held-out camera paths where there are any, else of the inputs."""
        novel = {f"novel_{number}": clip for number, clip in self.store.novel_clips(name).items()}
        return self._views(name, novel or self._input_clips(name), every)

    def _input_clips(self, name: str) -> dict[str, Clip]:
        clips = self.scene(name).clips
        return {f"trajectory_{number}": clips[number] for number in self.trajectories(name)}

    def _views(self, name: str, clips: Mapping[str, Clip], every: int) -> SceneViews:
        with reading_data():
            return views_of(self.scene(name), clips, self.trajectories(name)[0], every)

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        clips = self.scene(self.active).clips
        with reading_data():
            return next(iter(clips.values())).cameras().shape[0]

    def nearest_time(self, time: float) -> float:
        """The moment of a frame that is nearest to `time`."""
        last = max(self.num_frames - 1, 1)
        return round(min(max(time, 0.0), 1.0) * last) / last


def open_scenes(
    data: Path | None,
    order: Sequence[int],
    active: str = "",
    split_seed: int = 0,
    test_fraction: float = 0.1,
    flipped_pose_order: FlippedPoseOrder = "auto",
) -> SceneLibrary:
    """The scenes of the data set at `data`; DataError with what to do if there is none."""
    if data is None:
        raise DataError(MISSING_DATA)
    # Imported here: reading videos needs PyAV, and this module must load without it.
    from lyra_ns.data.splits import split_scenes
    from lyra_ns.data.store import LyraStore

    with reading_data():
        store = LyraStore(data, flipped_pose_order)
        given = store.manifest.splits if store.manifest else None
        split = split_scenes(store.names, split_seed, test_fraction, folder=store.home, given=given)
        return SceneLibrary(store, split, order, active)


def _chosen(names: list[str], wanted: str) -> str:
    if not wanted:
        return names[0]
    if wanted in names:
        return wanted
    if wanted.isdecimal() and int(wanted) < len(names):
        return names[int(wanted)]
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    raise ValueError(
        f"there is no scene {wanted!r}: give one of {listed} or a position from 0 to {len(names) - 1}"
    )


@dataclass(frozen=True)
class SceneRequest:
    """Which Gaussians are wanted."""

    scene: str
    """Name of the scene."""
    trajectories: tuple[int, ...]
    """Ids of the input trajectories in the order in which the decoder reads them."""
    target_time: float | None = None
    """Moment shown, 0 to 1 (dynamic scenes only)."""


@dataclass(frozen=True)
class _Entry:
    gaussians: Gaussians
    version: int
    finished: float
    seconds: float


class SceneCache:
    """Least-recently-used Gaussians, each valid for one version of the decoder's weights."""

    STALE_FACTOR = 10.0
    """A stale entry may be shown for this many times the seconds that a new one costs."""

    def __init__(self, decode: Callable[[SceneRequest], Gaussians], capacity: int = 4) -> None:
        self._decode = decode
        self._capacity = capacity
        self._entries: OrderedDict[SceneRequest, _Entry] = OrderedDict()

    def get(self, request: SceneRequest, version: int, may_be_stale: bool = False) -> Gaussians:
        """The Gaussians of `request` under weights `version`.

        With `may_be_stale` (viewer frames while training goes on) those of an earlier version do for a
        while, so that an open browser slows training down by a tenth and not by half.
        """
        entry = self._entries.get(request)
        if entry is None or not self._is_usable(entry, version, may_be_stale):
            started = time.monotonic()
            gaussians = self._decode(request)
            finished = time.monotonic()
            entry = _Entry(gaussians, version, finished, finished - started)
        # The viewer may interrupt at any line: the entry is complete before it is stored.
        self._entries[request] = entry
        self._entries.move_to_end(request)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        return entry.gaussians

    def clear(self) -> None:
        """Forget everything."""
        self._entries = OrderedDict()

    def _is_usable(self, entry: _Entry, version: int, may_be_stale: bool) -> bool:
        if entry.version == version:
            return True
        return may_be_stale and time.monotonic() - entry.finished < self.STALE_FACTOR * entry.seconds
