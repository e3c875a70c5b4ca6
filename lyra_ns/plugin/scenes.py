"""The scenes of a data set as the glue sees them: which are held out or shown, what the decoder reads.

Shape letters: V trajectories, L frames, C T h w latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, invert_rigid, stack_cameras
from lyra_ns.data.types import Clip, Scene
from lyra_ns.plugin.errors import MISSING_DATA, DataError, reading_data
from lyra_ns.plugin.views import SceneViews, listed_trajectories, views_of

if TYPE_CHECKING:
    from lyra_ns.data.pose_order import FlippedPoseOrder
    from lyra_ns.data.splits import SceneSplit
    from lyra_ns.data.store import LyraStore

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
