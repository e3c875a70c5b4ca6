"""What every teacher offers: a picture or video, a camera path and a 3D cache in, a clip and its latents out.

With it, what every teacher asks of a request before it makes anything, and how frames of 8 bits and the
latents that stand for them become each other. Source: docs/reference/gen3c.md, "Other teachers".

Shape letters: L frames (8k + 1), C latent channels, T latent frames, H W image, h w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cache3d.cache import CachedFrames, SceneCache, check_cameras
from lyra_ns.cameras import CameraPath
from lyra_ns.codec.base import VideoCodec, VideoLatentSpec
from lyra_ns.device import numbered

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


Notes = dict[str, str | int | float | bool]
"""What a record of a clip says about how it was made."""


def check_requests(requests: Sequence[TeacherRequest], spec: VideoLatentSpec, needs_cache: bool) -> None:
    """ValueError, naming the clip, for the first request that no clip of the codec can be made of.

    Cameras must be one finite path [L] of a size and length that the codec takes, the image must have that
    size, and a cache must be there if it is needed and last as long as the path if it is one of a video.
    """
    for request in requests:
        with naming(request):
            _check(request, spec, needs_cache)


@contextmanager
def naming(request: TeacherRequest) -> Iterator[None]:
    """Puts the name of the request's clip before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{request_name(request)}: {error}") from error


def request_name(request: TeacherRequest) -> str:
    """How messages call the clip of a request."""
    return f"scene {request.scene}, trajectory {request.trajectory}"


def cache_on(cache: SceneCache, device: torch.device | str) -> SceneCache:
    """The same cache on `device`, which is where it renders."""
    frames = cache.frames
    if frames.rgb.device == numbered(device):
        return cache
    rgb, depth, usable, torn = (
        values.to(device) for values in (frames.rgb, frames.depth, frames.usable, frames.torn)
    )
    return replace(cache, frames=CachedFrames(rgb, depth, usable, torn, frames.cameras.to(device)))


def _check(request: TeacherRequest, spec: VideoLatentSpec, needs_cache: bool) -> None:
    cameras = request.cameras
    if len(cameras.shape) != 1 or cameras.shape[0] == 0:
        raise ValueError(f"expected one path of cameras [frames], found {list(cameras.shape)}: pick one")
    check_cameras(cameras)
    spec.latent_shape(cameras.shape[0], cameras.height, cameras.width)
    expected = (3, cameras.height, cameras.width)
    if tuple(request.image.shape) != expected:
        raise ValueError(
            f"expected an image {list(expected)} as large as the cameras say, found "
            f"{list(request.image.shape)}: resize image and cameras together"
        )
    # NaN fails the comparison, too.
    if not bool(((request.image >= 0) & (request.image <= 1)).all()):
        raise ValueError("expected an image with colours from 0 to 1, found others: divide 8-bit ones by 255")
    if needs_cache:
        _check_cache(request)


def _check_cache(request: TeacherRequest) -> None:
    cache, num_frames = request.cache, request.cameras.shape[0]
    if cache is None:
        raise ValueError("expected a 3D cache, found none: make one from the image and its depth")
    if cache.policy == "per_frame" and not 0 <= request.start <= len(cache.frames) - num_frames:
        raise ValueError(
            f"expected {num_frames} frames of video from frame {request.start} on, found "
            f"{len(cache.frames)} in the cache: give a longer video or a shorter camera path"
        )


def eight_bits(colours: Float[Tensor, "*batch"]) -> UInt8[Tensor, "*batch"]:
    """Colours from 0 to 1 as numbers from 0 to 255, rounded; what lies outside is clamped."""
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def latents_of_frames(
    codec: VideoCodec, video: UInt8[Tensor, "L 3 H W"], device: torch.device | str
) -> Float[Tensor, "C T h w"]:
    """Latents in diffusion space of one clip, encoded on `device` (where the codec must be); on the CPU."""
    colours = video.to(device).transpose(0, 1)[None].float() / 127.5 - 1
    return codec.to_diffusion(codec.encode(colours))[0].float().cpu()


@torch.no_grad()
def frames_of_latents(
    codec: VideoCodec, z: Float[Tensor, "C T h w"], device: torch.device | str
) -> UInt8[Tensor, "L 3 H W"]:
    """The frames that latents in diffusion space decode to, rounded to 8 bits; on the CPU."""
    video = codec.decode(codec.from_diffusion(z.to(device).float()[None]))[0]
    return eight_bits((video.transpose(0, 1) + 1) / 2).cpu()
