"""Which trajectories and frames go in and which views are asked for: the random choices of a batch.

Where not the whole clip goes in, the gap rule of early stages says which frames do.

Source: docs/reference/lyra_training.md, "Draws of views and frames".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.data.scenes import SceneSource


@dataclass(frozen=True)
class FrameSpan:
    """A stretch of a clip."""

    inputs: list[int]
    """Frames that go in; ascending, except in clips that are too short, which run forth and back."""
    candidates: list[int]
    """Frames that may be targets, ascending."""


def draw_frame_span(
    num_frames: int,
    num_inputs: int,
    num_targets: int,
    gap_limits: tuple[int, int],
    generator: torch.Generator,
) -> FrameSpan:
    """Both ends of a stretch and random frames between them, `num_inputs` in all; targets lie in the stretch.

    The stretch reaches over a number of frames drawn uniformly from `gap_limits` (both included), but over
    no fewer than it must give, and no more than there are. A clip with fewer than `num_inputs` frames is
    mirrored at its ends instead, from a random start, and its targets come from all of it.
    """
    if num_frames < num_inputs:
        start = _integer(0, num_frames - 1, generator)
        inputs = [_mirrored(start + step, num_frames) for step in range(num_inputs)]
        return FrameSpan(inputs, list(range(num_frames)))
    drawn = _integer(*gap_limits, generator)
    gap = min(max(drawn, num_inputs, num_targets - 1), num_frames - 1)
    start = _integer(0, num_frames - 1 - gap, generator)
    between = torch.randperm(max(gap - 1, 0), generator=generator)[: max(num_inputs - 2, 0)].sort().values
    inputs = [start, *(between + start + 1).tolist(), start + gap][:num_inputs]
    return FrameSpan(inputs, list(range(start, start + gap + 1)))


def _mirrored(step: int, num_frames: int) -> int:
    """The frame after so many steps from the first, turning round at both ends."""
    period = max(2 * (num_frames - 1), 1)
    return min(step % period, period - step % period)


def _integer(first: int, last: int, generator: torch.Generator) -> int:
    return int(torch.randint(first, last + 1, (1,), generator=generator))


TargetDistribution = Literal["uniform", "exponential"]
FrameSource = Literal["latents", "rgb"]
InputSource = Literal["stored", "encoded"]
EXPONENTIAL_RATE = 3.0
"""p(frame) is proportional to exp(3 position), position from 0 to 1 (official)."""


@dataclass(frozen=True)
class SamplingConfig:
    """How batches are drawn. The defaults are the official multi-trajectory stage."""

    num_trajectories_min: int = 1
    """Fewest input trajectories; their number is uniform between the two limits."""
    num_trajectories_max: int = 6
    """Most input trajectories."""
    num_target_frames: int = 9
    """Frames drawn, without repetition, from each target trajectory (static scenes)."""
    target_distribution: TargetDistribution = "exponential"
    """Whether late frames, which lie far from the common start, are drawn more often."""
    cross_view_targets: bool = False
    """Take target trajectories from all of the scene, each with its own frames; otherwise (official) they are
    the input trajectories, all with the same frames."""
    num_target_trajectories: int | None = None
    """Target trajectories per scene with `cross_view_targets`; None takes as many as there are inputs."""
    include_novel_paths: bool = False
    """Whether held-out camera paths may be targets too (with `cross_view_targets`). Off, so that they stay
    held out."""
    target_frames: FrameSource = "latents"
    """Whether targets are decoded from the latents (exact teacher) or read from the rgb files (lossy mp4).
    Trajectories whose latents are not read (time-reversed views, held-out paths) always come from rgb."""
    with_depth: bool = True
    """Whether targets carry z-depth; a scene without it is then an error."""
    warm_start: bool = False
    """Whether depth and colour of the input cells are given too (attribute warm start)."""
    cell_size: int = 8
    """Pixels per Gaussian along each side, for the warm start."""
    inputs: InputSource = "stored"
    """Whether the latents that go in are read, or made on the device by the codec from the rgb files
    (official stages 1 to 4)."""
    image_size: tuple[int, int] | None = None
    """Height and width to which frames, depth and cameras are cropped and resized; needs encoded inputs.
    None: as stored."""
    num_input_frames: int | None = None
    """Frames of each input trajectory, 8k + 1: the ends of a stretch of the clip and random ones between
    them; targets then lie in that stretch. Needs encoded inputs. None: all frames."""
    frame_gap_min: int = 45
    """Fewest frames from the first input frame to the last, with `num_input_frames`."""
    frame_gap_max: int = 121
    """Most of them; the gap is uniform between the two limits, as far as the clip is long enough."""

    def __post_init__(self) -> None:
        """Refuse choices that contradict each other."""
        is_changed = self.image_size is not None or self.num_input_frames is not None
        if self.inputs == "stored" and is_changed:
            raise ValueError(
                f"stored latents belong to whole clips of one size, found image_size {self.image_size} and "
                f"num_input_frames {self.num_input_frames}: set inputs to encoded, or leave both out"
            )
        if self.inputs == "encoded" and self.target_frames != "rgb":
            raise ValueError(
                "encoded inputs are read from the rgb files, and so must the targets be, found target_frames "
                f"{self.target_frames}: set target_frames to rgb"
            )
        if not 1 <= self.frame_gap_min <= self.frame_gap_max:
            raise ValueError(
                "frame_gap_min and frame_gap_max must be ascending from 1, found "
                f"{self.frame_gap_min} and {self.frame_gap_max}"
            )


@dataclass(frozen=True)
class ScenePlan:
    """What one scene contributes to a batch."""

    inputs: list[int]
    """Input trajectories in the order in which the decoder reads them."""
    targets: list[tuple[int, int]]
    """Trajectory and frame of each view to render."""
    time_frame: int | None = None
    """Frame whose moment the Gaussians should show (dynamic scenes)."""
    input_frames: list[int] | None = None
    """Frames of each input trajectory; None takes all."""


ALL_RANKS = -1
"""Stands for the rank where all ranks must draw alike: V is shared, so that they take equally long."""
SHUFFLE = -2
"""Less the rank: stands for the rank in the generators of scene order, apart from those of batches."""


def batch_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """A CPU generator that depends on these three numbers only."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def scene_order(position: int, num_scenes: int, seed: int, rank: int) -> list[int]:
    """Scene numbers from a position of the endless sequence of shuffled passes on.

    The first is the scene at that position, then comes the rest of its pass, then the pass's beginning.
    """
    turn, place = divmod(position, num_scenes)
    generator = batch_generator(seed, turn, SHUFFLE - rank)
    order = torch.randperm(num_scenes, generator=generator).tolist()
    return order[place:] + order[:place]


