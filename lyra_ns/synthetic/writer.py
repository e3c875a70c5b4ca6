"""Writes procedural scenes in the official layout, with as many processes as there are cores.

The clips of a scene are its camera paths, rendered and encoded.
"""

from __future__ import annotations

import hashlib
import logging
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic

import torch
from jaxtyping import Float, UInt8
from rich.progress import track
from torch import Tensor

from lyra_ns.camera_paths import NUM_NOVEL_PATHS, TRAJECTORIES, draw_distance, novel_path, trajectory_path
from lyra_ns.cameras import CameraPath
from lyra_ns.codec import load_codec
from lyra_ns.codec.base import VideoCodec
from lyra_ns.data.store import Manifest, current_versions, read_manifest, write_clip, write_manifest
from lyra_ns.device import one_thread
from lyra_ns.draws import generator_for
from lyra_ns.synthetic.render import SceneRenderer
from lyra_ns.synthetic.scenes import ProceduralScene, make_scene, scene_name
from lyra_ns.synthetic.textures import TextureBank, atlas_of, load_texture_atlas, packaged_textures

USUAL_FOCAL_LENGTHS = (0.9, 0.9)
"""Shortest and longest focal length of a scene, in image widths."""


@dataclass(frozen=True)
class ClipSize:
    """Size of every clip of a data set."""

    num_frames: int = 17
    """Frames of a clip, 8k + 1."""
    height: int = 160
    """Image height in pixels."""
    width: int = 256
    """Image width in pixels."""
    focal_lengths: tuple[float, float] = USUAL_FOCAL_LENGTHS
    """Shortest and longest focal length, in image widths; each scene has one of its own in between."""

    def __post_init__(self) -> None:
        """ValueError for focal lengths that no camera has."""
        shortest, longest = self.focal_lengths
        if not 0 < shortest <= longest < math.inf:
            raise ValueError(
                f"expected a shortest and a longest focal length above 0, in image widths, found {shortest} "
                f"and {longest}: 0.9 0.9 is usual"
            )

    def intrinsics(self, seed: int, name: str) -> Float[Tensor, " 4"]:
        """fx, fy, cx, cy in pixels of the scene called `name`; ratios of focal lengths are drawn evenly."""
        shortest, longest = self.focal_lengths
        share = torch.rand((), generator=generator_for("focal length", seed, name), dtype=torch.float64)
        focal = shortest * (longest / shortest) ** float(share) * self.width
        return torch.tensor([focal, focal, self.width / 2, self.height / 2])


@dataclass(frozen=True)
class RenderedClip:
    """One clip, ready to be written; on the CPU."""

    folder: str
    """Family of the clip on disk: static, dynamic or novel."""
    trajectory: int
    """Numeric id of the path within the family."""
    cameras: CameraPath
    """The path [L]."""
    rgb: UInt8[Tensor, "L 3 H W"]
    """True frames."""
    depth: Float[Tensor, "L H W"]
    """Exact z-depth."""
    latents: Float[Tensor, "C T h w"] | None
    """Latents of the frames in diffusion space; None for held-out paths."""


def scene_cameras(
    seed: int, name: str, centre_depth: float, size: ClipSize, dynamic: bool = False
) -> dict[tuple[str, int], CameraPath]:
    """The paths of a scene by (family, id): the six of GEN3C, and the held-out ones.

    A dynamic scene has six more (6..11), which a video model makes on the reversed video: in forward time,
    as written here, their cameras come home to the start pose instead of leaving it.
    """
    family = "dynamic" if dynamic else "static"
    paths: dict[tuple[str, int], CameraPath] = {}
    intrinsics = size.intrinsics(seed, name)
    for number in range(len(TRAJECTORIES) * (2 if dynamic else 1)):
        kind = number % len(TRAJECTORIES)
        distance = draw_distance(kind, generator_for("path", seed, name, number))
        path = trajectory_path(
            kind, distance, centre_depth=centre_depth, num_frames=size.num_frames,
            intrinsics=intrinsics, height=size.height, width=size.width,
        )  # fmt: skip
        if number != kind:
            path = replace(path, camera_to_world=path.camera_to_world.flip(0))
        paths[family, number] = path
    for number in range(NUM_NOVEL_PATHS):
        generator = generator_for("novel path", seed, name, number)
        paths["novel", number] = novel_path(
            number, generator, centre_depth=centre_depth, num_frames=size.num_frames,
            intrinsics=intrinsics, height=size.height, width=size.width,
        )  # fmt: skip
    return paths


