"""A data set written as the official generation scripts write it, and its tars.

Source: docs/reference/data_layout.md, "Files" and "What the scripts write".
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from lyra_ns.codec import load_codec
from lyra_ns.data.depth_files import depth_bytes
from lyra_ns.data.video import video_bytes
from tests.helpers.small_dataset import smooth_video, straight_path

NUM_FRAMES = 9


def write_official_clip(root: Path, scene: str, trajectory: int, poses: np.ndarray | None = None) -> None:
    """One clip, with numpy and torch.save alone where the official scripts use those."""
    cameras = straight_path((0.2 * trajectory, 0.1, 0.0), NUM_FRAMES)
    video = smooth_video(10 * trajectory + ord(scene[-1]), NUM_FRAMES)
    codec = load_codec("linear")
    z = codec.to_diffusion(codec.encode(video[None] * 2 - 1)).numpy()
    folder = root / str(trajectory)
    for kind in ("pose", "intrinsics", "latent", "rgb", "depth", "caption"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    ids = np.arange(NUM_FRAMES)
    poses = cameras.camera_to_world.numpy() if poses is None else poses
    np.savez(folder / "pose" / f"{scene}.npz", data=poses.astype(np.float32), inds=ids)
    np.savez(folder / "intrinsics" / f"{scene}.npz", data=cameras.intrinsics.numpy(), inds=ids)
    torch.save(z, folder / "latent" / f"{scene}.pkl")
    rgb = (video.transpose(0, 1) * 255).round().to(torch.uint8)
    (folder / "rgb" / f"{scene}.mp4").write_bytes(video_bytes(rgb))
    (folder / "depth" / f"{scene}.zip").write_bytes(depth_bytes(1 + 2 * video[0]))
    (folder / "caption" / f"{scene}.txt").write_text("a room")


def write_official_dataset(
    root: Path, scenes: tuple[str, ...] = ("a", "b"), num_trajectories: int = 6
) -> Path:
    """ROOT/0 .. ROOT/5 with these scenes, and files that the reader must not mind; returns ROOT."""
    for scene in scenes:
        for trajectory in range(num_trajectories):
            write_official_clip(root, scene, trajectory)
    (root / "flag").write_text("")
    return root


def write_tar(
    path: Path,
    folder: Path,
    prefix: str = "",
    takes: Callable[[Path], bool] = lambda file: True,
    mode: str = "w",
) -> Path:
    """A tar of the files below `folder` that are taken, their names starting with `prefix`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder)
            if file.is_dir() or takes(name):
                tar.add(file, prefix + str(name), recursive=False)
    return path


def write_tar_of(path: Path, contents: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """A tar of named contents; a TarInfo stands for a member that is no plain file."""
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
