"""What the readers give: a scene is a set of clips, a clip one camera trajectory with its video.

Shape letters: B scenes, V trajectories, L frames, M target views, C T h w latent, H W image,
rows columns Gaussian cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath

NOVEL_FIRST_ID = 100
"""Held-out camera path k has trajectory id `NOVEL_FIRST_ID + k` wherever ids of both kinds meet."""


@runtime_checkable
class Clip(Protocol):
    """One trajectory of a scene. Cameras are at hand; everything heavy is read when asked for."""

    @property
    def scene(self) -> str:
        """Name of the scene."""
        ...

    @property
    def trajectory(self) -> int:
        """Numeric id of the trajectory (folder name on disk)."""
        ...

    def cameras(self) -> CameraPath:
        """The path [L], as stored: OpenCV camera-to-world, pixel intrinsics of the stored video."""
        ...

    def latents(self) -> Float[Tensor, "C T h w"]:
        """Latents in diffusion space; FileNotFoundError if the clip has none."""
        ...

    def rgb(self, frames: Sequence[int] | None = None) -> UInt8[Tensor, "L 3 H W"]:
        """The stored frames (lossy mp4), all or those at ascending positions."""
        ...

    def depth(self, frames: Sequence[int] | None = None) -> Float[Tensor, "L H W"]:
        """z-depth, 0 where unknown, of all or the given frames; FileNotFoundError if the clip has none."""
        ...

    def has(self, what: str) -> bool:
        """Whether 'latent', 'rgb' or 'depth' is stored."""
        ...


@dataclass(frozen=True)
class Scene:
    """All trajectories of one scene, keyed by numeric id."""

    name: str
    """File stem shared by the scene's clips."""
    clips: Mapping[int, Clip] = field(repr=False)
    """Clips by trajectory id, ascending."""
    is_dynamic: bool = False
    """Whether things move, so that time embeddings matter."""


@dataclass(frozen=True)
class SceneBatch:
    """Inputs and targets of B scenes with V trajectories each, relative to each scene's reference camera."""

    names: list[str]
    """Scene names."""
    trajectories: list[list[int]]
    """Ids of the input trajectories in the order in which the decoder reads them."""
    latents: Float[Tensor, "B V C T h w"]
    """Input latents in diffusion space."""
    cameras: CameraPath
    """Input cameras [B, V, L], relative to frame 0 of the first listed trajectory."""
    target_cameras: CameraPath
    """Cameras [B, M] of the views to render, in the same frame."""
    target_rgb: Float[Tensor, "B M H W 3"]
    """What the renders should show, 0 to 1."""
    target_depth: Float[Tensor, "B M H W"] | None = None
    """z-depth of the targets, 0 where unknown."""
    input_depth: Float[Tensor, "B V L rows columns"] | None = None
    """z-depth at the centre of each Gaussian's cell (attribute warm start only)."""
    input_rgb: Float[Tensor, "B V L rows columns 3"] | None = None
    """Mean colour of each Gaussian's cell (attribute warm start only)."""
    target_time: Float[Tensor, " B"] | None = None
    """Moment that the Gaussians should show, 0 to 1 (dynamic scenes)."""
    is_dynamic: bool = False
    """Whether the time embeddings are used."""
    target_ids: list[list[tuple[int, int]]] | None = None
    """Trajectory id and frame of each target (held-out paths count from `NOVEL_FIRST_ID`)."""
