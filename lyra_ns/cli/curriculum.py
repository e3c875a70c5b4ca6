"""`ns-lyra curriculum`: the paper's nine training stages, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from lyra_ns.curriculum.stages import RunChoices, Scale, Stage


@dataclass
class TrainCurriculum:
    """Train a decoder through the paper's nine stages; started again, it goes on where it was interrupted."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for runs, weights and state; a folder that holds them already is gone on with."""
    data: Path | None = None
    """Static scenes in the official layout, for stages 1 to 7."""
    dynamic_data: Path | None = None
    """Dynamic scenes, for stages 8 and 9."""
    scale: Literal["full", "tiny"] = "full"
    """full: the paper's network and steps. tiny: all of it shrunk to a test for two CPU cores."""
    stages: str = "1-7"
    """Numbers, ranges and names: 1-7, or 6,multi-6-dynamic. 7 ends the static decoder, 9 the dynamic."""
    init_from: Path | None = None
    """Weights (.safetensors, official .pt) for the first of these stages, in place of its predecessor's."""
    codec: str = "auto"
    """Codec of the latents: auto (what the data names), linear, or cosmos:PATH (official data)."""
    target_frames: Literal["rgb", "latents"] = "rgb"
    """Targets of stages 5 to 9: stored videos (official), or exact frames decoded from the latents."""
    cross_view_targets: bool = False
    """Take targets from all trajectories of a scene, each with its own frames, instead of the inputs only."""
    num_devices: int = 1
    """GPUs; each has its own scenes, and the paper's batch is that of 8."""
    num_workers: int = 4
    """Worker processes per GPU that read ahead; the early stages read many videos in little time."""
    cache: Literal["none", "cpu", "device"] = "none"
    """none reads every batch from disk; cpu and device hold all scenes of a stage there."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Seed of weights and batches."""
    print_only: Annotated[bool, tyro.conf.arg(name="print")] = False
    """Show the stages as they would run, and the commands that run them by hand; train nothing."""

    def run(self) -> None:
        """Train, or show what would be trained."""
        from lyra_ns.curriculum.stages import SCALES

        scale = SCALES[self.scale]
        stages, choices = scale.chosen(self.stages), self._choices()
        if self.print_only:
            self._show(scale, stages, choices)
            return
        from lyra_ns.curriculum.run import Curriculum

        paths = Curriculum(self.scale, stages, choices, self.init_from).run()
        print(f"\n{paths[-1]} is the last decoder: ns-lyra evaluate --data ... --checkpoint {paths[-1]}")

    def _choices(self) -> RunChoices:
        from lyra_ns.curriculum.stages import RunChoices
        from lyra_ns.device import chosen_device

        return RunChoices(
            output=self.output,
            data=self.data,
            dynamic_data=self.dynamic_data,
            codec=self.codec,
            target_frames=self.target_frames,
            cross_view_targets=self.cross_view_targets,
            cache=self.cache,
            num_workers=self.num_workers,
            num_devices=self.num_devices,
            device=chosen_device(self.device).type,
            seed=self.seed,
        )

    def _show(self, scale: Scale, stages: list[Stage], choices: RunChoices) -> None:
        from lyra_ns.curriculum.run import WEIGHTS_FOLDER
        from lyra_ns.curriculum.stages import command_of, stage_options, stage_table

        print(stage_table(scale, stages, choices))
        for stage in stages:
            weights = self.output / WEIGHTS_FOLDER / f"{stage.starts_from}.safetensors"
            start = weights if stage.starts_from else None
            if self.init_from is not None and stage == stages[0]:
                start = self.init_from
            print(f"\n{stage.name}:\n{command_of(stage_options(scale, stage, choices, start))}")
