"""The teacher that needs no network: the 3D cache as it looks along the path, its holes filled.

What no pixel of the cache shows is a smooth continuation of the background, not an invention: a clip is true
where the camera sees what the pictures saw, and a guess elsewhere.

Shape letters: L frames, S frames of the cache, N buffers, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.cache3d.cache import SceneCache, Warps
from lyra_ns.cache3d.inpaint import background_weights, fill_holes
from lyra_ns.cache3d.splat import reliable_depth
from lyra_ns.cameras import CameraPath
from lyra_ns.codec.base import VideoCodec
from lyra_ns.teachers.base import (
    OnStep,
    TeacherClip,
    TeacherRequest,
    cache_on,
    check_requests,
    eight_bits,
    latents_of_frames,
)

PIXELS_AT_ONCE = {"cpu": 2**21, "cuda": 2**24}
"""Pixels over all buffers that are rendered before the next frames: bounds memory, changes nothing else."""
SAME_SURFACE = 0.02
"""Buffers whose depths at a pixel differ by less than this share are taken to show the same thing."""
EDGE_WINDOW = 5
"""Side, in pixels, of the surroundings in which the near side of an edge does not colour a hole."""
FAR_SIDE = 0.95
"""Share of the greatest depth in those surroundings from which on a pixel belongs to the far side."""


class WarpedFrames(NamedTuple):
    """The cache as a path sees it; on the CPU."""

    video: UInt8[Tensor, "L 3 H W"]
    """Frames with their holes filled; times `mask` they are what the cache really shows."""
    mask: Bool[Tensor, "L 1 H W"]
    """Where the cache shows something."""
    depth: Float[Tensor, "L H W"]
    """z-depth in the world of the cache, 0 in holes."""


@dataclass(frozen=True)
class WarpTeacher:
    """Clips by warping: no network but the codec's.

    The first frame is the image as it is. Depth is 0 where the cache shows nothing.
    """

    codec: VideoCodec
    """Encodes the clips; on `device`."""
    device: torch.device | str = "cpu"
    """Where caches are rendered and clips encoded."""
    show_whole: bool = True
    """Shows pixels at jumps of the depth, too (`shown_whole`); without, caches are shown as they are."""

    @property
    def name(self) -> str:
        """`warp`."""
        return "warp"

    @property
    def needs_cache(self) -> bool:
        """Always."""
        return True

    def generate(
        self, requests: Sequence[TeacherRequest], on_step: OnStep | None = None
    ) -> list[TeacherClip]:
        """One clip per request, in their order; a step is a clip. ValueError before anything is made."""
        check_requests(requests, self.codec.spec, needs_cache=True)
        clips = []
        for request in requests:
            clips.append(self._clip(request))
            if on_step is not None:
                on_step(len(clips), len(requests))
        return clips

    def preview(self, request: TeacherRequest) -> WarpedFrames:
        """The frames of the clip before they are encoded."""
        check_requests([request], self.codec.spec, needs_cache=True)
        assert request.cache is not None
        cache = cache_on(request.cache, self.device)
        cache = shown_whole(cache) if self.show_whole else cache
        return warped_frames(cache, request.cameras, request.start, request.image)

    def _clip(self, request: TeacherRequest) -> TeacherClip:
        warped = self.preview(request)
        z = latents_of_frames(self.codec, warped.video, self.device)
        seen = warped.mask.float().mean().item()
        return TeacherClip(z, warped.video, warped.depth, {"teacher": self.name, "share_seen": seen})


def shown_whole(cache: SceneCache) -> SceneCache:
    """The cache without its filter for jumps of the depth and without foreground masking.

    Video models invent what these leave open, and better so; where nobody invents, a pixel that stands a
    little wrong beats a smooth patch. A cache with a mask of its own keeps the filter, since nobody knows
    which pixels at jumps that mask forbids.
    """
    frames, settings = cache.frames, cache.settings
    known = frames.depth > 0
    is_masked = not torch.equal(frames.usable, reliable_depth(frames.depth, settings.reliability_threshold))
    return replace(
        cache,
        frames=frames if is_masked else replace(frames, usable=known),
        settings=replace(settings, foreground_masking=False),
    )


@torch.no_grad()
def warped_frames(
    cache: SceneCache,
    cameras: CameraPath,
    start: int = 0,
    image: Float[Tensor, "3 H W"] | None = None,
) -> WarpedFrames:
    """What a path [L] sees of the cache, computed on the device of the cache, a few frames at a time.

    `image`, 0 to 1, if given stands in place of the first frame, as it is. `start` is the frame of the video
    that belongs to the first camera (caches of videos). Where several buffers show a pixel the nearest
    surface wins, and of those on one surface the buffer whose camera is closest. ValueError if a video is
    too short or the cameras cannot be used. Pixels that stand among holes count as holes.
    """
    if len(cameras.shape) != 1:
        raise ValueError(f"expected one path of cameras [frames], found {list(cameras.shape)}: pick one")
    num_frames, height, width = cameras.shape[0], cameras.height, cameras.width
    video = torch.empty(num_frames, 3, height, width, dtype=torch.uint8)
    mask = torch.empty(num_frames, 1, height, width, dtype=torch.bool)
    depth = torch.empty(num_frames, height, width)
    for part, warps in _rendered_parts(cache, cameras, start):
        seen = _without_strays(merged(warps))
        video[part] = eight_bits(_without_holes(seen)).cpu()
        mask[part], depth[part] = seen.mask.cpu(), seen.depth.float().cpu()
    if image is not None:
        video[0], mask[0] = eight_bits(image).cpu(), True
    return WarpedFrames(video, mask, depth)


@dataclass(frozen=True)
class SeenFrames:
    """What the buffers of a cache show together."""

    rgb: Float[Tensor, "L 3 H W"]
    """Colours from 0 to 1; 0 in holes."""
    mask: Bool[Tensor, "L 1 H W"]
    """Where anything is shown."""
    depth: Float[Tensor, "L H W"]
    """z-depth; 0 in holes."""


def merged(warps: Warps) -> SeenFrames:
    """At every pixel the first of the buffers that show the nearest surface there; warps of one path."""
    if warps.depth.shape[1] == 1:
        return SeenFrames(warps.rgb[:, 0], warps.mask[:, 0], warps.depth[:, 0])
    distance = torch.where(warps.mask[:, :, 0], warps.depth, torch.inf)
    is_nearest = distance <= distance.amin(1, keepdim=True) * (1 + SAME_SURFACE)
    chosen = is_nearest.to(torch.uint8).argmax(1, keepdim=True)
    return SeenFrames(
        warps.rgb.gather(1, chosen[:, :, None].expand(-1, -1, 3, -1, -1))[:, 0],
        warps.mask.gather(1, chosen[:, :, None])[:, 0],
        warps.depth.gather(1, chosen)[:, 0],
    )


def _rendered_parts(cache: SceneCache, cameras: CameraPath, start: int) -> Iterator[tuple[slice, Warps]]:
    """Warps of consecutive frames, their buffers ordered from the closest camera to the farthest.

    Of several views every one is shown, not only those that cover most: what is merged costs no memory.
    """
    num_frames, is_video = cameras.shape[0], cache.policy == "per_frame"
    if is_video and not 0 <= start <= len(cache.frames) - num_frames:
        raise ValueError(
            f"expected {num_frames} frames of video from frame {start} on, found {len(cache.frames)} in the "
            "cache: give a longer video or a shorter camera path"
        )
    whole = cache if is_video else replace(cache, policy="latest_and_first")
    pixels = max(cameras.height * cameras.width, cache.frames.depth[0].numel())
    at_once = PIXELS_AT_ONCE.get(cache.frames.rgb.device.type, 2**21) // pixels
    at_once = max(1, at_once if is_video else at_once // len(cache.frames))
    for begin in range(0, num_frames, at_once):
        part = slice(begin, begin + at_once)
        warps = whole.render(cameras[part], start + begin if is_video else 0)
        yield part, warps if is_video else _closest_first(warps, cache.frames.cameras, cameras[part])


def _closest_first(warps: Warps, sources: CameraPath, targets: CameraPath) -> Warps:
    """The same warps, the buffers of each frame by the distance of their cameras from the frame's."""
    if len(sources.camera_to_world) == 1:
        return warps
    centres = sources.camera_to_world[None, :, :3, 3]
    distance = (targets.camera_to_world[:, None, :3, 3].to(centres) - centres).norm(dim=-1)
    order = distance.argsort(dim=1, stable=True)
    frame = torch.arange(len(order), device=order.device)[:, None]
    return Warps(warps.rgb[frame, order], warps.mask[frame, order], warps.depth[frame, order])


def _without_strays(seen: SeenFrames) -> SeenFrames:
    """The same without pixels among holes: torn off an edge, they would stain what fills the holes."""
    around = functional.avg_pool2d(seen.mask.to(seen.rgb.dtype), 3, 1, 1, count_include_pad=False)
    mask = seen.mask & (around > 0.5)
    return SeenFrames(seen.rgb * mask, mask, seen.depth * mask[:, 0])


def _without_holes(seen: SeenFrames) -> Tensor:
    """The colours, and in holes those of the far side of the edges around them."""
    depth = seen.depth[:, None]
    weights = background_weights(depth)
    # With its holes filled, too, or the near side of a wide hole would have no far side in its window.
    farthest = functional.max_pool2d(fill_holes(depth, weights), EDGE_WINDOW, 1, EDGE_WINDOW // 2)
    weights = weights * (depth >= farthest * FAR_SIDE)
    return torch.where(seen.mask, seen.rgb, fill_holes(seen.rgb, weights))
