"""Batches of scenes: the door to `plans` (random choices), `loaded` (scenes) and `gathering` (tensors)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lyra_ns.codec.interface import VideoCodec
from lyra_ns.data.gathering import PendingBatch, gather
from lyra_ns.data.loaded import LoadedScene, SceneSource, StoredScene, load_scene
from lyra_ns.data.plans import (
    FrameSource,
    SamplingConfig,
    ScenePlan,
    batch_generator,
    draw_num_trajectories,
    draw_plans,
    target_frame_weights,
)
from lyra_ns.data.reading_order import READING_ORDER
from lyra_ns.data.types import SceneBatch

__all__ = [
    "LoadedScene",
    "PendingBatch",
    "SamplingConfig",
    "ScenePlan",
    "StoredScene",
    "batch_generator",
    "draw_num_trajectories",
    "draw_plans",
    "evaluation_batch",
    "gather",
    "load_scene",
    "make_batch",
    "target_frame_weights",
]


def make_batch(
    scenes: Sequence[SceneSource],
    config: SamplingConfig,
    codec: VideoCodec,
    generator: torch.Generator,
    num_trajectories: int | None = None,
) -> SceneBatch:
    """A training batch of these scenes, on their device; the same for the same generator state.

    All scenes get the same number of trajectories V, drawn once unless given. The generator must be a CPU
    one: indices are drawn and applied on the host, so that the device never has to be waited for.
    """
    plans = draw_plans(scenes, config, generator, num_trajectories)
    return gather(scenes, plans, config).complete(codec)


def evaluation_batch(
    scene: SceneSource,
    codec: VideoCodec,
    num_trajectories: int = 6,
    frames: Sequence[int] | None = None,
    target_frames: FrameSource = "rgb",
    order: Sequence[int] = READING_ORDER,
    with_novel_paths: bool = True,
    with_depth: bool = True,
) -> SceneBatch:
    """The fixed batch that a scene is judged by: inputs in the official order, nothing random.

    Targets are `frames` (default: the middle and the last) of all trajectories and then of the held-out
    paths, named in `target_ids`; of a dynamic scene exactly one frame, which is the moment shown.
    """
    inputs = [trajectory for trajectory in order if trajectory in scene.input_ids][:num_trajectories]
    if len(inputs) < num_trajectories:
        raise ValueError(
            f"scene {scene.name} has {len(inputs)} of the trajectories {list(order)}, expected "
            f"{num_trajectories}: evaluate with fewer"
        )
    if frames is None:
        last = scene.num_frames - 1
        frames = (last,) if scene.is_dynamic else ((scene.num_frames + 1) // 2, last)
    if scene.is_dynamic and len(frames) != 1:
        raise ValueError(f"a dynamic scene shows one moment, found frames {list(frames)}: give one frame")
    trajectories = scene.target_ids + (scene.novel_ids if with_novel_paths else [])
    targets = [(trajectory, frame) for trajectory in trajectories for frame in frames]
    plan = ScenePlan(inputs, targets, frames[0] if scene.is_dynamic else None)
    config = SamplingConfig(target_frames=target_frames, with_depth=with_depth)
    return gather([scene], [plan], config).complete(codec)
