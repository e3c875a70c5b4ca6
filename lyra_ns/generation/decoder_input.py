"""What the decoder is given of a scene, and what is known beside: the picture, and the cache from around.

Clips come as latents and cameras, of the size and the codec that the decoder was trained for. The picture
itself and the cache seen from around are kept in units of the scene, in the world of the first source camera,
when the cache itself is gone; Gaussians are refined against them and judged by them.

Shape letters: V trajectories, L frames of a clip, S frames of the source, M views, C T h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath, concatenate_cameras, relative_to, stack_cameras
from lyra_ns.codec.base import VideoCodec, VideoLatentSpec
from lyra_ns.data.resize import resize_cameras, resize_depth, resize_rgb
from lyra_ns.data.video import VideoSize
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.generation.length_unit import in_unit
from lyra_ns.generation.plan import PlannedPath, ScenePlan, coverage_of_cache, covered_degrees, turned_camera
from lyra_ns.refinement.config import usual_pixels
from lyra_ns.refinement.views import RefinementViews
from lyra_ns.teachers.base import TeacherClip, frames_of_latents, latents_of_frames
from lyra_ns.teachers.warp import shown_whole, warped_frames

SMALL_SIZE = VideoSize(17, 160, 256)
"""Clips that the decoder that ships was trained on."""
FULL_SIZE = VideoSize(121, 704, 1280)
"""Clips of GEN3C and of Lyra's own decoders."""


@dataclass(frozen=True)
class DecoderInput:
    """The clips of a scene, in the order in which they are read."""

    scene: str
    """Name of the scene."""
    z: Float[Tensor, "V C T h w"]
    """Latents in diffusion space."""
    cameras: CameraPath
    """Cameras [V, L]."""
    trajectories: tuple[int, ...]
    """Numbers of the clips on disk."""
    names: tuple[str, ...]
    """What the paths are called."""
    spec: VideoLatentSpec
    """Which codec made the latents."""
    is_dynamic: bool
    """Whether things move."""
    videos: tuple[UInt8[Tensor, "L 3 H W"], ...] = ()
    """Frames of the clips; empty if they are not at hand."""
    depths: tuple[Float[Tensor, "L H W"] | None, ...] = ()
    """z-depth of the frames in the unit of the cameras, 0 where unknown."""

    def in_unit(self, factor: float) -> DecoderInput:
        """The same with all lengths times `factor`."""
        depths = tuple(None if depth is None else depth * factor for depth in self.depths)
        return replace(self, cameras=in_unit(self.cameras, factor), depths=depths)


def usual_size(config: DecoderConfig) -> VideoSize:
    """The size of clips for which decoders of this kind are trained."""
    return SMALL_SIZE if is_small(config) else FULL_SIZE


def is_small(config: DecoderConfig) -> bool:
    """Whether a decoder is of the kind that ships, trained on rooms of a few units."""
    return config.head.scale_law == "footprint"


def clips_as_input(
    scene: str,
    paths: Sequence[PlannedPath],
    clips: Sequence[TeacherClip],
    codec: VideoCodec,
    is_dynamic: bool,
) -> DecoderInput:
    """The clips as the teacher made them, with latents of its own codec."""
    return DecoderInput(
        scene,
        torch.stack([clip.z for clip in clips]),
        stack_cameras([path.cameras for path in paths]),
        tuple(path.trajectory for path in paths),
        tuple(path.name for path in paths),
        codec.spec,
        is_dynamic,
        tuple(clip.video for clip in clips),
        tuple(clip.depth for clip in clips),
    )


def check_enough_frames(num_frames: int, size: VideoSize) -> None:
    """ValueError if clips of so many frames cannot be encoded again for a decoder of longer ones."""
    if num_frames < size.num_frames:
        raise ValueError(
            f"expected clips of at least the {size.num_frames} frames that the decoder reads, found "
            f"{num_frames}: give a larger --num-frames"
        )


def with_frames(given: DecoderInput, codec: VideoCodec, device: torch.device | str) -> DecoderInput:
    """The same; clips without frames get those that their latents decode to, by their codec on `device`."""
    if given.videos:
        return given
    return replace(given, videos=tuple(frames_of_latents(codec, z, device) for z in given.z))


