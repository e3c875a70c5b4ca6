"""The teacher that reads clips with cameras from disk: latents, or videos, which it encodes.

Whatever their folder looks like:

- A data set in the official layout, ours or unpacked or in tars: ROOT[/static]/{0..5}/{pose,rgb,...}/SCENE.*
- One trajectory without a number, as ViPE writes it: ROOT/{pose,intrinsics,rgb,depth}/SCENE.*
- Videos with camera files: ROOT/SCENE.mp4, or ROOT/SCENE/NUMBER.mp4 for several trajectories, each with
  .json or .npz of the same name (`read_camera_path` says which), and .zip of EXR images for depth.
- One such video: ROOT is its file.

Shape letters: L frames, C latent channels, T latent frames, H W image, h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import codec_for, load_codec
from lyra_ns.codec.base import VideoCodec, VideoLatentSpec
from lyra_ns.data.camera_files import read_camera_path
from lyra_ns.data.depth_files import read_depth
from lyra_ns.data.resize import resize_cameras, resize_depth, resize_rgb
from lyra_ns.data.scenes import check_image_size, check_latent_size
from lyra_ns.data.store import LyraClip, LyraStore
from lyra_ns.data.tar import find_tars
from lyra_ns.data.types import Clip
from lyra_ns.data.video import SUFFIXES as VIDEO_SUFFIXES
from lyra_ns.data.video import read_video, video_size
from lyra_ns.teachers.base import (
    Notes,
    OnStep,
    TeacherClip,
    TeacherRequest,
    check_requests,
    frames_of_latents,
    latents_of_frames,
    request_name,
)

CAMERA_SUFFIXES = (".json", ".npz")
ASPECT_TOLERANCE = 0.01
"""How far the aspect of a camera file may be from its video's: sizes are rounded."""


@dataclass(frozen=True)
class VideoClip:
    """A video with its camera file; a `Clip` like those of data sets."""

    scene: str
    """Name of the scene."""
    trajectory: int
    """Number of the trajectory."""
    video: Path
    """The video; camera file and depth lie beside it."""

    def has(self, what: str) -> bool:
        """Whether 'rgb' or 'depth' is there."""
        return what == "rgb" or (what == "depth" and self.video.with_suffix(".zip").is_file())

    def cameras(self) -> CameraPath:
        """The path [L], in pixels of the video; ValueError unless there is a camera for each frame."""
        path, size = _camera_file(self.video), video_size(self.video)
        cameras = read_camera_path(path)
        if cameras.shape[0] != size.num_frames:
            raise ValueError(
                f"camera path {path} must have a camera for each of the {size.num_frames} frames of "
                f"{self.video.name}, found {cameras.shape[0]}: export it with the video's frame rate"
            )
        stretch = (size.width / size.height) / (cameras.width / cameras.height)
        if abs(stretch - 1) > ASPECT_TOLERANCE:
            raise ValueError(
                f"camera path {path} is made for {cameras.height}x{cameras.width} (height x width), found "
                f"another aspect in {self.video.name}, {size.height}x{size.width}: export it for that size"
            )
        return cameras.resized(size.height, size.width)

    def latents(self) -> Tensor:
        """Nothing: FileNotFoundError, because a video has none."""
        raise FileNotFoundError(f"video {self.video} has no latents: encode it")

    def rgb(self, frames: Sequence[int] | None = None) -> UInt8[Tensor, "L 3 H W"]:
        """All frames, or those at ascending positions."""
        return read_video(self.video, frames)

    def depth(self, frames: Sequence[int] | None = None) -> Float[Tensor, "L H W"]:
        """z-depth of all frames or those given, 0 where unknown; FileNotFoundError if there is none."""
        return read_depth(self.video.with_suffix(".zip"), frames)


