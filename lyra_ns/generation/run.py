"""One call from an image, a video, a prompt or latents to a scene of Gaussians with everything around it.

>>> from lyra_ns.generation.run import generate
>>> from lyra_ns.generation.settings import GenerateSettings
>>> scene = generate(GenerateSettings(input=Path("photo.png"), output=Path("scene")))
>>> scene.instants[0].gaussians

The same as `ns-lyra generate photo.png -o scene`; settings have the names of its options. Clips are made
first; then follow reconstruction, refinement, pictures, the judgement, and record.json: every setting, and
everything that was found or drawn on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lyra_ns.codec import codec_for
from lyra_ns.codec.base import VideoCodec
from lyra_ns.data.video import VideoSize
from lyra_ns.decoder.checkpoints import load_any_decoder
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.device import chosen_device
from lyra_ns.environment import environment
from lyra_ns.generation.clips import (
    KeptClips,
    check_num_gpus,
    chosen_teacher,
    clip_requests,
    clip_sizes,
    clip_title,
    decoder_size,
    kept_clips,
    load_chosen_teacher,
    look_at_of,
    make_clips,
    make_shared_clips,
    paths_follow_near,
    teacher_name,
)
from lyra_ns.generation.decoder_input import (
    DecoderInput,
    KnownViews,
    check_enough_frames,
    clips_as_input,
    encoded_again,
    is_small,
    known_views,
    with_frames,
)
from lyra_ns.generation.folder import PREVIEW, check_output, mend_output, whole_folder
from lyra_ns.generation.inputs import InputKind, SourceFrames, kind_of
from lyra_ns.generation.length_unit import SUBJECT_AT, LengthUnit, fitted_unit
from lyra_ns.generation.outputs import (
    Instant,
    write_gaussians,
    write_latents,
    write_record,
    write_sheet,
    write_video,
)
from lyra_ns.generation.plan import ScenePlan, depth_of_frames, plan_scene
from lyra_ns.generation.preview import memory_lines, write_preview
from lyra_ns.generation.quality import scene_quality
from lyra_ns.generation.reading import read_source, stored_input
from lyra_ns.generation.refining import (
    first_camera,
    num_refine_steps,
    refined_instants,
    refinement_record,
    refinement_views,
)
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.progress import OnStep, StageProgress
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.refinement.config import RefinementConfig
from lyra_ns.refinement.run import Refinement
from lyra_ns.rendering import RenderSettings, choose_renderer
from lyra_ns.teachers.base import CameraVideoTeacher, TeacherClip, TeacherRequest

FORMAT = "lyra_ns generated scene 1"
NOTHING_GENERATED = (
    "warped by depth: nothing was generated; what the input does not show is a smooth continuation"
)


def record_of(settings: GenerateSettings, size: VideoSize, plan: ScenePlan | None) -> dict[str, Any]:
    """What is known before anything is made; `plan` is None for latents that were there already."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "settings": {name: _plain(value) for name, value in asdict(settings).items()},
    }
    if plan is None:
        return record
    frames, found = plan.frames, plan.found
    height, width = frames.rgb.shape[-2:]
    return record | {
        "scene": plan.name,
        "input": {
            "kind": frames.kind,
            "height": frames.given_size[0],
            "width": frames.given_size[1],
            "num_frames": len(frames.rgb),
            "notes": list(frames.notes),
        },
        "clips": asdict(size),
        "lens": {
            "origin": found.intrinsics_origin,
            "intrinsics": [round(float(value), 4) for value in found.intrinsics],
            "height": height,
            "width": width,
        },
        "depth": {
            "source": found.reason,
            "estimator": found.first.estimator,
            "is_metric": found.first.is_metric,
            "share_known": round(float((found.depth > 0).float().mean()), 4),
        },
        "scale": asdict(plan.scale) | {"near_depth": plan.near_depth},
        "paths": [
            {
                "trajectory": path.trajectory,
                "name": path.name,
                "distance": path.distance,
                "drawn_distance": path.drawn_distance,
            }
            for path in plan.paths
        ],
        "seed": settings.seed,
        "teacher": {"name": teacher_name(settings)},
    }


