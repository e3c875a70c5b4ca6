"""Training scenes of the ray caster, papered with pictures of the pack, made by many processes.

They keep what photographs moved by an estimated depth cannot teach: true geometry behind the edges.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.codec import load_codec
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.synthetic.render import SceneRenderer
from lyra_ns.synthetic.scenes import make_scene
from lyra_ns.synthetic.textures import load_texture_atlas
from lyra_ns.synthetic.writer import ClipSize, scene_cameras
from training.decoder.scenes import FINE_SCALE, TrainingScene, complete_scene, save_scene

FOCAL_LENGTHS = (0.6, 1.7)
"""Shortest and longest focal length, in image widths; portraits, which are narrow, have longer ones."""


@dataclass(frozen=True)
class RenderedJobs:
    """What a worker needs to know to make any of the scenes."""

    folder: Path
    """Where scenes are written."""
    texture_atlas: Path
    """Pictures of the surfaces (`save_texture_atlas`)."""
    seed: int
    """Seed of the scenes."""
    sizes: tuple[tuple[int, int], ...]
    """Heights and widths of the clips by the number of the scene."""
    num_frames: int = 17
    """Frames of a clip."""
    num_fine: int = 2
    """Sharper pictures of each scene."""
    device: str = "cpu"
    """Where scenes are rendered."""

    def path(self, number: int) -> Path:
        """File of scene `number`."""
        return self.folder / f"rendered_{self.seed}_{number:05d}.safetensors"


def rendered_scene(jobs: RenderedJobs, number: int) -> TrainingScene:
    """Scene `number`, on the device of the jobs."""
    height, width = jobs.sizes[number]
    stretch = max(1.0, height / width)
    size = ClipSize(jobs.num_frames, height, width, (FOCAL_LENGTHS[0], FOCAL_LENGTHS[1] * stretch))
    scene = make_scene(jobs.seed, number, load_texture_atlas(jobs.texture_atlas))
    paths = scene_cameras(jobs.seed, scene.name, scene.centre_depth, size)
    cameras = stack_cameras([paths["static", trajectory] for trajectory in READING_ORDER])
    renderer = SceneRenderer(scene, jobs.device)
    frames = renderer.render(cameras.reshape(-1))
    fine_cameras = _fine_cameras(cameras, random.Random(number), jobs.num_fine)
    fine = renderer.render(fine_cameras)
    return complete_scene(
        frames.rgb.unflatten(0, cameras.shape),
        frames.depth.unflatten(0, cameras.shape),
        cameras.to(jobs.device),
        fine.rgb,
        fine_cameras.camera_to_world.to(jobs.device),
        load_codec("linear").to(jobs.device),
    )


def _fine_cameras(cameras: CameraPath, draws: random.Random, num: int) -> CameraPath:
    """The first camera and others of the paths, at FINE_SCALE times the resolution."""
    every = cameras.reshape(-1)
    picked = every[[0, *(draws.randrange(every.shape[0]) for _ in range(num - 1))]]
    return picked.resized(cameras.height * FINE_SCALE, cameras.width * FINE_SCALE)


def write_rendered_scenes(jobs: RenderedJobs, num_workers: int) -> Generator[Path, None, None]:
    """Paths of all scenes, each when it is there, kept ones first; closing it ends the work."""
    missing = []
    for number in range(len(jobs.sizes)):
        if jobs.path(number).is_file():
            yield jobs.path(number)
        else:
            missing.append(number)
    if not missing:
        return
    jobs.folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, num_workers), context, torch.set_num_threads, (1,)) as pool:
        try:
            yield from pool.map(_write, [jobs] * len(missing), missing)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _write(jobs: RenderedJobs, number: int) -> Path:
    save_scene(rendered_scene(jobs, number), jobs.path(number))
    return jobs.path(number)