@dataclass(frozen=True)
class ClipOnDisk:
    """One clip and the codec of its latents."""

    clip: Clip
    """Where everything is read from."""
    spec: VideoLatentSpec = VideoLatentSpec("unknown")  # noqa: RUF009  frozen
    """Codec that made its latents, if it has any and that is known."""

    @cached_property
    def cameras(self) -> CameraPath:
        """The path [L], in pixels of the stored video; read when first asked for."""
        return self.clip.cameras()

    @property
    def scene(self) -> str:
        """Name of the scene."""
        return self.clip.scene

    @property
    def trajectory(self) -> int:
        """Number of the trajectory."""
        return self.clip.trajectory

    def request(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> TeacherRequest:
        """What to ask `ReplayTeacher` for: the first `num_frames` frames, cropped and resized.

        None takes as many frames as fill whole latent frames (8k + 1), and the size of the video. ValueError
        if the clip is shorter, FileNotFoundError if it has no frames.
        """
        stride, found = self.spec.temporal_stride, self.cameras.shape[0]
        wanted = (found - 1) // stride * stride + 1 if num_frames is None else num_frames
        if not 1 <= wanted <= found:
            raise ValueError(
                f"scene {self.scene}, trajectory {self.trajectory} must have {wanted} frames, found {found}: "
                "ask for fewer"
            )
        times = torch.linspace(0.0, 1.0, wanted) if wanted > 1 else torch.zeros(1)
        size = (height or self.cameras.height, width or self.cameras.width)
        cameras = resize_cameras(replace(self.cameras[:wanted], times=times), *size)
        image = resize_rgb(self.clip.rgb([0]), *size)[0].float() / 255
        return TeacherRequest(self.scene, self.trajectory, cameras, image)


def clips_on_disk(root: Path | str) -> list[ClipOnDisk]:
    """The clips below `root`, by scene and trajectory; their cameras are read when they are asked for.

    FileNotFoundError if there is none, or a video has no camera file. Asking for cameras raises ValueError
    where a file is damaged or the cameras do not fit their video.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"clips {root} do not exist: give a folder of clips, or a video's file")
    if root.suffix.lower() in VIDEO_SUFFIXES:
        return [_of_video(VideoClip(root.stem, 0, root))]
    if (root / "pose").is_dir():
        names = sorted(path.stem for path in (root / "pose").glob("*.npz") if path.name[0] != ".")
        clips: list[ClipOnDisk] = [ClipOnDisk(LyraClip(name, 0, root)) for name in names]
    elif videos := _videos(root):
        clips = [_of_video(video) for video in videos]
    else:
        clips = _of_data_set(root)
    if not clips:
        raise FileNotFoundError(
            f"{root} holds no clips: expected a data set (0/pose/SCENE.npz ...), pose/SCENE.npz with "
            "rgb/SCENE.mp4, or SCENE.mp4 with SCENE.json or .npz"
        )
    return clips


def _of_data_set(root: Path) -> list[ClipOnDisk]:
    if root.is_dir() and not find_tars(root) and not any(entry.is_dir() for entry in root.iterdir()):
        return []
    store = LyraStore(root)
    return [ClipOnDisk(clip, store.spec) for name in store.names for clip in store.clips(name).values()]


def _of_video(clip: VideoClip) -> ClipOnDisk:
    """The clip, if it has a camera file."""
    _camera_file(clip.video)
    return ClipOnDisk(clip)


def _videos(root: Path) -> list[VideoClip]:
    """Videos in the folder, and numbered ones in folders of their scenes."""
    if not root.is_dir():
        return []
    found = [VideoClip(path.stem, 0, path) for path in _videos_in(root)]
    for folder in (entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."):
        numbered = [path for path in _videos_in(folder) if path.stem.isdecimal()]
        found += [VideoClip(folder.name, int(path.stem), path) for path in numbered]
    return sorted(found, key=lambda clip: (clip.scene, clip.trajectory))


def _videos_in(folder: Path) -> list[Path]:
    return [
        path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "."
    ]


def _camera_file(video: Path) -> Path:
    for suffix in CAMERA_SUFFIXES:
        if video.with_suffix(suffix).is_file():
            return video.with_suffix(suffix)
    raise FileNotFoundError(
        f"video {video} has no camera file: put {video.stem}.json or {video.stem}.npz beside it"
    )


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
