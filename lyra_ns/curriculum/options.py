"""A stage as options of `ns-train lyra`: what is printed, what is kept in the state, and what really runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lyra_ns.curriculum.stages import Scale, Stage
from lyra_ns.data.plans import FrameSource

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

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