def encoded_again(
    given: DecoderInput, codec: VideoCodec, size: VideoSize, device: torch.device | str
) -> DecoderInput:
    """The same clips at another size and of another codec: frames picked evenly, cropped, resized, encoded.

    ValueError if they have fewer frames than asked for.
    """
    num_frames = given.cameras.shape[1]
    check_enough_frames(num_frames, size)
    frames = torch.linspace(0, num_frames - 1, size.num_frames).round().long()
    cameras = resize_cameras(given.cameras[:, frames], size.height, size.width)
    times = torch.linspace(0.0, 1.0, size.num_frames).expand(cameras.shape)
    videos = tuple(resize_rgb(video[frames], size.height, size.width) for video in given.videos)
    depths = tuple(
        None if depth is None else resize_depth(depth[frames], size.height, size.width)
        for depth in given.depths
    )
    z = torch.stack([latents_of_frames(codec, video, device) for video in videos])
    return replace(
        given, z=z, cameras=replace(cameras, times=times), spec=codec.spec, videos=videos, depths=depths
    )


PICTURE_SHARE = 0.5
"""Share of the steps of refinement that are made with the picture itself."""
HOLE_WEIGHT = 0.1
"""Weight of what is shown in holes of the cache, where it is a guess."""
AROUND = ((8, 0), (-8, 0), (16, 0), (-16, 0), (0, 8), (0, -8))
"""Degrees to the right and upwards at which the cache is shown from around its centre."""
JUDGES_AROUND = ((12, 0), (-12, 0))
"""The same for views that judge."""


@dataclass(frozen=True)
class KnownViews:
    """Views in units of the scene."""

    picture: RefinementViews
    """The picture, or the frames of a video at their times."""
    around: RefinementViews | None = None
    """The cache from around; None if a video model completes it, and for videos."""
    covered: dict[str, int] = field(default_factory=dict)
    """Degrees by direction for which the cache is known; empty where `around` is None."""

    def for_gaussians(self, first_camera: Float[Tensor, "4 4"], factor: float) -> tuple[RefinementViews, ...]:
        """The views in the frame of the first camera of the first path, all lengths times `factor`."""
        return tuple(
            replace(
                some,
                cameras=in_unit(relative_to(some.cameras, first_camera), factor),
                depth=None if some.depth is None else some.depth * factor,
            )
            for some in (self.picture, self.around)
            if some is not None
        )


def known_views(plan: ScenePlan, is_warp: bool, device_type: str) -> KnownViews:
    """What the plan knows, as long as it has its cache; warped views are as fine as the picture."""
    assert plan.cache is not None
    picture = _source_views(plan).no_larger_than(usual_pixels(device_type))
    if not is_warp or plan.frames.is_video:
        return KnownViews(picture)
    camera = picture.cameras[0]
    covered = covered_degrees(coverage_of_cache(plan.cache), camera, plan.scale.centre_depth)
    return KnownViews(picture, _views_around(plan, camera), covered)


def _source_views(plan: ScenePlan) -> RefinementViews:
    """The picture, or the frames of a video, with their depth."""
    assert plan.cache is not None
    num = len(plan.frames.rgb)
    times = torch.linspace(0.0, 1.0, num) if num > 1 else torch.zeros(1)
    cameras = replace(plan.cache.frames.cameras.to("cpu"), times=times)
    images = plan.frames.rgb.movedim(1, -1).float() / 255
    return RefinementViews(images, cameras, plan.depth, share=PICTURE_SHARE)


def _views_around(plan: ScenePlan, camera: CameraPath) -> RefinementViews:
    """The cache as cameras like this one see it from around and from the middle and the end of the paths."""
    assert plan.cache is not None
    size = (camera.height, camera.width)
    judges, rings = (
        [turned_camera(camera, plan.scale.centre_depth, *degrees) for degrees in which]
        for which in (JUDGES_AROUND, AROUND)
    )
    middle_and_end = [plan.cameras.shape[1] // 2, plan.cameras.shape[1] - 1]
    paths = [path.cameras[middle_and_end].resized(*size) for path in plan.paths]
    cameras = concatenate_cameras([*judges, *rings, *paths])
    warped = warped_frames(shown_whole(plan.cache), cameras)
    weight = torch.where(warped.mask[:, 0], 1.0, HOLE_WEIGHT)
    images = warped.video.movedim(1, -1).float() / 255
    return RefinementViews(
        images, cameras, warped.depth, weight, 1 - PICTURE_SHARE, tuple(range(len(JUDGES_AROUND)))
    )