def target_frame_weights(num_frames: int, distribution: TargetDistribution) -> Float[Tensor, " L"]:
    """Relative chance of each frame: equal, or e^3 times larger at the end than at the start."""
    if distribution == "uniform":
        return torch.ones(num_frames)
    return torch.exp(EXPONENTIAL_RATE * torch.linspace(0.0, 1.0, num_frames))


def draw_num_trajectories(
    scenes: Sequence[SceneSource], config: SamplingConfig, generator: torch.Generator
) -> int:
    """How many trajectories go in: uniform between the limits, or up to what every scene has."""
    if not 1 <= config.num_trajectories_min <= config.num_trajectories_max:
        raise ValueError(
            "num_trajectories_min and num_trajectories_max must be ascending from 1, found "
            f"{config.num_trajectories_min} and {config.num_trajectories_max}"
        )
    poorest = min(scenes, key=lambda scene: len(scene.input_ids))
    most = min(config.num_trajectories_max, len(poorest.input_ids))
    if most < config.num_trajectories_min:
        raise ValueError(
            f"scene {poorest.name} has {most} trajectories with latents, expected at least "
            f"{config.num_trajectories_min}: leave the scene out or lower num_trajectories_min"
        )
    return int(torch.randint(config.num_trajectories_min, most + 1, (1,), generator=generator))


