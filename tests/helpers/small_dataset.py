"""A small dataset in the official layout, written in milliseconds, for tests of everything that reads one."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch.nn import functional

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import load_codec
from lyra_ns.data.store import write_clip
from lyra_ns.data.types import SceneBatch

NUM_FRAMES, HEIGHT, WIDTH = 17, 32, 48
LATENT_SHAPE = (16, 3, 4, 6)


def straight_path(end: tuple[float, float, float], num_frames: int = NUM_FRAMES) -> CameraPath:
    """A camera that turns a little while it moves from the origin to `end`."""
    times = torch.linspace(0.0, 1.0, num_frames)
    pose = torch.eye(4).repeat(num_frames, 1, 1)
    pose[:, 0, 0] = pose[:, 2, 2] = torch.cos(0.2 * times)
    pose[:, 0, 2] = torch.sin(0.2 * times)
    pose[:, 2, 0] = -torch.sin(0.2 * times)
    pose[:, :3, 3] = times[:, None] * torch.tensor(end)
    intrinsics = torch.tensor([40.0, 40.0, WIDTH / 2, HEIGHT / 2]).repeat(num_frames, 1)
    return CameraPath(pose, intrinsics, times, HEIGHT, WIDTH)


def smooth_video(seed: int, num_frames: int = NUM_FRAMES) -> torch.Tensor:
    """A smooth random video [3, L, H, W] from 0 to 1."""
    coarse = torch.rand(1, 3, 3, 3, 4, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (num_frames, HEIGHT, WIDTH), mode="trilinear", align_corners=True)[
        0
    ]


def write_small_clip(
    root: Path,
    scene: str,
    trajectory: int,
    seed: int,
    cameras: CameraPath | None = None,
    with_latent: bool = True,
) -> None:
    """One clip whose latents are those of its video, with depth between 1 and 3."""
    angle = 2 * math.pi * trajectory / 6
    cameras = cameras or straight_path((math.cos(angle), math.sin(angle), 0.1 * trajectory))
    video = smooth_video(seed, cameras.shape[0])
    codec = load_codec("linear")
    z = codec.to_diffusion(codec.encode(video[None] * 2 - 1))[0] if with_latent else None
    rgb = (video.transpose(0, 1) * 255).round().to(torch.uint8)
    write_clip(root, scene, trajectory, cameras, z, rgb, 1 + 2 * video[0])


def write_small_dataset(
    root: Path, num_scenes: int = 3, num_trajectories: int = 6, family: str = "static"
) -> Path:
    """ROOT/{family} with scenes a, b, c, ... and one held-out path each; returns ROOT."""
    for number in range(num_scenes):
        scene = chr(ord("a") + number)
        for trajectory in range(num_trajectories):
            write_small_clip(root / family, scene, trajectory, seed=100 * number + trajectory)
        write_small_clip(root / "novel", scene, 0, seed=100 * number + 50, with_latent=False)
    return root


def assert_equal_batches(one: SceneBatch, other: SceneBatch) -> None:
    """Scenes, choices, tensors and cameras are the same to the bit."""
    assert one.names == other.names
    assert one.trajectories == other.trajectories
    assert one.target_ids == other.target_ids
    for name in ("latents", "target_rgb", "target_depth", "input_depth", "input_rgb", "target_time"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        assert first is None or torch.equal(first, second), name
    for name in ("cameras", "target_cameras"):
        assert torch.equal(getattr(one, name).camera_to_world, getattr(other, name).camera_to_world)
