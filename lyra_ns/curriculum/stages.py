"""The stages as data: the official nine, and the same nine shrunk until two CPU cores can run them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lyra_ns.data.plans import InputSource, TargetDistribution

ScaleName = Literal["full", "tiny"]


@dataclass(frozen=True)
class Stage:
    """One stage: what is trained on, for how long, and from whose weights."""

    name: str
    """Name of the stage, its run and its weights."""
    starts_from: str | None
    """Stage whose weights this one starts from; None: random weights."""
    num_steps: int
    """Optimiser steps of this stage alone."""
    inputs: InputSource = "stored"
    """Whether latents are read or encoded from the frames on the fly."""
    image_size: tuple[int, int] | None = None
    """Height and width to which frames are resized; None: as stored."""
    num_input_frames: int | None = None
    """Frames of each input trajectory; None: the whole clip."""
    frame_gap: tuple[int, int] = (45, 121)
    """Fewest and most frames from the first input frame to the last."""
    num_trajectories_max: int = 1
    """Most input trajectories; their number is uniform from 1."""
    num_target_frames: int = 9
    """Frames that are rendered per target trajectory; a dynamic step renders one moment."""
    target_distribution: TargetDistribution = "uniform"
    """How target frames are drawn."""
    scenes_per_step: int = 1
    """Scenes per step and process."""
    prune_ratio: float = 0.0
    """Share of Gaussians that is dropped before rendering."""
    opacity: float = 0.0
    """Weight of the opacity penalty."""
    is_dynamic: bool = False
    """Whether it trains on dynamic scenes, with the time embeddings."""


@dataclass(frozen=True)
class Scale:
    """The stages at one size, and what all of them share."""

    stages: tuple[Stage, ...]
    """The nine stages in order."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of `ns-train lyra` that all stages share."""

    def number(self, stage: Stage) -> int:
        """Number of the stage, from 1."""
        return self.stages.index(stage) + 1

    def cumulative_steps(self, stage: Stage) -> int:
        """Steps of all stages that its weights came through, its own included (official `global_step`)."""
        before = [other for other in self.stages if other.name == stage.starts_from]
        return stage.num_steps + (self.cumulative_steps(before[0]) if before else 0)

    def chosen(self, text: str) -> list[Stage]:
        """Stages by number, range or name ("1-7", "6,8-9", "multi-6"), in their order; ValueError if none."""
        names = {stage.name: number for number, stage in enumerate(self.stages, 1)}
        numbers: set[int] = set()
        for part in filter(None, (part.strip() for part in text.split(","))):
            span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
            if part in names:
                numbers.add(names[part])
            elif span and 1 <= int(span[1]) <= int(span[2] or span[1]) <= len(self.stages):
                numbers |= set(range(int(span[1]), int(span[2] or span[1]) + 1))
            else:
                raise ValueError(
                    f"stages are numbers from 1 to {len(self.stages)}, ranges of them or names "
                    f"({', '.join(names)}), found {part!r}: give for example 1-7"
                )
        if not numbers:
            raise ValueError("no stage was chosen: give for example 1-9")
        return [self.stages[number - 1] for number in sorted(numbers)]


_MULTI = Stage(
    "multi-6",
    starts_from="704x1280-121",
    num_steps=7_000,
    num_trajectories_max=6,
    target_distribution="exponential",
)
_DYNAMIC = replace(
    _MULTI,
    name="multi-6-dynamic",
    starts_from="multi-6",
    num_steps=8_000,
    num_target_frames=1,
    is_dynamic=True,
)
_PRUNED = {"prune_ratio": 0.8, "opacity": 0.1, "num_steps": 1_000}

OFFICIAL_STAGES = (
    Stage(
        "176x320-17",
        starts_from=None,
        num_steps=10_000,
        inputs="encoded",
        image_size=(176, 320),
        num_input_frames=17,
        num_target_frames=17,
        scenes_per_step=4,
    ),
    Stage(
        "176x320-49",
        starts_from="176x320-17",
        num_steps=2_500,
        inputs="encoded",
        image_size=(176, 320),
        num_input_frames=49,
        num_target_frames=49,
        scenes_per_step=4,
    ),
    Stage(
        "352x640-49",
        starts_from="176x320-49",
        num_steps=2_500,
        inputs="encoded",
        image_size=(352, 640),
        num_input_frames=49,
        num_target_frames=49,
        scenes_per_step=2,
    ),
    Stage(
        "704x1280-49",
        starts_from="352x640-49",
        num_steps=2_500,
        inputs="encoded",
        image_size=(704, 1280),
        num_input_frames=49,
        num_target_frames=49,
    ),
    Stage("704x1280-121", starts_from="704x1280-49", num_steps=57_500),
    _MULTI,
    replace(_MULTI, name="multi-6-prune", starts_from="multi-6", **_PRUNED),  # type: ignore[arg-type]
    _DYNAMIC,
    replace(_DYNAMIC, name="multi-6-dynamic-prune", starts_from="multi-6-dynamic", **_PRUNED),  # type: ignore[arg-type]
)
"""The table of docs/reference/lyra_training.md, "Curriculum"; 7 gives lyra_static, 9 lyra_dynamic."""


def _shrunk(stage: Stage) -> Stage:
    """The stage for clips of 17 small frames: as many inputs and targets as those can give, few steps."""
    sizes = {(176, 320): (32, 48), (352, 640): (48, 64), (704, 1280): (64, 96)}
    frames = {17: 9, 49: 17}
    return replace(
        stage,
        num_steps=4 if stage.starts_from is None else 2,
        image_size=sizes[stage.image_size] if stage.image_size else None,
        num_input_frames=frames[stage.num_input_frames] if stage.num_input_frames else None,
        frame_gap=(6, 17),
        num_target_frames=min(stage.num_target_frames, 4 if stage.num_trajectories_max == 1 else 2),
        scenes_per_step=min(stage.scenes_per_step, 2),
    )


TINY_OPTIONS = {
    "pipeline.model.decoder.width": "32",
    "pipeline.model.decoder.depth": "2",
    "pipeline.model.decoder.pattern": "1M1T",
    "pipeline.model.decoder.num-heads": "2",
    "pipeline.model.decoder.state-size": "8",
    "pipeline.model.decoder.head-dim": "16",
    # With the official distances nothing would be seen for thousands of steps.
    "pipeline.model.decoder.head.near": "1.0",
    "pipeline.model.decoder.head.far": "30.0",
    "pipeline.model.decoder.head.distance-law": "logarithmic",
    "pipeline.model.decoder.head.distance-shift": "0.0",
    "pipeline.model.decoder.head.scale-law": "footprint",
    "pipeline.model.decoder.head.identity-rotation": "True",
    "pipeline.model.loss.lpips-net": "alex",
    "pipeline.model.render.response": "ewa",
    "optimizers.decoder.optimizer.lr": "1e-3",
    "optimizers.decoder.scheduler.warmup-steps": "2",
    "steps-per-eval-batch": "0",
    "steps-per-save": "1",
}

FULL_OPTIONS = {
    "pipeline.model.loss.lpips-net": "vgg",
    "optimizers.decoder.optimizer.lr": "1e-4",
    "optimizers.decoder.scheduler.warmup-steps": "100",
    "steps-per-eval-batch": "500",
    "steps-per-save": "200",
}

SCALES: dict[ScaleName, Scale] = {
    "full": Scale(OFFICIAL_STAGES, FULL_OPTIONS),
    "tiny": Scale(tuple(_shrunk(stage) for stage in OFFICIAL_STAGES), TINY_OPTIONS),
}
