"""Training scenes as tensors on one device, and batches of them.

All six paths of a scene start at the same camera, which is the origin; so which trajectories are read, and in
which order, changes nothing about the frame in which cameras and ray latents are given, and both are stored.

Shape letters: S scenes, B scenes of a batch, V trajectories, L frames, M target views, F fine views, C T h w
latents, H W image, y x cells.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float, Float16, UInt8
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath
from lyra_ns.codec.base import VideoCodec
from lyra_ns.data.atomic import write_whole
from lyra_ns.decoder.conditioning import ConditioningBuilder

CELL_SIZE = 4
"""Pixels along a side of the cell that has one Gaussian in each frame."""
FINE_SCALE = 2
"""How many times the clips' resolution fine views have."""
SIZES = ((160, 256), (256, 160), (208, 208), (176, 240), (240, 176))
"""Heights and widths of clips, all of about one area: landscape, portrait, square and in between."""


@dataclass(frozen=True)
class TrainingScene:
    """Six clips of one scene, and a few sharper pictures of it."""

    rgb: UInt8[Tensor, "V L 3 H W"]
    """Frames of the clips."""
    depth: Float16[Tensor, "V L H W"]
    """Their z-depth."""
    cell_rgb: Float16[Tensor, "V L y x 3"]
    """Mean colours of the cells, 0 to 1."""
    latents: Float[Tensor, "V C T h w"]
    """Raw latents of the clips."""
    plucker: Float[Tensor, "V C2 T h w"]
    """Ray latents of the paths."""
    camera_to_world: Float[Tensor, "V L 4 4"]
    """Poses of the frames."""
    intrinsics: Float[Tensor, "V L 4"]
    """Lenses of the frames, in pixels of H W."""
    fine_rgb: UInt8[Tensor, "F 3 H2 W2"]
    """Pictures of FINE_SCALE times the resolution."""
    fine_camera_to_world: Float[Tensor, "F 4 4"]
    """Their poses; the lens is that of the clips."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the clips."""
        return self.rgb.shape[-2], self.rgb.shape[-1]

    def to(self, device: torch.device | str) -> TrainingScene:
        """The same scene on another device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return TrainingScene(
            **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        )


@torch.no_grad()
def complete_scene(
    rgb: UInt8[Tensor, "V L 3 H W"],
    depth: Float[Tensor, "V L H W"],
    cameras: CameraPath,
    fine_rgb: UInt8[Tensor, "F 3 H2 W2"],
    fine_camera_to_world: Float[Tensor, "F 4 4"],
    codec: VideoCodec,
) -> TrainingScene:
    """A scene with what follows from its frames: latents, ray latents and the colours of the cells."""
    video = rgb.transpose(1, 2).float() / 127.5 - 1
    builder = ConditioningBuilder(codec, CELL_SIZE, max_cache_bytes=0, cache_folder=None)
    cells = functional.avg_pool2d(rgb.flatten(0, 1).float() / 255, CELL_SIZE).unflatten(0, rgb.shape[:2])
    return TrainingScene(
        rgb,
        depth.half(),
        cells.movedim(2, -1).half().contiguous(),
        codec.encode(video).float(),
        builder.build(cameras.reshape(1, *cameras.shape)).plucker[0],
        cameras.camera_to_world.float(),
        cameras.intrinsics.float(),
        fine_rgb,
        fine_camera_to_world.float(),
    )


def save_scene(scene: TrainingScene, path: Path) -> None:
    """Writes a scene, whole or not at all."""
    tensors = {field.name: getattr(scene, field.name).cpu().contiguous() for field in fields(scene)}
    write_whole(path, save(tensors))


def load_scene(path: Path, device: torch.device | str) -> TrainingScene:
    """The scene that `save_scene` wrote."""
    return TrainingScene(**load_file(path, str(device)))


@dataclass(frozen=True)
class TrainingBatch:
    """What one step reads; [B, V] inputs, [B, M] targets."""

    latents: Float[Tensor, "B V C T h w"]
    """Raw latents of the trajectories that are read."""
    plucker: Float[Tensor, "B V C2 T h w"]
    """Their ray latents."""
    cameras: CameraPath
    """Their cameras [B, V, L]."""
    cell_rgb: Float[Tensor, "B V L y x 3"]
    """Mean colours of their cells."""
    cell_depth: Float[Tensor, "B V L y x"]
    """z-depth in the middle of their cells."""
    target_rgb: Float[Tensor, "B M H W 3"]
    """Frames to reproduce, of any of the six trajectories."""
    target_depth: Float[Tensor, "B M H W"]
    """Their z-depth."""
    target_cameras: CameraPath
    """Their cameras [B, M]."""
    fine_rgb: Float[Tensor, "B 1 H2 W2 3"]
    """A sharper picture of each scene."""
    fine_cameras: CameraPath
    """Its camera [B, 1]."""


class ScenePool:
    """Scenes by kind and size, from which batches of one size are drawn."""

    def __init__(self, scenes: Iterable[tuple[str, TrainingScene]]) -> None:
        """`scenes` are pairs of kind and scene."""
        self._scenes: dict[tuple[int, int], dict[str, list[TrainingScene]]] = {}
        for kind, scene in scenes:
            self._scenes.setdefault(scene.size, {}).setdefault(kind, []).append(scene)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes that there are scenes of."""
        return sorted(self._scenes)

    def describe(self) -> str:
        """How many scenes there are of each size and kind."""
        counts = [
            f"{height}x{width}: "
            + ", ".join(f"{len(scenes)} {kind}" for kind, scenes in sorted(kinds.items()))
            for (height, width), kinds in sorted(self._scenes.items())
        ]
        return "; ".join(counts)

    def draw(
        self, draws: random.Random, size: tuple[int, int], num_scenes: int, shares: dict[str, float]
    ) -> list[TrainingScene]:
        """Scenes of one size; of each kind as its share says, on average."""
        kinds = self._scenes[size]
        names = [kind for kind in shares if kinds.get(kind)]
        picked = draws.choices(names, [shares[kind] for kind in names], k=num_scenes)
        return [draws.choice(kinds[kind]) for kind in picked]


