"""A stored scene as a decoder reads it: `open_scene`.

Shape letters: V trajectories, L frames, C T h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.camera_paths import TRAJECTORIES
from lyra_ns.cameras import CameraPath, relative_to, stack_cameras
from lyra_ns.data.open import chosen_trajectories, read_inputs
from lyra_ns.data.open import open_scene as open_stored
from lyra_ns.data.scenes import StoredScene


@dataclass(frozen=True)
class InputScene:
    """Latents and cameras of one scene, each read from disk when it is first asked for."""

    stored: StoredScene
    """The scene on disk, by trajectory."""
    trajectories: tuple[int, ...]
    """Numbers of the trajectories, in the order in which they are read; the axis V of all tensors."""

    @property
    def name(self) -> str:
        """Name of the scene."""
        return self.stored.name

    @property
    def names(self) -> tuple[str, ...]:
        """What the paths of the trajectories are called."""
        return tuple(
            TRAJECTORIES[number].name if number < len(TRAJECTORIES) else f"path {number}"
            for number in self.trajectories
        )

    @property
    def codec(self) -> str:
        """Name of the codec that made the latents; `unknown` where no manifest says it."""
        return self.stored.spec.codec

    @property
    def is_dynamic(self) -> bool:
        """Whether things move."""
        return self.stored.is_dynamic

    @cached_property
    def latents(self) -> Float[Tensor, "V C T h w"]:
        """Latents in diffusion space."""
        return read_inputs(self.stored, self.trajectories)[0]

    @cached_property
    def cameras(self) -> CameraPath:
        """Cameras [V, L] in the frame of the first camera of the first trajectory."""
        paths = stack_cameras([self.stored.cameras(number) for number in self.trajectories])
        return in_frame_of_first(paths)

    def frames(self, frames: Sequence[int] | None = None) -> UInt8[Tensor, "V n 3 H W"]:
        """The frames with these numbers (default: all) of every trajectory; FileNotFoundError without rgb."""
        chosen = range(self.cameras.shape[1]) if frames is None else frames
        return torch.stack([self.stored.rgb(number, chosen) for number in self.trajectories])


def in_frame_of_first(cameras: CameraPath) -> CameraPath:
    """The cameras [V, L] in the frame of the first one, whose pose is then the identity to the last bit."""
    relative = relative_to(cameras, cameras.camera_to_world[0, 0])
    poses = relative.camera_to_world.clone()
    poses[0, 0] = torch.eye(4)
    return replace(relative, camera_to_world=poses)


def open_scene(
    path: str | Path, name: str | None = None, trajectories: Sequence[int] | None = None
) -> InputScene:
    """The scene called `name` of a data set in the official layout, or of the folder of one trajectory.

    `path` is a folder or a tar. By default the first held-out scene, or the first of all, with all
    trajectories that have latents, the six usual ones first and in the order in which decoders read them.
    FileNotFoundError or ValueError, in one sentence, for what is not there.
    """
    stored = open_stored(Path(path), name)
    chosen = chosen_trajectories(stored, None if trajectories is None else tuple(trajectories))
    missing = [number for number in chosen if number not in stored.input_ids]
    if missing or not chosen:
        raise ValueError(
            f"scene {stored.name} has latents of the trajectories {stored.input_ids}, found {list(chosen)} "
            "asked for: choose among them"
        )
    return InputScene(stored, chosen)