def render_clips(
    scene: ProceduralScene, seed: int, size: ClipSize, codec: VideoCodec, device: torch.device | str
) -> list[RenderedClip]:
    """All clips of a scene, rendered and encoded on `device` (where `codec` must be)."""
    paths = scene_cameras(seed, scene.name, scene.centre_depth, size, scene.is_dynamic)
    cameras = list(paths.values())
    joined = replace(
        cameras[0],
        camera_to_world=torch.cat([path.camera_to_world for path in cameras]),
        intrinsics=torch.cat([path.intrinsics for path in cameras]),
        times=torch.cat([path.times for path in cameras]),
    )
    frames = SceneRenderer(scene, device).render(joined)
    videos = frames.rgb.split(size.num_frames)
    encoded = torch.stack([video for key, video in zip(paths, videos, strict=True) if key[0] != "novel"])
    latents = encode_videos(encoded, codec).cpu()
    rgb, depth = frames.rgb.cpu().split(size.num_frames), frames.depth.cpu().split(size.num_frames)
    return [
        RenderedClip(family, number, path, rgb[k], depth[k], latents[k] if k < len(latents) else None)
        for k, ((family, number), path) in enumerate(paths.items())
    ]


@torch.inference_mode()
def encode_videos(rgb: UInt8[Tensor, "N L 3 H W"], codec: VideoCodec) -> Float[Tensor, "N C T h w"]:
    """Latents in diffusion space of true frames."""
    video = rgb.transpose(1, 2).float() / 127.5 - 1
    return codec.to_diffusion(codec.encode(video))


logger = logging.getLogger(__name__)

FIRST_HELD_OUT = 900_000
"""Number of the first held-out scene, so that their names never meet those of training scenes."""
MOST_CUDA_WORKERS = 12
"""Processes that share a GPU by default: each keeps about 2 GB there."""
MANIFEST_SECONDS = 2.0
"""Least time between two manifests while scenes are coming in."""


@dataclass(frozen=True)
class SceneJobs:
    """What a worker needs to know to make any scene of a data set."""

    root: Path
    """Folder of the data set."""
    size: ClipSize
    """Size of the clips."""
    seed: int
    """Seed of the data set."""
    dynamic: bool
    """Whether things move."""
    codec: str
    """Name of the codec that makes the latents."""
    device: str
    """Where scenes are rendered."""
    texture_atlas: Path | None
    """Textures on disk; None takes those of the scikit-image wheel."""

    def name(self, index: int) -> str:
        """Name of scene number `index`."""
        return scene_name(index, self.dynamic)


def write_sample_data(
    output: Path,
    num_scenes: int,
    *,
    num_held_out: int = 0,
    height: int = 160,
    width: int = 256,
    num_frames: int = 17,
    seed: int = 0,
    dynamic: bool = False,
    codec: str = "linear",
    device: str = "auto",
    num_workers: int = 0,
    textures: Path | None = None,
    focal_lengths: tuple[float, float] = USUAL_FOCAL_LENGTHS,
) -> Path:
    """Writes procedural scenes with exact depth and poses, and returns the manifest's path.

    `num_scenes` scenes for training and `num_held_out` for testing (with textures of their own) along the
    six GEN3C paths, with latents, and along two held-out paths without. `focal_lengths` are the shortest and
    the longest, in image widths, of which each scene has one. `textures` are a pack of pictures, a folder of
    them or a texture atlas (None: the photographs of scikit-image). Each worker (0: one per core)
    renders, encodes and writes whole scenes, on CUDA too. Equal arguments give equal files for any number
    of workers; on another device pixels may differ by a rounding. Scenes that the manifest of an earlier
    run lists are kept. ValueError if that run had other settings.
    """
    load_codec(codec).spec.latent_shape(num_frames, height, width)
    indices = [*range(num_scenes), *range(FIRST_HELD_OUT, FIRST_HELD_OUT + num_held_out)]
    with atlas_of(textures and Path(textures).expanduser()) as texture_atlas:
        jobs = SceneJobs(
            Path(output).expanduser(), ClipSize(num_frames, height, width, focal_lengths), seed, dynamic,
            codec, _device_named(device), texture_atlas,
        )  # fmt: skip
        return _write_missing(jobs, indices, num_workers)


def _write_missing(jobs: SceneJobs, indices: list[int], num_workers: int) -> Path:
    """Writes those scenes that are not there yet, and returns the manifest's path."""
    manifest = _first_manifest(jobs, load_codec(jobs.codec).spec.digest)
    missing = [index for index in indices if jobs.name(index) not in manifest.scenes]
    logger.info("%d scenes to write, %d are there already", len(missing), len(indices) - len(missing))
    saved = monotonic()
    try:
        for index in _finished(jobs, missing, _num_workers(num_workers, jobs.device, len(missing))):
            manifest = _with_scene(manifest, jobs, index)
            if monotonic() - saved > MANIFEST_SECONDS:
                write_manifest(jobs.root, manifest)
                saved = monotonic()
    finally:
        path = write_manifest(jobs.root, manifest)
    return path


def write_scene(jobs: SceneJobs, index: int, bank: TextureBank) -> None:
    """Renders, encodes and writes scene number `index`."""
    scene = make_scene(jobs.seed, index, bank, held_out=index >= FIRST_HELD_OUT, dynamic=jobs.dynamic)
    codec = load_codec(jobs.codec).to(jobs.device)
    for clip in render_clips(scene, jobs.seed, jobs.size, codec, jobs.device):
        write_clip(
            jobs.root / clip.folder, scene.name, clip.trajectory, clip.cameras,
            z=clip.latents, rgb=clip.rgb, depth=clip.depth,
        )  # fmt: skip


