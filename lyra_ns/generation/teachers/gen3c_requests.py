"""What GEN3C asks of requests before it makes anything, and how large what they ask for is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lyra_ns.cameras import CameraPath
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.gen3c.memory_needs import ClipSize
from lyra_ns.generation.teachers.interface import TeacherRequest

if TYPE_CHECKING:
    from lyra_ns.generation.gen3c.pipeline import Gen3CPipeline


def check_network(request: TeacherRequest, pipeline: Gen3CPipeline) -> None:
    """ValueError for a size or a cache that the network does not take."""
    cameras, cache = request.cameras, request.cache
    assert cache is not None
    multiple = pipeline.codec.spec.spatial_stride * pipeline.transformer.config.patch_size[-1]
    if cameras.height % multiple or cameras.width % multiple:
        raise ValueError(
            f"height and width must be multiples of {multiple}, found {cameras.height}x{cameras.width}: "
            "resize or crop image, depth and cameras"
        )
    most = 1 if cache.policy == "per_frame" else cache.settings.max_buffers
    if most > pipeline.num_buffers:
        raise ValueError(
            f"the network reads {pipeline.num_buffers} 3D buffers, found a cache of up to {most}: "
            "lower max_buffers in its settings"
        )


def check_extension(cameras: CameraPath, cache: SceneCache, has_depth: bool) -> None:
    """ValueError unless the last frame of a chunk can become part of the cache."""
    if not has_depth:
        raise ValueError(
            f"a video of {cameras.shape[0]} frames is made in chunks, which needs a depth estimator: "
            "give the teacher one, or shorten the path"
        )
    size, known = (cameras.height, cameras.width), tuple(cache.frames.depth.shape[1:])
    if size != known:
        raise ValueError(
            f"a video of chunks needs a cache of frames of its own size, {size} (height x width), found "
            f"{known}: resize them together, or shorten the path"
        )


def clip_size(
    requests: Sequence[TeacherRequest], paths: Sequence[Sequence[CameraPath]], samples_at_once: int
) -> ClipSize:
    """The size of the clips that requests of one size, with these chunks, ask for together."""
    first = paths[0][0]
    buffers = [_most_buffers(request, len(chunks)) for request, chunks in zip(requests, paths, strict=True)]
    together = min(len(requests), samples_at_once)
    return ClipSize(first.shape[0], first.height, first.width, together, max(buffers))


def _most_buffers(request: TeacherRequest, num_chunks: int) -> int:
    """3D buffers that the last of a request's chunks is shown."""
    cache = request.cache
    assert cache is not None
    if cache.policy == "per_frame":
        return 1
    return min(len(cache.frames) + num_chunks - 1, cache.settings.max_buffers)
