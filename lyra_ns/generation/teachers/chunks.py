"""Videos longer than a network makes at once: chunks that share a frame.

Source: docs/reference/gen3c.md, "Long videos". Shape letters: L frames, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.generation.cache.align import align_inverse_depth
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.depth.estimator import DepthEstimator
from lyra_ns.generation.teachers.interface import TeacherRequest
from lyra_ns.generation.teachers.requests import Notes, request_name
from lyra_ns.generation.teachers.warp import merged


def chunk_paths(cameras: CameraPath, chunk_frames: int) -> list[CameraPath]:
    """The path [L] in chunks of `chunk_frames`, each starting at the last camera of the one before.

    Times run from 0 to 1 in each. A path that is not longer is one chunk. ValueError if the last chunk would
    be shorter than the others.
    """
    num_frames, step = cameras.shape[0], chunk_frames - 1
    if num_frames <= chunk_frames:
        return [cameras]
    if (num_frames - 1) % step:
        whole = (num_frames - 1) // step * step + 1
        raise ValueError(
            f"a video of more than {chunk_frames} frames must have {step}k + 1, found {num_frames}: cut the "
            f"camera path to {whole} or extend it to {whole + step}"
        )
    times = torch.linspace(0.0, 1.0, chunk_frames, device=cameras.times.device)
    return [
        replace(cameras[start : start + chunk_frames], times=times)
        for start in range(0, num_frames - 1, step)
    ]


def joined_video(chunks: Sequence[UInt8[Tensor, "_ 3 H W"]]) -> UInt8[Tensor, "L 3 H W"]:
    """The frames of all chunks, of those that two share only the first."""
    return torch.cat([chunks[0], *(chunk[1:] for chunk in chunks[1:])])


@dataclass(frozen=True)
class Chunk:
    """A part of a request's video, and what it starts from."""

    request: TeacherRequest
    """What was asked for."""
    paths: list[CameraPath]
    """All chunks of the path."""
    number: int
    """Which one this is."""
    image: Float[Tensor, "3 H W"]
    """Its first frame, 0 to 1."""
    cache: SceneCache
    """What is known by now."""
    notes: Notes = field(default_factory=dict)
    """How well the depth of its first frame fits the cache."""

    @property
    def cameras(self) -> CameraPath:
        """Its path."""
        return self.paths[self.number]

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.number + 1 == len(self.paths)

    @property
    def start(self) -> int:
        """Frame of the source video that belongs to its first frame."""
        return self.request.start + sum(path.shape[0] - 1 for path in self.paths[: self.number])


def first_chunk(request: TeacherRequest, paths: list[CameraPath]) -> Chunk:
    """The chunk that starts from the request's image."""
    assert request.cache is not None
    return Chunk(request, paths, 0, request.image, request.cache)


def next_chunk(chunk: Chunk, last_frame: UInt8[Tensor, "3 H W"], depth: DepthEstimator | None) -> Chunk:
    """The chunk that starts from the last frame of `chunk`.

    That frame becomes part of the cache, its depth estimated and brought into the cache's scale; the cache of
    a video knows its frames already. ValueError, naming the clip, if the two depths cannot be compared.
    """
    image = last_frame.float() / 255
    following = replace(chunk, number=chunk.number + 1, image=image)
    if chunk.cache.policy == "per_frame":
        return following
    assert depth is not None
    try:
        cache, notes = _extended(chunk.cache, image, chunk.cameras[-1:], depth)
    except ValueError as error:
        raise ValueError(f"{request_name(chunk.request)}, end of chunk {chunk.number}: {error}") from error
    return replace(following, cache=cache, notes=notes)


def _extended(
    cache: SceneCache, image: Tensor, camera: CameraPath, estimator: DepthEstimator
) -> tuple[SceneCache, Notes]:
    """The cache with the image as a new frame seen by `camera` [1]; what has no depth is taken for sky."""
    predicted = estimator.predict(image, camera.intrinsics[0].to(image))
    known = merged(cache.render(camera)).depth[0].to(predicted.depth)
    fit = align_inverse_depth(predicted.depth, known)
    farthest = cache.settings.farthest_depth
    aligned = fit.applied(predicted.depth, farthest)
    if farthest is not None:
        aligned = torch.where(predicted.known, aligned, farthest)
    notes: Notes = {
        "depth_scale": fit.scale, "depth_shift": fit.shift, "depth_residual": fit.residual,
    }  # fmt: skip
    return cache.append(image.to(cache.frames.rgb), aligned.to(cache.frames.depth), camera[0]), notes
