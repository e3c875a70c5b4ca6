"""Clips as a decoder reads them: latents and cameras, of the size and the codec that it was trained for.

Shape letters: V trajectories, L frames, C T h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.codec.interface import VideoCodec, VideoLatentSpec
from lyra_ns.data.resizing import resize_cameras, resize_depth, resize_rgb
from lyra_ns.data.video_files import VideoSize
from lyra_ns.decoder_config import DecoderConfig
from lyra_ns.generation.length_unit import in_unit
from lyra_ns.generation.scene_plan import PlannedPath
from lyra_ns.generation.teachers.frames import frames_of_latents, latents_of_frames
from lyra_ns.generation.teachers.interface import TeacherClip

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
