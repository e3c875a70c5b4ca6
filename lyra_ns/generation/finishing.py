"""From clips to the finished folder: Gaussians reconstructed, refined, drawn, judged and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lyra_ns.codec.interface import VideoCodec
from lyra_ns.data.video_files import VideoSize
from lyra_ns.decoder import LatentGaussianDecoder
from lyra_ns.generation.clip_making import clip_title, teacher_name
from lyra_ns.generation.decoder_input import DecoderInput, is_small, with_frames
from lyra_ns.generation.known_views import KnownViews
from lyra_ns.generation.length_unit import SUBJECT_AT, LengthUnit, fitted_unit
from lyra_ns.generation.output_folder import whole_folder
from lyra_ns.generation.outputs import (
    Instant,
    write_gaussians,
    write_latents,
    write_record,
    write_sheet,
    write_video,
)
from lyra_ns.generation.progress import OnStep, StageProgress
from lyra_ns.generation.quality import scene_quality
from lyra_ns.generation.record import NOTHING_GENERATED, record_of, record_of_result
from lyra_ns.generation.refining import (
    first_camera,
    refined_instants,
    refinement_record,
    refinement_views,
)
from lyra_ns.generation.scene_plan import ScenePlan
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.refinement import Refinement, RefinementConfig
from lyra_ns.rendering import RenderSettings


@dataclass(frozen=True)
class GeneratedScene:
    """What a run made."""

    folder: Path
    """Where its files are, if any were written."""
    record: dict[str, Any]
    """What record.json says; of a dry run, what was planned."""
    instants: tuple[Instant, ...] = ()
    """The scene at its moments; empty after a dry run."""
    given: DecoderInput | None = None
    """Latents and cameras from which it was reconstructed; None after a dry run."""


@dataclass(frozen=True)
class SceneClips:
    """The clips of a scene, and what else is known of it."""

    given: DecoderInput
    """Latents, cameras and frames, in units of the scene."""
    codec: VideoCodec
    """Codec of the latents."""
    plan: ScenePlan | None = None
    """What the clips were made from; None for latents that were there already."""
    known: KnownViews | None = None
    """The picture and what is known around it; None for latents."""
    notes: Sequence[dict[str, Any]] = ()
    """The teacher's on each clip."""


