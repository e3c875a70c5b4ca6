"""What every teacher asks of a request before it makes anything.

Shape letters: L frames, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from lyra_ns.codec.interface import VideoLatentSpec
from lyra_ns.device import numbered
from lyra_ns.generation.cache.frames import CachedFrames, check_cameras
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.teachers.interface import TeacherRequest

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
