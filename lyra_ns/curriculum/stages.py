"""The stages as data: the official nine, and the same nine shrunk until two CPU cores can run them.

Each is also a row of a table to read, and a set of options of `ns-train lyra`: what is printed, what is kept
in the state, and what really runs.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lyra_ns.data.view_sampling import FrameSource, InputSource, TargetDistribution

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

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


HEADINGS = (
    "#", "stage", "starts from", "size", "frames", "V", "targets", "law", "latents", "scenes/step", "steps",
    "in all", "pruned", "opacity", "times",
)  # fmt: skip


def stage_table(scale: Scale, stages: Sequence[Stage], choices: RunChoices) -> str:
    """One line per stage: what goes in, what is rendered, for how many steps, its own and those before."""
    rows = [HEADINGS, *(_row(scale, stage, choices) for stage in stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(scale: Scale, stage: Stage, choices: RunChoices) -> tuple[str, ...]:
    return (
        str(scale.number(stage)),
        stage.name,
        stage.starts_from or "random",
        "x".join(map(str, stage.image_size)) if stage.image_size else "stored",
        str(stage.num_input_frames or "all"),
        "1" if stage.num_trajectories_max == 1 else f"1..{stage.num_trajectories_max}",
        _targets(stage, choices),
        "one moment" if stage.is_dynamic else stage.target_distribution,
        stage.inputs,
        f"{stage.scenes_per_step * choices.num_devices}",
        str(stage.num_steps),
        str(scale.cumulative_steps(stage)),
        f"{stage.prune_ratio:g}",
        f"{stage.opacity:g}",
        "yes" if stage.is_dynamic else "no",
    )


def _targets(stage: Stage, choices: RunChoices) -> str:
    if stage.is_dynamic:
        return "all views"
    views = "" if stage.num_trajectories_max == 1 else " x V"
    return f"{stage.num_target_frames}{views}" + (" anywhere" if choices.cross_view_targets else "")


METHOD = "lyra"
RUNS_FOLDER = "runs"
SAMPLING = "pipeline.datamanager.sampling"

MACHINE_OPTIONS = frozenset(
    {
        "data",
        "output-dir",
        "machine.device-type",
        "machine.num-devices",
        "pipeline.datamanager.cache",
        "pipeline.datamanager.num-workers",
        "pipeline.model.init-from",
        "steps-per-save",
    }
)
"""Options that may differ between the parts of an interrupted stage: where it runs, not what it learns.

Weights are told apart by their digest instead of their path."""


@dataclass(frozen=True)
class RunChoices:
    """What all stages are told alike."""

    output: Path
    """Folder of the curriculum."""
    data: Path | None = None
    """Static scenes; None where options are only shown."""
    dynamic_data: Path | None = None
    """Dynamic scenes."""
    codec: str = "auto"
    """Codec of the latents."""
    target_frames: FrameSource = "rgb"
    """Where stages with stored latents take their targets from."""
    cross_view_targets: bool = False
    """Whether targets come from all trajectories of a scene, each with its own frames."""
    cache: Literal["none", "cpu", "device"] = "none"
    """Where the scenes of a stage are held."""
    num_workers: int = 2
    """Worker processes that read ahead."""
    num_devices: int = 1
    """Processes, each with a GPU of its own."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Seed of weights and batches."""

    def data_of(self, stage: Stage) -> Path | None:
        """The data set that `stage` trains on."""
        return self.dynamic_data if stage.is_dynamic else self.data


def stage_options(
    scale: Scale, stage: Stage, choices: RunChoices, weights: Path | None
) -> dict[str, tuple[str, ...]]:
    """Options of `ns-train lyra` by name, with their values, for a stage that starts from `weights`."""
    data = choices.data_of(stage)
    placeholder = "DYNAMIC_DATA" if stage.is_dynamic else "DATA"
    options: dict[str, object] = {
        "data": placeholder if data is None else data,
        "output-dir": choices.output,
        "experiment-name": RUNS_FOLDER,
        "timestamp": stage.name,
        "vis": "tensorboard",
        "max-num-iterations": stage.num_steps,
        # Views at the stored size mean nothing to a decoder of smaller ones; `ns-lyra evaluate` measures.
        "steps-per-eval-image": 0,
        "steps-per-eval-all-images": 0,
        "machine.device-type": choices.device,
        "machine.num-devices": choices.num_devices,
        "machine.seed": choices.seed,
        "pipeline.datamanager.seed": choices.seed,
        "pipeline.datamanager.cache": choices.cache,
        "pipeline.datamanager.num-workers": choices.num_workers,
        "pipeline.datamanager.scenes-per-step": stage.scenes_per_step,
        "pipeline.model.init-from": "none" if weights is None else weights,
        "pipeline.model.codec": choices.codec,
        "pipeline.model.decoder.use-time": stage.is_dynamic,
        "pipeline.model.prune-ratio": stage.prune_ratio,
        "pipeline.model.loss.opacity": stage.opacity,
        **scale.options,
        **_sampling_options(stage, choices),
    }
    return {name: _words(value) for name, value in options.items()}


def _sampling_options(stage: Stage, choices: RunChoices) -> dict[str, object]:
    options: dict[str, object] = {
        "num-trajectories-min": 1,
        "num-trajectories-max": stage.num_trajectories_max,
        "num-target-frames": stage.num_target_frames,
        "target-distribution": stage.target_distribution,
        "cross-view-targets": choices.cross_view_targets,
        "target-frames": choices.target_frames if stage.inputs == "stored" else "rgb",
        "inputs": stage.inputs,
    }
    if stage.image_size is not None:
        options["image-size"] = stage.image_size
    if stage.num_input_frames is not None:
        options["num-input-frames"] = stage.num_input_frames
        options["frame-gap-min"], options["frame-gap-max"] = stage.frame_gap
    return {f"{SAMPLING}.{name}": value for name, value in options.items()}


def _words(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, tuple) else (str(value),)


def arguments_of(options: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The options as words of a command line."""
    return [word for name, values in options.items() for word in (f"--{name}", *values)]


def command_of(options: Mapping[str, tuple[str, ...]]) -> str:
    """The command that trains this stage by hand."""
    return shlex.join(["ns-train", METHOD, *arguments_of(options)])


def settings_of(options: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The options that decide what is learned, as they are kept in the state."""
    return {name: " ".join(values) for name, values in options.items() if name not in MACHINE_OPTIONS}


def trainer_config_of(options: Mapping[str, tuple[str, ...]]) -> TrainerConfig:
    """The configuration that `ns-train lyra` would make of these options, by the same parser."""
    import tyro

    from lyra_ns.method_configs.lyra import lyra

    kind: type = tyro.conf.FlagConversionOff[type(lyra.config)]  # type: ignore[misc]
    config: TrainerConfig = tyro.cli(kind, default=deepcopy(lyra.config), args=arguments_of(options))
    # As ns-train does with its alias --data.
    assert config.data is not None, "every stage names its data"
    config.pipeline.datamanager.data = config.data
    return config