def draw_plans(
    scenes: Sequence[SceneSource],
    config: SamplingConfig,
    generator: torch.Generator,
    num_trajectories: int | None = None,
) -> list[ScenePlan]:
    """One plan per scene, with equally many inputs and targets in all; repeatable under the generator."""
    if len({scene.is_dynamic for scene in scenes}) != 1:
        raise ValueError("a batch must hold only static or only dynamic scenes, found both or none")
    if num_trajectories is None:
        num_trajectories = draw_num_trajectories(scenes, config, generator)
    draw = _draw_dynamic if scenes[0].is_dynamic else _draw_static
    num_targets = _num_target_trajectories(scenes, config, num_trajectories)
    plans = []
    for scene in scenes:
        if len(scene.input_ids) < num_trajectories:
            raise ValueError(
                f"scene {scene.name} has {len(scene.input_ids)} trajectories with latents, expected "
                f"{num_trajectories}: leave the scene out or ask for fewer"
            )
        inputs = _choose(scene.input_ids, num_trajectories, generator)
        plans.append(draw(scene, config, generator, inputs, num_targets))
    return plans


def _num_target_trajectories(
    scenes: Sequence[SceneSource], config: SamplingConfig, num_trajectories: int
) -> int:
    """Target trajectories per scene, the same for all scenes of a batch."""
    available = min(len(_candidates(scene, config)) for scene in scenes)
    if scenes[0].is_dynamic:
        return min(config.num_target_trajectories or available, available)
    if not config.cross_view_targets:
        return num_trajectories
    return min(config.num_target_trajectories or num_trajectories, available)


def _candidates(scene: SceneSource, config: SamplingConfig) -> list[int]:
    return scene.target_ids + (scene.novel_ids if config.include_novel_paths else [])


def _draw_static(
    scene: SceneSource,
    config: SamplingConfig,
    generator: torch.Generator,
    inputs: list[int],
    num_targets: int,
) -> ScenePlan:
    span = _draw_span(scene, config, generator)
    candidates = list(range(scene.num_frames)) if span is None else span.candidates
    input_frames = None if span is None else span.inputs
    if config.num_target_frames > len(candidates):
        raise ValueError(
            f"num_target_frames must be at most the {len(candidates)} frames of scene {scene.name}, found "
            f"{config.num_target_frames}: ask for fewer"
        )
    if not config.cross_view_targets:
        frames = _draw_frames(candidates, config, generator)
        targets = [(trajectory, frame) for trajectory in inputs for frame in frames]
        return ScenePlan(inputs, targets, input_frames=input_frames)
    trajectories = _choose(_candidates(scene, config), num_targets, generator)
    targets = [
        (each, frame) for each in trajectories for frame in _draw_frames(candidates, config, generator)
    ]
    return ScenePlan(inputs, targets, input_frames=input_frames)


def _draw_span(scene: SceneSource, config: SamplingConfig, generator: torch.Generator) -> FrameSpan | None:
    """The frames that go in; None for all, without drawing anything."""
    if config.num_input_frames is None:
        return None
    limits = (config.frame_gap_min, config.frame_gap_max)
    return draw_frame_span(
        scene.num_frames, config.num_input_frames, config.num_target_frames, limits, generator
    )


def _draw_dynamic(
    scene: SceneSource,
    config: SamplingConfig,
    generator: torch.Generator,
    inputs: list[int],
    num_targets: int,
) -> ScenePlan:
    """All targets show one moment, seen from every trajectory (official: 12 with the time-reversed ones)."""
    if config.num_input_frames is not None:
        raise ValueError(
            f"scene {scene.name} is dynamic, and its times run over whole clips, found num_input_frames "
            f"{config.num_input_frames}: leave it out"
        )
    frame = int(torch.randint(scene.num_frames, (1,), generator=generator))
    trajectories = _choose(_candidates(scene, config), num_targets, generator)
    return ScenePlan(inputs, [(trajectory, frame) for trajectory in trajectories], frame)


def _draw_frames(candidates: Sequence[int], config: SamplingConfig, generator: torch.Generator) -> list[int]:
    weights = target_frame_weights(len(candidates), config.target_distribution)
    drawn = torch.multinomial(weights, config.num_target_frames, generator=generator)
    return [candidates[position] for position in drawn.tolist()]


def _choose(ids: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    return [ids[position] for position in torch.randperm(len(ids), generator=generator)[:count].tolist()]