def gather(
    scenes: Sequence[TrainingScene], draws: random.Random, num_views: int, num_targets: int
) -> TrainingBatch:
    """One batch: the same `num_views` trajectories of all scenes in random order, and random targets.

    The first target is a frame of the first trajectory, the others are of any. A fine view each.
    """
    first = scenes[0]
    num_trajectories, num_frames = first.rgb.shape[:2]
    (height, width), middle = first.size, CELL_SIZE // 2
    views = draws.sample(range(num_trajectories), num_views)
    at = [
        [(views[0], draws.randrange(num_frames))]
        + [(draws.randrange(num_trajectories), draws.randrange(num_frames)) for _ in range(num_targets - 1)]
        for _ in scenes
    ]
    fine = [draws.randrange(len(scene.fine_rgb)) for scene in scenes]

    def inputs(name: str) -> Tensor:
        return torch.stack([getattr(scene, name)[views] for scene in scenes])

    def targets(name: str) -> Tensor:
        picked = [tuple(zip(*places, strict=True)) for places in at]
        return torch.stack([getattr(scene, name)[place] for scene, place in zip(scenes, picked, strict=True)])

    def path(poses: Tensor, lenses: Tensor) -> CameraPath:
        return CameraPath(poses, lenses, torch.zeros_like(lenses[..., 0]), height, width)

    cameras = path(inputs("camera_to_world"), inputs("intrinsics"))
    fine_poses = torch.stack([s.fine_camera_to_world[k] for s, k in zip(scenes, fine, strict=True)])[:, None]
    fine_rgb = torch.stack([scene.fine_rgb[k] for scene, k in zip(scenes, fine, strict=True)])[:, None]
    fine_cameras = path(fine_poses, cameras.intrinsics[:, 0, :1])
    return TrainingBatch(
        latents=inputs("latents"),
        plucker=inputs("plucker"),
        cameras=cameras,
        cell_rgb=inputs("cell_rgb").float(),
        cell_depth=inputs("depth")[..., middle::CELL_SIZE, middle::CELL_SIZE].float(),
        target_rgb=targets("rgb").movedim(2, -1).float() / 255,
        target_depth=targets("depth").float(),
        target_cameras=path(targets("camera_to_world"), targets("intrinsics")),
        fine_rgb=fine_rgb.movedim(2, -1).float() / 255,
        fine_cameras=fine_cameras.resized(height * FINE_SCALE, width * FINE_SCALE),
    )
