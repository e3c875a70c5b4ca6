"""Clips with cameras on disk, whatever their folder looks like.

- A data set in the official layout, ours or unpacked or in tars: ROOT[/static]/{0..5}/{pose,rgb,...}/SCENE.*
- One trajectory without a number, as ViPE writes it: ROOT/{pose,intrinsics,rgb,depth}/SCENE.*
- Videos with camera files: ROOT/SCENE.mp4, or ROOT/SCENE/NUMBER.mp4 for several trajectories, each with
  .json or .npz of the same name (`read_camera_path` says which), and .zip of EXR images for depth.
- One such video: ROOT is its file.

Shape letters: L frames, H W image.
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
from lyra_ns.codec.interface import VideoLatentSpec
from lyra_ns.data.archives import find_tars
from lyra_ns.data.depth_files import read_depth
from lyra_ns.data.resizing import resize_cameras, resize_rgb
from lyra_ns.data.store import LyraClip, LyraStore
from lyra_ns.data.types import Clip
from lyra_ns.data.video_files import read_video, video_size
from lyra_ns.generation.camera_files import read_camera_path
from lyra_ns.generation.teachers.interface import TeacherRequest
from lyra_ns.generation.video_frames import SUFFIXES as VIDEO_SUFFIXES

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
