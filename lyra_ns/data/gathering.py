"""From a plan to tensors: what is read at once, and what waits for the codec.

Worker processes gather; the process with the accelerator decodes. Indices are Python numbers and views are
stacked, so nothing here makes a GPU wait for the host or the host for a GPU.

Shape letters: B scenes, V trajectories, L frames, M targets per scene, C T h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, relative_to, stack_cameras
from lyra_ns.data.loaded import LoadedScene, SceneSource, StoredScene
from lyra_ns.data.pending import FrameSources, PendingBatch
from lyra_ns.data.plans import SamplingConfig, ScenePlan
from lyra_ns.data.resizing import ResizedScene

__all__ = ["FrameSources", "PendingBatch", "gather"]

GatheredScene = StoredScene | LoadedScene | ResizedScene
ScenePlans = Sequence[tuple[GatheredScene, ScenePlan]]


def gather(scenes: Sequence[SceneSource], plans: Sequence[ScenePlan], config: SamplingConfig) -> PendingBatch:
    """The tensors that the plans ask for, on the scenes' device, frames not decoded yet.

    Errors of the scenes (missing depth, damaged latents) come through as they are.
    """
    pairs = [(_at_size(scene, config), plan) for scene, plan in zip(scenes, plans, strict=True)]
    latents = _read_latents(pairs, config)
    sources = _frame_sources(pairs, latents, config)
    cameras, target_cameras = _relative_cameras(pairs)
    if config.warm_start:
        _check_cells(cameras, config.cell_size)
    ready: dict[str, Any] = {
        "names": [scene.name for scene in scenes],
        "trajectories": [list(plan.inputs) for plan in plans],
        "target_depth": _target_depth(pairs) if config.with_depth else None,
        "input_depth": _input_depth(pairs, config.cell_size) if config.warm_start else None,
        "is_dynamic": scenes[0].is_dynamic,
        "target_ids": [list(plan.targets) for plan in plans],
    }
    if config.inputs == "stored":
        ready["latents"] = _input_latents(pairs, latents)
    # Images and latents are where the scenes are, cameras always on the host.
    device = ready["latents"].device if sources.input_frames is None else sources.input_frames.device
    ready |= {
        "cameras": cameras.to(device),
        "target_cameras": target_cameras.to(device),
        "target_time": _target_time(pairs, device),
    }
    return PendingBatch(ready, sources, config)


def _at_size(scene: SceneSource, config: SamplingConfig) -> GatheredScene:
    return scene if config.image_size is None else ResizedScene(scene, *config.image_size)


def _input_latents(pairs: ScenePlans, latents: dict[tuple[int, int], Tensor]) -> Float[Tensor, "B V C T h w"]:
    inputs = [[latents[index, each] for each in plan.inputs] for index, (_, plan) in enumerate(pairs)]
    return _stacked([_stacked(z, "latents") for z in inputs], "latents").float()


def _is_decoded(scene: GatheredScene, trajectory: int, config: SamplingConfig) -> bool:
    return config.target_frames == "latents" and trajectory in scene.input_ids


def _read_latents(pairs: ScenePlans, config: SamplingConfig) -> dict[tuple[int, int], Tensor]:
    """Latents of inputs and of other clips to decode, each read once, by (place of scene, trajectory)."""
    latents = {}
    for index, (scene, plan) in enumerate(pairs):
        decoded = [trajectory for trajectory, _ in plan.targets if _is_decoded(scene, trajectory, config)]
        inputs = plan.inputs if config.inputs == "stored" else []
        for trajectory in dict.fromkeys([*inputs, *decoded]):
            latents[index, trajectory] = scene.latents(trajectory)
    return latents


def _frame_sources(
    pairs: ScenePlans, latents: dict[tuple[int, int], Tensor], config: SamplingConfig
) -> FrameSources:
    num_targets = len(pairs[0][1].targets)
    clips: dict[tuple[int, int], int] = {}
    if config.warm_start and config.target_frames == "latents":
        for index, (_, plan) in enumerate(pairs):
            for trajectory in plan.inputs:
                clips[index, trajectory] = len(clips)
    reads_inputs = config.inputs == "encoded" or (config.warm_start and config.target_frames == "rgb")
    decoded_slots, file_frames, file_slots, input_frames = [], [], [], []
    for index, (scene, plan) in enumerate(pairs):
        from_files = []
        for slot, (trajectory, frame) in enumerate(plan.targets, index * num_targets):
            if _is_decoded(scene, trajectory, config):
                row = clips.setdefault((index, trajectory), len(clips))
                decoded_slots.append((row, frame, slot))
            else:
                from_files.append((trajectory, frame))
                file_slots.append(slot)
        wanted = _input_slots(scene, plan) if reads_inputs else []
        # Together, so that a video which is input and target is decoded once.
        images = _images(scene.rgb, [*wanted, *from_files])
        input_frames += images[: len(wanted)]
        file_frames += images[len(wanted) :]
    num_inputs = sum(len(plan.inputs) for _, plan in pairs)
    return FrameSources(
        teacher_latents=_stacked([latents[key] for key in clips], "latents") if clips else None,
        decoded_slots=decoded_slots,
        file_frames=_stacked(file_frames, "frames") if file_frames else None,
        file_slots=file_slots,
        input_frames=(
            _stacked(input_frames, "frames").unflatten(0, (num_inputs, -1)) if input_frames else None
        ),
    )


def _input_frames(scene: GatheredScene, plan: ScenePlan) -> Sequence[int]:
    return range(scene.num_frames) if plan.input_frames is None else plan.input_frames


def _input_slots(scene: GatheredScene, plan: ScenePlan) -> list[tuple[int, int]]:
    """Trajectory and frame of every image that goes in, in the order of the inputs."""
    return [(trajectory, frame) for trajectory in plan.inputs for frame in _input_frames(scene, plan)]


def _images(read: Callable[[int, Sequence[int]], Tensor], targets: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The image of each target; every trajectory is opened once, its frames read in ascending order."""
    found: dict[tuple[int, int], Tensor] = {}
    for trajectory in dict.fromkeys(trajectory for trajectory, _ in targets):
        frames = sorted({frame for each, frame in targets if each == trajectory})
        images = read(trajectory, frames)
        found |= {(trajectory, frame): image for frame, image in zip(frames, images, strict=True)}
    return [found[target] for target in targets]


