"""Reader of what ViPE writes about a video: frames, poses, intrinsics, depth and masks of moving things.

ViPE itself runs in an environment of its own (`vipe infer VIDEO -p lyra -o DIR`); nothing of it is needed
here. Tree: DIR/{rgb,pose,intrinsics,depth,mask}/CLIP.*; its pickles are left alone (docs/reference/gen3c.md,
"Folders of ViPE").
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.data.camera_files import read_indexed, read_intrinsics, read_poses
from lyra_ns.data.depth_files import read_depth
from lyra_ns.data.resize import resize_cameras, resize_depth, resize_rgb
from lyra_ns.data.video import read_video
from lyra_ns.depth.base import DepthPrediction


@dataclass(frozen=True)
class ViPEClip:
    """A video with its cameras and depth. Shape letters: L frames, H W image."""

    rgb: UInt8[Tensor, "L 3 H W"]
    """Frames."""
    depth: Float[Tensor, "L H W"]
    """z-depth in the units of the poses, 0 where unknown."""
    cameras: CameraPath
    """Cameras [L], OpenCV."""
    moving: Bool[Tensor, "L H W"] | None
    """Where things move, if ViPE wrote masks."""

    def first_prediction(self) -> DepthPrediction:
        """Depth of the first frame as an estimator would give it.

        In the units of Lyra's data: `vipe infer -p lyra` aligns its poses to MoGe's first version, too.
        """
        return DepthPrediction(self.depth[0], self.cameras.intrinsics[0], False, True, "vipe")

    def resized(self, height: int, width: int) -> ViPEClip:
        """The clip after a centre crop to the aspect of `height` x `width` and a resize."""
        moving = self.moving
        if moving is not None:
            moving = resize_depth(moving.float(), height, width) > 0
        return ViPEClip(
            resize_rgb(self.rgb, height, width),
            resize_depth(self.depth, height, width),
            resize_cameras(self.cameras, height, width),
            moving,
        )


def vipe_clips(root: Path) -> list[str]:
    """Names of the clips in ViPE's output folder, sorted; ValueError if there is none."""
    names = sorted(file.stem for file in (root / "pose").glob("*.npz"))
    if not names:
        raise ValueError(
            f"folder {root} must hold ViPE's output with pose/CLIP.npz, found none: run "
            f"`vipe infer VIDEO -p lyra -o {root}`"
        )
    return names


def read_vipe(
    root: Path, clip: str, *, start: int = 0, num_frames: int | None = None, repeat_last: bool = False
) -> ViPEClip:
    """Frames start .. start + num_frames - 1 of a clip (None: to its end), at the size ViPE saw.

    With `repeat_last` a clip that is too short stands still at its end, as in the official reader.
    FileNotFoundError or ValueError where a file is missing, damaged, too short, of another size, or where a
    camera is no pinhole.
    """
    if clip not in vipe_clips(root):
        raise ValueError(f"expected one of {', '.join(vipe_clips(root))} in {root}, found {clip!r}")
    num_read = _num_to_read(root, clip, start, num_frames, repeat_last)
    read = _read(root, clip, range(start, start + num_read))
    return read if num_frames is None else _extended(read, num_frames)


def _num_to_read(root: Path, clip: str, start: int, num_frames: int | None, repeat_last: bool) -> int:
    """How many frames from `start` on are read; ValueError if they are too few."""
    num_posed = len(read_indexed(root / "pose" / f"{clip}.npz", "pose", None))
    num_left = num_posed - start
    wanted = max(num_left, 1) if num_frames is None else num_frames
    if start < 0 or num_left < 1 or (num_left < wanted and not repeat_last):
        raise ValueError(
            f"ViPE clip {clip} in {root} must have frames {start} to {start + wanted - 1}, found {num_posed} "
            "frames: take fewer, or let the last one be repeated"
        )
    return min(num_left, wanted)


def _read(root: Path, clip: str, frames: range) -> ViPEClip:
    _check_pinhole(root / "intrinsics" / f"{clip}_camera.txt")
    rgb = read_video(root / "rgb" / f"{clip}.mp4", frames)
    depth_file = root / "depth" / f"{clip}.zip"
    depth = read_depth(depth_file, frames)
    if depth.shape[1:] != rgb.shape[2:]:
        raise ValueError(
            f"depth {depth_file} must be as large as the video ({list(rgb.shape[2:])}), found "
            f"{list(depth.shape[1:])}: run ViPE again"
        )
    poses = read_poses(root / "pose" / f"{clip}.npz", frames.stop)[frames.start :]
    intrinsics = read_intrinsics(root / "intrinsics" / f"{clip}.npz", frames.stop)[frames.start :]
    cameras = CameraPath(poses, intrinsics, torch.linspace(0.0, 1.0, len(frames)), *rgb.shape[2:])
    mask_file = root / "mask" / f"{clip}.zip"
    moving = _read_masks(mask_file, frames, rgb) if mask_file.is_file() else None
    return ViPEClip(rgb, depth, cameras, moving)


def _check_pinhole(path: Path) -> None:
    """ValueError if ViPE names another camera than a pinhole; it may name none."""
    lines = path.read_text().split("\n") if path.is_file() else []
    models = {line.split(":", 1)[1].strip() for line in lines if ":" in line}
    if models - {"PINHOLE"}:
        raise ValueError(
            f"{path} must name pinhole cameras, found {', '.join(sorted(models))}: run ViPE with its pinhole "
            "camera model"
        )


def _read_masks(path: Path, frames: range, rgb: Tensor) -> Bool[Tensor, "L H W"]:
    """Pixels of moving things: instance ids other than 0."""
    try:
        with zipfile.ZipFile(path) as archive:
            images = [
                np.asarray(Image.open(io.BytesIO(archive.read(f"{frame:05d}.png")))) for frame in frames
            ]
        ids = torch.from_numpy(np.stack(images).astype(np.int64))
    except (zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"mask {path} must be a zip of PNG images of one size, one per frame, found damage ({error}): "
            "run ViPE again, or remove it"
        ) from error
    if ids.shape != (len(rgb), *rgb.shape[2:]):
        raise ValueError(
            f"mask {path} must be as large as the video, found {list(ids.shape)}: run ViPE again"
        )
    return ids != 0


def _extended(clip: ViPEClip, num_frames: int) -> ViPEClip:
    """The clip with its last frame repeated until it has `num_frames`."""
    index = torch.arange(num_frames).clamp(max=len(clip.rgb) - 1)
    cameras = replace(clip.cameras[index], times=torch.linspace(0.0, 1.0, num_frames))
    moving = None if clip.moving is None else clip.moving[index]
    return ViPEClip(clip.rgb[index], clip.depth[index], cameras, moving)