def record_of_result(
    given: DecoderInput,
    unit: LengthUnit,
    notes: Sequence[dict[str, Any]],
    num_gaussians: Sequence[int],
    settings: GenerateSettings,
    device: torch.device,
) -> dict[str, Any]:
    """What was made, to be added to `record_of`; `notes` are the teacher's on each clip, in their order."""
    name = teacher_name(settings)
    statement = NOTHING_GENERATED if name == "warp" else f"clips by {name}"
    made = {"teacher": {"name": name, "statement": statement, "clips": list(notes)}} if notes else {}
    return {
        **made,
        "scene": given.scene,
        "codec": {"name": given.spec.codec, "digest": given.spec.digest},
        "decoder_input": {
            "trajectories": list(given.trajectories),
            "num_frames": given.cameras.shape[1],
            "height": given.cameras.height,
            "width": given.cameras.width,
            "is_dynamic": given.is_dynamic,
        },
        "unit": asdict(unit),
        "num_gaussians": list(num_gaussians),
        "environment": environment(device),
    }


def _plain(value: Any) -> Any:
    """A setting as JSON knows it."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


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


NUM_STAGES = {"make": 9, "preview": 4, "decode": 5, "write": 2}
"""Stages from pictures, of a dry run, from latents, and of the files of either; one more for refinement."""


def generate(
    settings: GenerateSettings, console: Console | None = None, writes_files: bool = True
) -> GeneratedScene:
    """The scene that the settings ask for; its files are in the output folder, whole or not at all.

    Without `writes_files` the scene is only returned, and nothing is drawn for files (not of a dry run).
    Clips are kept in OUTPUT/unfinished until all is done: after an error, or a kill, the same call goes on.
    ValueError, FileNotFoundError, FileExistsError, NotADirectoryError or ModuleNotFoundError, in one
    sentence, for input and settings of which no scene can be made; nothing else is written then.
    """
    settings.check()
    mend_output(settings.output)
    kind: InputKind = "prompt" if settings.input is None else kind_of(settings.input)
    goes_on = kind != "latents" and teacher_name(settings) != "replay"
    check_output(settings.output, settings.input, settings.overwrite, settings.dry_run, goes_on)
    if kind == "latents" and settings.dry_run:
        raise ValueError("latents need no preview, their clips are made: leave --dry-run out")
    if kind == "latents":
        return _Run(settings, "decode", console, writes_files).from_latents()
    if settings.dry_run:
        return _Run(settings, "preview", console).preview(kind)
    return _Run(settings, "make", console, writes_files).from_source(kind)


class _Run:
    """One run: what its stages share."""

    def __init__(
        self, settings: GenerateSettings, way: str, console: Console | None, writes_files: bool = True
    ) -> None:
        self.settings = settings
        self.device = chosen_device(settings.device)
        check_num_gpus(settings.num_gpus, self.device)
        refine_steps = 0 if way == "preview" else num_refine_steps(settings, way == "decode", self.device)
        num_stages = NUM_STAGES[way] + (refine_steps > 0) - (0 if writes_files else NUM_STAGES["write"])
        self.progress = StageProgress(num_stages, self.device, console)
        with self.progress.stage("decoder read"):
            self.decoder = load_any_decoder(settings.checkpoint, settings.config).eval()
        self.sizes = clip_sizes(settings, self.decoder)
        self.size = self.sizes.usual
        # Here, because clips take long and would be lost where the renderer that is asked for is not there.
        choose_renderer(RenderSettings(response=settings.response), self.device)
        self._finish = SceneFinisher(
            settings, self.decoder, self.size, self.device, self.progress, refine_steps, writes_files
        )

    def from_source(self, kind: InputKind) -> GeneratedScene:
        """The scene of an image, a video, ViPE's output or a prompt."""
        plan = self._plan(kind)
        with self.progress.stage("teacher read"):
            teacher, codec = load_chosen_teacher(self.settings, self.decoder, self.device)
        size_again = decoder_size(self.settings, self.decoder, self.size)
        is_foreign = codec.spec.digest != teacher.codec.spec.digest
        if is_foreign:
            check_enough_frames(self.size.num_frames, size_again)
        kept = kept_clips(self.settings, plan, teacher, self.device)
        requests = clip_requests(plan, self.settings, teacher.needs_cache)
        num_there = 0 if kept is None else len(kept.there(requests))
        if num_there:
            self.progress.say(f"      {num_there} of {len(requests)} clips were made by an earlier run")
        with self.progress.stage("known views drawn"):
            known = known_views(plan, teacher_name(self.settings) == "warp", self.device.type)
        # The cache of a video is large, and lies on the GPU, where the decoder needs the room.
        plan = plan.without_cache()
        with self._going_on(kept):
            clips = self._clips(teacher, requests, kept)
            del requests
            given = clips_as_input(plan.name, plan.paths, clips, teacher.codec, plan.frames.is_video)
            notes = [clip.notes for clip in clips]
            del teacher, clips
            if is_foreign:
                self.progress.say(
                    f"      encoded again for this decoder: {size_again.num_frames} frames of "
                    f"{size_again.width} x {size_again.height}, codec {codec.spec.codec}"
                )
                given = encoded_again(given, codec, size_again, self.device)
            return self._finish(SceneClips(given, codec, plan, known, notes))

    def _clips(
        self, teacher: CameraVideoTeacher, requests: Sequence[TeacherRequest], kept: KeptClips | None
    ) -> list[TeacherClip]:
        settings = self.settings
        with self.progress.stage(f"clips made by {teacher.name}") as on_step:
            if kept is None or settings.num_gpus == 1:
                return make_clips(teacher, requests, kept, settings.samples_at_once, on_step)
            choice = chosen_teacher(settings, self.decoder)
            return make_shared_clips(teacher, choice, requests, kept, settings.num_gpus, self.device, on_step)

    @contextmanager
    def _going_on(self, kept: KeptClips | None) -> Iterator[None]:
        """If what happens inside fails, says how to go on with the clips that are there."""
        try:
            yield
        except BaseException:
            if kept is not None and kept.num_files:
                self.progress.say(
                    f"{kept.folder} keeps the clips that are made ({kept.num_files}): the same command goes "
                    "on with them"
                )
            raise

    def preview(self, kind: InputKind) -> GeneratedScene:
        """The plan of a scene, in pictures."""
        plan = self._plan(kind)
        is_warp = teacher_name(self.settings) == "warp"
        with (
            whole_folder(self.settings.output / PREVIEW) as folder,
            self.progress.stage("preview warped and written") as on_step,
        ):
            coverages = write_preview(folder, plan, is_warp, on_step)
        for coverage in coverages:
            self.progress.say(f"      {coverage}")
        for line in memory_lines(self.settings, self.decoder, self.size, len(plan.paths), self.device):
            self.progress.say(f"      {line}")
        self.progress.say(f"{self.settings.output / PREVIEW}: nothing was generated, this is a dry run")
        record = record_of(self.settings, self.size, plan)
        return GeneratedScene(self.settings.output / PREVIEW, record)

    def from_latents(self) -> GeneratedScene:
        """The scene of latents that are there already."""
        with self.progress.stage("latents read"):
            given = stored_input(self.settings)
        codec = codec_for(given.spec, self.device, self.settings.codec)
        return self._finish(SceneClips(given, codec))

    def _plan(self, kind: InputKind) -> ScenePlan:
        progress, settings = self.progress, self.settings
        with progress.stage("input read"):
            frames = read_source(kind, settings, self.sizes, self.device)
        self.size = frames.clip_size
        for note in frames.notes:
            progress.say(f"      {note}")
        self._check_motion(frames)
        with progress.stage("depth found") as on_step:
            found = depth_of_frames(frames, settings.depth, self.device, on_step)
            plan = plan_scene(
                frames,
                found,
                settings,
                self.size,
                look_at_of(settings),
                self.device,
                follows_near=paths_follow_near(settings, self.decoder),
            )
        scale = plan.scale
        progress.say(f"      depth: {found.reason}")
        progress.say(f"      lens: {found.intrinsics_origin}")
        progress.say(
            f"      units: depth times {scale.depth_factor:.4g}, paths turn about {scale.centre_depth:.3g}; "
            f"a unit of path files is {scale.path_factor:.4g} ({scale.pose_scale_origin})"
        )
        for path in plan.paths:
            if path.shortening:
                progress.say(f"      {path.shortening}")
        return plan

    def _check_motion(self, frames: SourceFrames) -> None:
        if frames.is_video and not self.decoder.config.use_time:
            raise ValueError(
                f"input {self.settings.input} is a video, and the decoder {self.settings.checkpoint} is "
                "static: it knows no motion; give a dynamic decoder (--checkpoint, --config lyra-dynamic), "
                "or take one frame with --first-frame-only"
            )
