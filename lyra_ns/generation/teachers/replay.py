"""The teacher that reads clips from disk: latents where they are there, else videos, which it encodes.

Shape letters: L frames, C latent channels, T latent frames, H W image, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import codec_for, load_codec
from lyra_ns.codec.interface import VideoCodec, VideoLatentSpec
from lyra_ns.data.loaded import check_image_size, check_latent_size
from lyra_ns.data.resizing import resize_cameras, resize_depth, resize_rgb
from lyra_ns.generation.teachers.clips_on_disk import ClipOnDisk, clips_on_disk
from lyra_ns.generation.teachers.frames import frames_of_latents, latents_of_frames
from lyra_ns.generation.teachers.interface import OnStep, TeacherClip, TeacherRequest
from lyra_ns.generation.teachers.requests import Notes, check_requests, request_name

TOLERANCE = 1e-3
"""Largest difference of rotations; of positions relative to the path's extent; of intrinsics to the width."""


class ReplayTeacher:
    """The clips below `root` (`clips_on_disk` says which folders), as latents of `codec` (on `device`).

    A request must name a clip's scene and trajectory and have its cameras, or the first of them; the size may
    be another, for which frames are cropped and resized. Stored latents are taken where they have the
    request's size and come from the same codec, or from nobody knows which; otherwise frames are encoded.
    """

    def __init__(self, root: Path | str, codec: VideoCodec, device: torch.device | str = "cpu") -> None:
        self.root = Path(root).expanduser()
        self._codec, self._device = codec, device

    @property
    def name(self) -> str:
        """`replay`."""
        return "replay"

    @property
    def codec(self) -> VideoCodec:
        """The codec of the clips."""
        return self._codec

    @property
    def needs_cache(self) -> bool:
        """Never."""
        return False

    @cached_property
    def clips(self) -> dict[tuple[str, int], ClipOnDisk]:
        """What is there, by scene and trajectory."""
        return {(clip.scene, clip.trajectory): clip for clip in clips_on_disk(self.root)}

    def generate(
        self, requests: Sequence[TeacherRequest], on_step: OnStep | None = None
    ) -> list[TeacherClip]:
        """One clip per request, in their order; a step is a clip. The request's image is not looked at.

        ValueError before anything is read for clips that are not there or have other cameras; later for
        damaged files.
        """
        check_requests(requests, self.codec.spec, needs_cache=False)
        found = [self._found(request) for request in requests]
        made = []
        for request, clip in zip(requests, found, strict=True):
            made.append(self._read(request, clip))
            if on_step is not None:
                on_step(len(made), len(requests))
        return made

    def _found(self, request: TeacherRequest) -> ClipOnDisk:
        """The clip of a request; ValueError if it is not there or its cameras are others."""
        clip = self.clips.get((request.scene, request.trajectory))
        if clip is None:
            there = [f"{scene}/{trajectory}" for scene, trajectory in self.clips]
            raise ValueError(
                f"{request_name(request)} is not among the {len(there)} clips of {self.root} "
                f"({', '.join(there[:6])}{', ...' if len(there) > 6 else ''}): ask for one of them"
            )
        different = _difference(request.cameras, clip.cameras)
        if different is not None:
            raise ValueError(
                f"{request_name(request)}: the clip in {self.root} was made along another camera path "
                f"({different}): ask for the path that it has, as clips_on_disk gives it"
            )
        return clip

    def _read(self, request: TeacherRequest, clip: ClipOnDisk) -> TeacherClip:
        cameras, frames = request.cameras, range(request.cameras.shape[0])
        z = self._stored_latents(request, clip)
        if clip.clip.has("rgb"):
            video = resize_rgb(clip.clip.rgb(frames), cameras.height, cameras.width)
        elif z is not None:
            video = frames_of_latents(self.codec, z, self._device)
        else:
            raise ValueError(
                f"{request_name(request)}: expected frames, or latents of {self.codec.spec.codec} for "
                f"{cameras.height}x{cameras.width}, found neither in {self.root}: take the codec and size of "
                "the stored latents"
            )
        depth = None
        if clip.clip.has("depth"):
            depth = clip.clip.depth(frames)
            check_image_size(depth, f"depth of {request_name(request)}", clip.cameras)
            depth = resize_depth(depth, cameras.height, cameras.width)
        notes: Notes = {"teacher": self.name, "latents": "encoded" if z is None else "stored"}
        if z is None:
            z = latents_of_frames(self.codec, video, self._device)
        return TeacherClip(z, video, depth, notes)

    def _stored_latents(self, request: TeacherRequest, clip: ClipOnDisk) -> Tensor | None:
        """Latents of the request's frames; None if there are none, or of another size or codec."""
        cameras, spec = request.cameras, self.codec.spec
        has_size = (cameras.height, cameras.width) == (clip.cameras.height, clip.cameras.width)
        if not has_size or not clip.clip.has("latent") or not _same_codec(clip.spec, spec):
            return None
        z = clip.clip.latents()
        check_latent_size(z, request_name(request), spec, cameras)
        num_wanted = (cameras.shape[0] - 1) // spec.temporal_stride + 1
        if z.shape[1] < num_wanted:
            raise ValueError(
                f"latent of {request_name(request)} must have {num_wanted} latent frames for "
                f"{cameras.shape[0]} frames, found {z.shape[1]}: generate the clip again"
            )
        return z[:, :num_wanted]


def codec_of_clips(root: Path | str, device: torch.device | str = "cpu") -> VideoCodec:
    """The codec that made the latents below `root`, on `device`; the one that ships where there are none.

    ValueError if there are latents of nobody knows which codec.
    """
    clips = clips_on_disk(root)
    with_latents = next((clip for clip in clips if clip.clip.has("latent")), None)
    return load_codec("linear", device) if with_latents is None else codec_for(with_latents.spec, device)


def _same_codec(stored: VideoLatentSpec, wanted: VideoLatentSpec) -> bool:
    """Whether latents were made with a codec, as far as anybody knows."""
    if stored.codec == "unknown":
        return True
    if stored.digest and wanted.digest:
        return stored.digest == wanted.digest
    return stored.codec.partition(":")[0] == wanted.codec.partition(":")[0]


def _difference(asked: CameraPath, stored: CameraPath) -> str | None:
    """In what cameras differ from the first of the stored ones, brought to their size; None if in nothing."""
    num_frames = asked.shape[0]
    if num_frames > stored.shape[0]:
        return f"{num_frames} frames asked for, {stored.shape[0]} stored"
    same = resize_cameras(stored[:num_frames], asked.height, asked.width)
    poses, other = asked.camera_to_world.cpu(), same.camera_to_world.cpu()
    turn = (poses[:, :3, :3] - other[:, :3, :3]).abs().max().item()
    centres, there = poses[:, :3, 3], other[:, :3, 3]
    extent = max((there - there[:1]).norm(dim=-1).max().item(), TOLERANCE * there.norm(dim=-1).max().item())
    away = (centres - there).norm(dim=-1).max().item() / max(extent, TOLERANCE**2)
    lens = (asked.intrinsics.cpu() - same.intrinsics.cpu()).abs().max().item() / asked.width
    for what, value in (("rotations", turn), ("positions", away), ("intrinsics", lens)):
        if not value <= TOLERANCE:
            return f"{what} differ by {value:.2g}"
    return None
