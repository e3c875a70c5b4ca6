"""How well a decoder reproduces clips of photographs that it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lyra_ns.cameras import CameraPath, ray_grid
from lyra_ns.codec import load_codec
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.depth.small import load_small_depth
from lyra_ns.gaussians import prune
from lyra_ns.metrics import psnr
from lyra_ns.ops.lpips import load_lpips
from lyra_ns.rendering import render
from training.decoder.photograph_scenes import PhotographRecipe, photograph_scene
from training.decoder.scenes import CELL_SIZE, SIZES, TrainingScene
from training.decoder.train import RENDER

JUDGED_FRAMES = (8, 16)
"""Frames of every path that are compared, if nothing else is said."""


def judged_scenes(paths: list[Path], device: torch.device | str) -> dict[str, TrainingScene]:
    """A scene of each picture, always made in the same way, in the size that is nearest to its aspect."""
    depth, codec = load_small_depth(device), load_codec("linear").to(device)
    scenes = {}
    for path in paths:
        with Image.open(path) as opened:
            pixels = torch.from_numpy(np.array(opened.convert("RGB"))).movedim(-1, 0).to(device)
        aspect = pixels.shape[1] / pixels.shape[2]
        size = min(SIZES, key=lambda size: abs(np.log(size[0] / size[1] / aspect)))
        scenes[path.stem] = photograph_scene(pixels, PhotographRecipe(*size), depth, codec)
    return scenes


@torch.no_grad()
def judge_decoder(
    decoder: LatentGaussianDecoder,
    scenes: dict[str, TrainingScene],
    prune_ratio: float = 0.5,
    frames: tuple[int, ...] = JUDGED_FRAMES,
) -> dict[str, dict[str, float]]:
    """PSNR in dB and LPIPS of frames, and PSNR of the sharper first picture, by scene and in the mean."""
    rows: dict[str, dict[str, float]] = {}
    for name, scene in scenes.items():
        rows[name] = _judge(decoder, scene, prune_ratio, list(frames))
    if rows:
        keys = next(iter(rows.values()))
        rows["mean"] = {key: sum(row[key] for row in rows.values()) / len(rows) for key in keys}
    return {name: {key: round(value, 3) for key, value in row.items()} for name, row in rows.items()}


def _judge(
    decoder: LatentGaussianDecoder, scene: TrainingScene, prune_ratio: float, frames: list[int]
) -> dict[str, float]:
    height, width = scene.size
    cameras = CameraPath(
        scene.camera_to_world, scene.intrinsics, torch.zeros_like(scene.intrinsics[..., 0]), height, width
    )
    rays = ray_grid(cameras.reshape(1, *cameras.shape), height // CELL_SIZE, width // CELL_SIZE)
    gaussians = prune(
        decoder(scene.latents[None], Conditioning(scene.plucker[None], rays)), prune_ratio
    ).scene(0)
    perceptual = load_lpips("alex")
    seen = render(gaussians, cameras[:, frames].reshape(-1), RENDER).rgb.clamp(0, 1)
    truth = scene.rgb[:, frames].flatten(0, 1).movedim(1, -1).float() / 255
    fine = CameraPath(
        scene.fine_camera_to_world[:1], cameras.intrinsics[0, :1], cameras.times[0, :1], height, width
    )
    fine_height, fine_width = scene.fine_rgb.shape[-2:]
    first = render(gaussians, fine.resized(fine_height, fine_width), RENDER).rgb.clamp(0, 1)
    fine_truth = scene.fine_rgb[:1].movedim(1, -1).float() / 255
    return {
        "psnr": float(psnr(seen, truth).mean()),
        "lpips": float(perceptual(seen.movedim(-1, 1), truth.movedim(-1, 1)).mean()),
        "fine psnr": float(psnr(first, fine_truth).mean()),
        "fine lpips": float(perceptual(first.movedim(-1, 1), fine_truth.movedim(-1, 1)).mean()),
    }