def _target_depth(pairs: ScenePlans) -> Float[Tensor, "B M H W"]:
    images = [image for scene, plan in pairs for image in _images(scene.depth, plan.targets)]
    return _stacked(images, "depth").float().unflatten(0, (len(pairs), -1))


def _input_depth(pairs: ScenePlans, cell_size: int) -> Float[Tensor, "B V L rows columns"]:
    """Depth at the pixel just behind each cell's centre (of even sizes it lies between pixels)."""
    start, clips = cell_size // 2, []
    for scene, plan in pairs:
        images = _images(scene.depth, _input_slots(scene, plan))
        clips.append(_stacked([image[start::cell_size, start::cell_size] for image in images], "depth"))
    num_inputs = len(pairs[0][1].inputs)
    return _stacked(clips, "depth").float().unflatten(1, (num_inputs, -1))


def _check_cells(cameras: CameraPath, cell_size: int) -> None:
    if cameras.height % cell_size or cameras.width % cell_size:
        raise ValueError(
            f"cell_size must divide the image size {cameras.height}x{cameras.width}, found {cell_size}: take "
            "the decoder's"
        )


def _relative_cameras(pairs: ScenePlans) -> tuple[CameraPath, CameraPath]:
    """Cameras of inputs [B, V, L] and targets [B, M], relative to the first frame that goes in."""
    inputs, targets = [], []
    for scene, plan in pairs:
        frames = list(_input_frames(scene, plan))
        paths = stack_cameras([scene.cameras(trajectory)[frames] for trajectory in plan.inputs])
        reference = paths.camera_to_world[0, 0]
        views = stack_cameras([scene.cameras(trajectory)[frame] for trajectory, frame in plan.targets])
        inputs.append(relative_to(paths, reference))
        targets.append(relative_to(views, reference))
    return stack_cameras(inputs), stack_cameras(targets)


def _target_time(pairs: ScenePlans, device: torch.device) -> Float[Tensor, " B"] | None:
    times = [
        plan.time_frame / max(scene.num_frames - 1, 1) for scene, plan in pairs if plan.time_frame is not None
    ]
    return torch.tensor(times).to(device, non_blocking=True) if times else None


def _stacked(values: list[Tensor], what: str) -> Tensor:
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise ValueError(
            f"{what} of one batch must have one shape, found {sorted(shapes)}: leave out scenes of another "
            "size, or cut all to one num_frames"
        )
    return torch.stack(values)
