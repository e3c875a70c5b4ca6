"""What every teacher offers: a picture or video, a camera path and a 3D cache in, a clip and its latents out.

Source: docs/reference/gen3c.md, "Other teachers".

Shape letters: L frames (8k + 1), C latent channels, T latent frames, H W image, h w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.codec.interface import VideoCodec
from lyra_ns.generation.cache.scene import SceneCache

OnStep = Callable[[int, int], None]
"""Called with the steps that are done and all steps of one call of `generate`."""


@dataclass(frozen=True)
class TeacherRequest:
    """One clip to make."""

    scene: str
    """Name of the scene, by which teachers that read files find it."""
    trajectory: int
    """Number of the camera path among those of the scene."""
    cameras: CameraPath
    """The path [L], in the world of the cache; its image size is the size of the clip."""
    image: Float[Tensor, "3 H W"]
    """The first frame, colours 0 to 1, at the size of the cameras."""
    cache: SceneCache | None = None
    """What is known of the scene; teachers render from it what they are shown. None if nothing is known."""
    prompt: str | None = None
    """What the clip should show; None for no text."""
    negative_prompt: str | None = None
    """What it should not show; None for the teacher's own default."""
    seed: int = 0
    """Start of the noise; the same request with the same seed gives the same clip."""
    start: int = 0
    """Frame of the source video that belongs to the first frame (caches of videos only)."""


@dataclass(frozen=True)
class TeacherClip:
    """One clip as it was made."""

    z: Float[Tensor, "C T h w"]
    """Latents of the clip in diffusion space, float32, on the CPU."""
    video: UInt8[Tensor, "L 3 H W"]
    """Frames that belong to the latents, on the CPU."""
    depth: Float[Tensor, "L H W"] | None = None
    """z-depth in the world of the cache, 0 where unknown, on the CPU; None if the teacher knows none."""
    notes: dict[str, str | int | float | bool] = field(default_factory=dict)
    """What a record of the clip should say about how it was made."""


@runtime_checkable
class CameraVideoTeacher(Protocol):
    """A source of clips along given camera paths."""

    @property
    def name(self) -> str:
        """What it is called in records."""
        ...

    @property
    def codec(self) -> VideoCodec:
        """The codec of its latents, which also decodes them."""
        ...

    @property
    def needs_cache(self) -> bool:
        """Whether requests must come with a cache."""
        ...

    def generate(
        self, requests: Sequence[TeacherRequest], on_step: OnStep | None = None
    ) -> list[TeacherClip]:
        """One clip per request, in their order. A clip does not depend on the other requests.

        ValueError for a request that the teacher cannot serve: nothing is made then.
        """
        ...