def _finished(jobs: SceneJobs, indices: list[int], num_workers: int) -> Iterator[int]:
    """The numbers of the scenes, each when it is written, under a progress bar."""
    finished = _in_this_process(jobs, indices) if num_workers <= 1 else _in_pool(jobs, indices, num_workers)
    yield from track(finished, "sample scenes", total=len(indices))


def _in_this_process(jobs: SceneJobs, indices: list[int]) -> Iterator[int]:
    """Scenes one after the other."""
    bank = _bank(jobs.texture_atlas)
    for index in indices:
        with one_thread():
            write_scene(jobs, index, bank)
        yield index


def _in_pool(jobs: SceneJobs, indices: list[int], num_workers: int) -> Iterator[int]:
    """Scenes by fresh processes (a forked one could not use CUDA), in the order in which they are done."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start_worker, (jobs,)) as pool:
        waiting: dict[Future[None], int] = {pool.submit(_work, index): index for index in indices}
        try:
            for future in as_completed(waiting):
                future.result()
                yield waiting[future]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: tuple[SceneJobs, TextureBank] | None = None
"""What a worker process was started with."""


def _start_worker(jobs: SceneJobs) -> None:
    """Prepares a fresh process."""
    global _worker
    torch.set_num_threads(1)
    _worker = (jobs, _bank(jobs.texture_atlas))


def _work(index: int) -> None:
    """Writes one scene in a worker process."""
    assert _worker is not None
    jobs, bank = _worker
    write_scene(jobs, index, bank)


def _bank(texture_atlas: Path | None) -> TextureBank:
    """Textures of an atlas, or of the scikit-image wheel."""
    return load_texture_atlas(texture_atlas) if texture_atlas else packaged_textures()


def _first_manifest(jobs: SceneJobs, codec_digest: str) -> Manifest:
    """The manifest to go on from: that of an earlier run with the same settings, or an empty one."""
    digest = hashlib.sha256(_bank(jobs.texture_atlas).images.numpy().tobytes()).hexdigest()[:16]
    fresh = Manifest(
        codec=jobs.codec, num_frames=jobs.size.num_frames, height=jobs.size.height, width=jobs.size.width,
        scenes={}, splits={"train": [], "test": []}, is_dynamic=jobs.dynamic, seed=jobs.seed,
        versions={**current_versions(), "textures": digest}, codec_digest=codec_digest,
        focal_lengths=list(jobs.size.focal_lengths), flipped_pose_order="as_is",
    )  # fmt: skip
    earlier = read_manifest(jobs.root)
    if earlier is None:
        return fresh
    # Manifests of earlier versions do not say what always held.
    earlier = replace(
        earlier,
        focal_lengths=earlier.focal_lengths or list(USUAL_FOCAL_LENGTHS),
        flipped_pose_order=fresh.flipped_pose_order,
    )
    for key in (
        "codec", "codec_digest", "num_frames", "height", "width", "is_dynamic", "seed", "focal_lengths",
    ):  # fmt: skip
        if getattr(earlier, key) != getattr(fresh, key):
            raise ValueError(
                f"{jobs.root} was written with {key} = {getattr(earlier, key)}, now {getattr(fresh, key)} is "
                "asked for: take another output folder, or delete this one"
            )
    if earlier.versions.get("textures", digest) != digest:
        raise ValueError(
            f"{jobs.root} was written with other textures ({earlier.versions['textures']}, now {digest}): "
            "take another output folder, or the same textures"
        )
    return earlier


def _with_scene(manifest: Manifest, jobs: SceneJobs, index: int) -> Manifest:
    """The manifest with one more scene."""
    name = jobs.name(index)
    ids: dict[str, list[int]] = {"novel": [], "scene": []}
    for family, number in scene_cameras(jobs.seed, name, 1.0, jobs.size, jobs.dynamic):
        ids["novel" if family == "novel" else "scene"].append(number)
    split = "test" if index >= FIRST_HELD_OUT else "train"
    splits = {**manifest.splits, split: sorted({*manifest.splits.get(split, []), name})}
    return replace(
        manifest,
        scenes=dict(sorted({**manifest.scenes, name: ids["scene"]}.items())),
        novel=dict(sorted({**manifest.novel, name: ids["novel"]}.items())),
        splits=splits,
    )


def _device_named(device: str) -> str:
    """`auto` decided by what is there; ValueError for CUDA where there is none."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA device: take cpu or auto")
    return device


def _num_workers(asked: int, device: str, num_scenes: int) -> int:
    """Workers to start: as many as asked for, or one per core, and no more than there are scenes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = asked or (cores if device == "cpu" else min(cores, MOST_CUDA_WORKERS))
    return max(1, min(workers, num_scenes))
