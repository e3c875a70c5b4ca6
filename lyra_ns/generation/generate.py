"""One call from an image, a video, a prompt or latents to a scene of Gaussians with everything around it.

>>> from lyra_ns.generation.generate import generate
>>> from lyra_ns.generation.settings import GenerateSettings
>>> scene = generate(GenerateSettings(input=Path("photo.png"), output=Path("scene")))
>>> scene.instants[0].gaussians

The same as `ns-lyra generate photo.png -o scene`; settings have the names of its options.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from lyra_ns.any_decoder import load_any_decoder
from lyra_ns.codec import codec_for
from lyra_ns.device import chosen_device
from lyra_ns.generation.clip_making import (
    chosen_teacher,
    clip_requests,
    clip_sizes,
    decoder_size,
    load_chosen_teacher,
    look_at_of,
    make_clips,
    paths_follow_near,
    teacher_name,
)
from lyra_ns.generation.clip_sharing import check_num_gpus, make_shared_clips
from lyra_ns.generation.decoder_input import (
    check_enough_frames,
    clips_as_input,
    encoded_again,
)
from lyra_ns.generation.finishing import GeneratedScene, SceneClips, SceneFinisher
from lyra_ns.generation.inputs import InputKind, SourceFrames, kind_of
from lyra_ns.generation.kept_clips import KeptClips, kept_clips
from lyra_ns.generation.known_views import known_views
from lyra_ns.generation.memory_preview import memory_lines
from lyra_ns.generation.output_folder import PREVIEW, check_output, mend_output, whole_folder
from lyra_ns.generation.preview import write_preview
from lyra_ns.generation.progress import StageProgress
from lyra_ns.generation.reading import read_source, stored_input
from lyra_ns.generation.record import record_of
from lyra_ns.generation.refining import num_refine_steps
from lyra_ns.generation.scene_depth import depth_of_frames
from lyra_ns.generation.scene_plan import ScenePlan, plan_scene
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.generation.teachers.interface import CameraVideoTeacher, TeacherClip, TeacherRequest
from lyra_ns.rendering import RenderSettings, choose_renderer

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