class SceneFinisher:
    """Makes the result of one run."""

    def __init__(
        self,
        settings: GenerateSettings,
        decoder: LatentGaussianDecoder,
        size: VideoSize,
        device: torch.device,
        progress: StageProgress,
        refine_steps: int,
        writes_files: bool = True,
    ) -> None:
        """`size` is the usual one of clips, for latents that come without a picture."""
        self.settings, self.size = settings, size
        self.decoder, self.device = decoder, device
        self.progress, self.refine_steps = progress, refine_steps
        self.writes_files = writes_files

    def __call__(self, clips: SceneClips) -> GeneratedScene:
        """Reconstruct, refine and write; the folder appears at the end."""
        settings, plan = self.settings, clips.plan
        reconstruct = self._reconstructor(clips.codec)
        drawn = settings.render_settings(reconstruct)
        with self.progress.stage("Gaussians reconstructed") as on_step:
            unit = self._unit(reconstruct, clips, drawn, on_step)
            given = clips.given.in_unit(unit.factor)
            instants = self._instants(reconstruct, given)
        total = sum(instant.gaussians.num for instant in instants)
        self.progress.say(f"      {total:,} Gaussians; lengths times {unit.factor:.3g} ({unit.origin})")
        instants, refinements = self._refined(instants, given, clips, unit.factor, drawn)
        if not self.writes_files:
            record = self._record(instants, given, clips, unit, refinements, drawn)
            return GeneratedScene(settings.output, record, instants, given)
        with whole_folder(settings.output) as folder:
            self._write(folder, instants, given, drawn, is_new=plan is not None)
            record = self._record(instants, given, clips, unit, refinements, drawn)
            write_record(folder / "record.json", record)
        self._say_end(plan)
        return GeneratedScene(settings.output, record, instants, given)

    def _record(
        self,
        instants: Sequence[Instant],
        given: DecoderInput,
        clips: SceneClips,
        unit: LengthUnit,
        refinements: list[Refinement],
        drawn: RenderSettings,
    ) -> dict[str, Any]:
        """How the scene was made and how good it is, with the seconds of all stages until now."""
        settings, plan = self.settings, clips.plan
        num_gaussians = [instant.gaussians.num for instant in instants]
        record = record_of(settings, self.size if plan is None else plan.frames.clip_size, plan)
        record |= record_of_result(given, unit, clips.notes, num_gaussians, settings, self.device)
        record["refinement"] = refinement_record(refinements)
        record["quality"] = self._quality(instants[0], given, clips, unit.factor, drawn)
        record["seconds"] = {stage.name: round(stage.seconds, 2) for stage in self.progress.meter.stages}
        record["total_seconds"] = round(self.progress.seconds, 2)
        return record

    def _reconstructor(self, codec: VideoCodec) -> Reconstructor:
        settings = self.settings
        return Reconstructor(
            self.decoder.to(self.device),
            codec.to(self.device),
            settings.prune_ratio,
            settings.plucker_dtype,
            settings.ray_dtype,
            "chunked" if settings.memory == "low" else "auto",
        )

    def _unit(
        self, reconstruct: Reconstructor, clips: SceneClips, drawn: RenderSettings, on_step: OnStep
    ) -> LengthUnit:
        """The unit of length; ready latents already have theirs unless one is asked for."""
        wanted, given = self.settings.units, clips.given
        if wanted == "auto":
            wanted = "fitted" if clips.plan is not None and is_small(self.decoder.config) else "scene"
        if wanted == "scene":
            return LengthUnit(1.0, "that of the scene", {})
        if not isinstance(wanted, str):
            return LengthUnit(float(wanted), "given as --units", {})
        time = self.settings.times[0] if given.is_dynamic else None
        # Ready latents have a unit already, most likely one that a decoder of this kind was given.
        start = 1.0 if clips.plan is None else SUBJECT_AT / clips.plan.near_depth
        videos = list(given.videos)
        return fitted_unit(reconstruct, given.z, given.cameras, videos, drawn, start, time, on_step)

    def _instants(self, reconstruct: Reconstructor, given: DecoderInput) -> tuple[Instant, ...]:
        times: tuple[float | None, ...] = self.settings.times if given.is_dynamic else (None,)
        return tuple(Instant(time, reconstruct(given.z, given.cameras, time)) for time in times)

    def _refined(
        self,
        instants: tuple[Instant, ...],
        given: DecoderInput,
        clips: SceneClips,
        factor: float,
        drawn: RenderSettings,
    ) -> tuple[tuple[Instant, ...], list[Refinement]]:
        """The instants after the steps that are asked for."""
        known, codec = clips.known, clips.codec
        if not self.refine_steps:
            return instants, []
        is_warp = known is not None and teacher_name(self.settings) == "warp"
        views = refinement_views(known, with_frames(given, codec, self.device), is_warp, factor)
        config = RefinementConfig(
            num_steps=self.refine_steps,
            seconds=self.settings.refine_seconds,
            seed=self.settings.seed,
            render=drawn,
        )
        with self.progress.stage("Gaussians refined") as on_step:
            instants, made = refined_instants(instants, views, config, on_step)
        for refinement in made:
            self.progress.say(f"      {refinement}")
        return instants, made

    def _write(
        self,
        folder: Path,
        instants: Sequence[Instant],
        given: DecoderInput,
        drawn: RenderSettings,
        is_new: bool,
    ) -> None:
        """All files but the record."""
        with self.progress.stage("pictures rendered") as on_step:
            write_video(folder / "video.mp4", instants, given, drawn, on_step)
            title = clip_title(self.settings, not is_new)
            write_sheet(folder / "contact_sheet.png", instants, given, drawn, title)
        with self.progress.stage("files written"):
            write_gaussians(folder, instants, given, drawn)
            if is_new:
                write_latents(folder / "latents", given, self.settings.seed)

    def _quality(
        self,
        instant: Instant,
        given: DecoderInput,
        clips: SceneClips,
        factor: float,
        drawn: RenderSettings,
    ) -> dict[str, Any] | None:
        """How good the scene is, which is said; None for latents, whose picture is not at hand."""
        if clips.known is None or clips.plan is None:
            return None
        first = first_camera(given, factor)
        quality = scene_quality(instant, clips.known, clips.plan, first, factor, drawn)
        for line in quality.in_words():
            self.progress.say(line)
        return quality.as_record()

    def _say_end(self, plan: ScenePlan | None) -> None:
        output = self.settings.output
        if plan is not None and teacher_name(self.settings) == "warp":
            self.progress.say(f"The clips were {NOTHING_GENERATED}.")
        self.progress.say(
            f"{output}: scene.ply, scene.html (open it in a browser), video.mp4, contact_sheet.png, "
            f"record.json; {self.progress.seconds:.0f} s in all"
        )
