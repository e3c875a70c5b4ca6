"""The smallest real data set: a patterned wall seen along several paths, with exact depth and latents."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lyra_ns.cameras import CameraPath, ray_grid
from lyra_ns.codec import load_codec
from lyra_ns.data.store import Manifest, write_clip, write_manifest
from lyra_ns.gaussians import Gaussians
from lyra_ns.losses import LossConfig

if TYPE_CHECKING:
    from lyra_ns.plugin.pipeline import LyraPipelineConfig

HEIGHT, WIDTH, NUM_FRAMES = 48, 64, 9
WALL_DISTANCE = 3.0
TRAJECTORIES = (0, 1, 5)


def sideways_path(direction: tuple[float, float, float]) -> CameraPath:
    """Cameras that start at the origin and look along +z while they move."""
    steps = torch.linspace(0.0, 0.6, NUM_FRAMES)
    poses = torch.eye(4).repeat(NUM_FRAMES, 1, 1)
    poses[:, :3, 3] = steps[:, None] * torch.tensor(direction)
    intrinsics = torch.tensor([60.0, 60.0, WIDTH / 2, HEIGHT / 2]).repeat(NUM_FRAMES, 1)
    return CameraPath(poses, intrinsics, torch.linspace(0.0, 1.0, NUM_FRAMES), HEIGHT, WIDTH)


PATHS = {
    0: sideways_path((-1.0, 0.0, 0.0)),
    1: sideways_path((1.0, 0.0, 0.0)),
    5: sideways_path((0.3, 0.3, 0.5)),
}
NOVEL_PATH = sideways_path((0.6, -0.3, 0.0))


def wall(path: CameraPath, seed: int) -> tuple[Tensor, Tensor]:
    """Frames [L, 3, H, W] as bytes and z-depth [L, H, W] of the wall numbered `seed`."""
    rays = ray_grid(path, path.height, path.width)
    distance = (WALL_DISTANCE - rays.origins[..., 2]) / rays.directions[..., 2]
    points = rays.origins + distance[..., None] * rays.directions
    x, y = points[..., 0], points[..., 1]
    frequency = 1.5 + 0.3 * seed
    colour = torch.stack([torch.sin(frequency * x + seed), torch.cos(frequency * y), torch.sin(x + y)], 1)
    depth = WALL_DISTANCE - rays.origins[..., 2]
    return (colour * 100 + 128).to(torch.uint8), depth


def write_wall_scenes(
    root: Path,
    num_scenes: int = 4,
    with_depth: bool = True,
    with_novel: bool = True,
    is_dynamic: bool = False,
    paths: Mapping[int, CameraPath] = PATHS,
) -> Path:
    """Write scenes wall_0 ... in the official layout, seen along `paths`; the last is held out."""
    codec = load_codec("linear")
    names = [f"wall_{number}" for number in range(num_scenes)]
    for number, name in enumerate(names):
        for trajectory, path in paths.items():
            rgb, depth = wall(path, number)
            stored_depth = depth if with_depth else None
            video = (rgb.float() / 127.5 - 1.0).transpose(0, 1)[None]
            latents = codec.to_diffusion(codec.encode(video))[0]
            write_clip(
                root / ("dynamic" if is_dynamic else "static"),
                name,
                trajectory,
                path,
                z=latents,
                rgb=rgb,
                depth=stored_depth,
            )
        if with_novel:
            rgb, depth = wall(NOVEL_PATH, number)
            write_clip(root / "novel", name, 0, NOVEL_PATH, rgb=rgb, depth=depth if with_depth else None)
    manifest = Manifest(
        codec="linear",
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        scenes={name: list(paths) for name in names},
        novel={name: [0] for name in names} if with_novel else {},
        splits={"train": names[:-1], "test": names[-1:]},
        is_dynamic=is_dynamic,
        codec_digest=codec.spec.digest,
    )
    write_manifest(root, manifest)
    return root


def tiny_pipeline_config(root: Path | None, **model_changes: Any) -> LyraPipelineConfig:
    """`lyra-tiny` with a network of a few thousand weights, reading in the test's own process."""
    from lyra_ns.method_configs.tiny import lyra_tiny

    config = deepcopy(lyra_tiny.config.pipeline)
    config.datamanager.data = root
    config.datamanager.num_workers = 0
    config.model.decoder = replace(
        config.model.decoder,
        width=32,
        depth=2,
        pattern="1M1T",
        num_heads=2,
        state_size=8,
        head_dim=16,
        cell_size=8,
    )
    config.model.init_from = "none"
    config.model.prune_ratio = 0.0
    config.model.loss = LossConfig(lpips_net="alex")
    for name, value in model_changes.items():
        setattr(config.model, name, value)
    return config


def wall_gaussians(seed: int) -> Gaussians:
    """The wall numbered `seed` as flat Gaussians on a fine grid, in the frame of the reference camera."""
    spacing = 0.03
    x, y = torch.meshgrid(torch.arange(-3, 3, spacing), torch.arange(-2.5, 2.5, spacing), indexing="xy")
    x, y = x.flatten(), y.flatten()
    frequency = 1.5 + 0.3 * seed
    rgb = torch.stack([torch.sin(frequency * x + seed), torch.cos(frequency * y), torch.sin(x + y)], 1)
    return Gaussians(
        means=torch.stack([x, y, torch.full_like(x, WALL_DISTANCE)], 1),
        quats=torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(x), 4).clone(),
        scales=torch.tensor([0.6 * spacing, 0.6 * spacing, 0.001]).expand(len(x), 3).clone(),
        opacities=torch.full_like(x, 0.99),
        rgb=(rgb * 100 + 128) / 255,
    )
