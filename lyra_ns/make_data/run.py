"""A run of the data maker: plans, hands out what is missing, keeps manifest and failures up to date.

Pictures are made from prompts before any clip is, by other workers: two large models never share a GPU.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic

import torch
from PIL import Image

from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.data.atomic import write_whole
from lyra_ns.data.images import FINER, finer_size
from lyra_ns.data.store import Manifest, current_versions, write_manifest
from lyra_ns.data.video import VideoSize
from lyra_ns.make_data.clip_maker import codec_of_record, picture_path, record_path
from lyra_ns.make_data.failures import (
    Failure,
    MakeDataReport,
    add_failure,
    read_failures,
    remove_failures,
    write_summary,
)
from lyra_ns.make_data.leftovers import no_trace_if_refused, others_at_work, registered_run, sweep_up
from lyra_ns.make_data.plan import (
    Job,
    JobResult,
    Plan,
    PlannedScene,
    Shard,
    chosen_scenes,
    extended_plan,
    finished_clips,
    missing_jobs,
)
from lyra_ns.make_data.settings import MakeDataSettings
from lyra_ns.make_data.sources import find_scenes
from lyra_ns.make_data.workers import DoJob, Stage, Worker, local_workers, ray_cluster, ray_workers, run_jobs
from lyra_ns.progress import run_progress


@dataclass(frozen=True)
class PictureStage:
    """Pictures from prompts."""

    settings: MakeDataSettings
    """How the data set is made."""
    root: Path
    """Folder of the data set."""

    def start(self, device: torch.device) -> DoJob:
        """Loads the text-to-image model."""
        from lyra_ns.text.to_image import load_text_to_image

        settings = self.settings
        model = load_text_to_image(settings.text_to_image, device, memory=settings.teacher.memory)
        # It paints at its own size; of that as much is kept as of a large picture from a file.
        size = VideoSize(settings.num_frames, settings.height, settings.width)
        height, width = finer_size((FINER * size.height, FINER * size.width), size)

        def make(job: Job) -> None:
            label = f"picture/{settings.seed}/{job.scene.digest}"
            seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "little")
            picture = model(job.scene.source, height, width, seed & 0x7FFFFFFF)
            buffer = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
            write_whole(picture_path(self.root, job.scene), buffer.getvalue())

        return make


@dataclass(frozen=True)
class ClipStage:
    """Clips of scenes."""

    settings: MakeDataSettings
    """How the data set is made."""
    source: Path
    """Input of the run."""
    root: Path
    """Folder of the data set."""
    folder: Path
    """Folder in it that holds the numbered ones."""
    codec: VideoLatentSpec | None = None
    """Codec of the clips that are there already; others are refused."""

    def start(self, device: torch.device) -> DoJob:
        """Loads the source of depth and the teacher."""
        from lyra_ns.depth.base import PlaneDepth
        from lyra_ns.depth.registry import load_depth
        from lyra_ns.make_data.clip_maker import ClipMaker
        from lyra_ns.teachers.registry import load_teacher

        settings = self.settings
        estimator = load_depth(settings.depth, device).estimator
        if isinstance(estimator, PlaneDepth):
            estimator = replace(estimator, fov_x=settings.fov_x)
        teacher = load_teacher(settings.teacher, device, estimator)
        spec = teacher.codec.spec
        spec.latent_shape(settings.num_frames, settings.height, settings.width)
        if self.codec is not None and (self.codec.codec, self.codec.digest) != (spec.codec, spec.digest):
            raise ValueError(
                f"{self.root} holds latents of the codec {self.codec.codec} (digest {self.codec.digest}), "
                f"found the codec {spec.codec} (digest {spec.digest}): use the version that made them, or "
                "take another output folder"
            )
        return ClipMaker(settings, self.source, self.root, self.folder, teacher, estimator, device)


logger = logging.getLogger(__name__)

MANIFEST_SECONDS = 10.0
"""Least time between two manifests while clips are coming in."""


@dataclass(frozen=True)
class RunOptions:
    """Who makes the clips; nothing here changes them."""

    num_workers: int = 0
    """Workers; 0 takes one per GPU, and on the CPU this process alone."""
    device: str = "auto"
    """auto, cpu or cuda."""
    ray: str | None = None
    """Address of a Ray cluster, auto for the one of this machine, local to start one here; None: no Ray."""
    clips_per_job: int = 0
    """Clips that one worker makes of a scene at a time; 0 takes all."""
    shard: Shard = field(default_factory=Shard)
    """Which part of the scenes this run makes."""
    retry_failed: bool = False
    """Whether what failed in earlier runs is tried again."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "clips_per_job"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected {name} of 0 or more, found {getattr(self, name)}")


def make_data(
    source: Path, output: Path, settings: MakeDataSettings, options: RunOptions | None = None
) -> MakeDataReport:
    """Makes what is missing of the data set of `source` in `output`, and says what it did.

    Equal settings and sources give equal files, whoever makes them and however often runs are interrupted.
    What fails is listed and left out. ValueError or FileNotFoundError for input, output, settings or models
    that cannot be used, and when the disk is full; what was made until then stays.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    options = options or RunOptions()
    _check_places(source, output)
    found = find_scenes(source, as_clips=settings.teacher.teacher == "replay", is_dynamic=settings.dynamic)
    settings = resolved_settings(settings, source)
    with no_trace_if_refused(output), ExitStack() as after_leaving, registered_run(output):
        plan = extended_plan(output, settings, found)
        sweep_up(output)
        run = _Run(source, output, plan, options)
        after_leaving.callback(run.close_books_for_all)
        scenes = [scene for scene in chosen_scenes(plan, found.scenes) if options.shard.holds(scene)]
        return run.make(scenes)


def resolved_settings(settings: MakeDataSettings, source: Path) -> MakeDataSettings:
    """The settings with every `auto` decided, so that all machines do the same.

    Depth `auto` is decided by what this machine has; clips of `replay` are those of the source.
    """
    from lyra_ns.depth.registry import why_no_moge

    teacher, depth = settings.teacher, settings.depth
    if teacher.teacher == "replay":
        teacher = replace(teacher, clips=source)
    if depth == "auto":
        depth = "moge" if why_no_moge() is None else "small"
    return replace(settings, teacher=teacher, depth=depth)


class _Run:
    """One run's books."""

    def __init__(self, source: Path, root: Path, plan: Plan, options: RunOptions) -> None:
        self.source, self.root, self.plan, self.options = source, root, plan, options
        self.folder = root / plan.family
        self.finished = finished_clips(self.folder)
        self.codec = self._codec_on_disk()
        self.earlier = read_failures(root)
        self.failed: set[str] = set()
        self.num_made = 0
        self._saved = monotonic()

    def make(self, scenes: Sequence[PlannedScene]) -> MakeDataReport:
        """Both stages, then the books once more."""
        num_kept = sum(len(self.finished.get(scene.name, ())) for scene in scenes)
        try:
            with self._connected():
                self._make_pictures(scenes)
                self._make_clips(scenes)
        except BaseException:
            with suppress(OSError):  # What ended the run, a full disk for one, is the message to see.
                self._close_books()
            raise
        failures = self._close_books()
        complete = sum(self._is_complete(scene) for scene in self.plan.scenes.values())
        return MakeDataReport(self.root, self.num_made, num_kept, complete, len(self.plan.scenes), failures)

    def close_books_for_all(self) -> None:
        """Writes manifest and failures once more if no other run is at work.

        For the end of a run that is no longer registered: while several write theirs the last one to write
        need not be the one that has seen everything, but the last one to leave has.
        """
        if not others_at_work(self.root):
            with suppress(OSError):  # A run that starts just now writes them at its own end.
                self._close_books()

    def _close_books(self) -> dict[str, Failure]:
        """Manifest and failures by what lies on disk; returns the failures.

        Other runs may have made clips, too, and so may a job that failed half-way.
        """
        self.finished = finished_clips(self.folder)
        for name, failure in read_failures(self.root).items():
            made = self.finished.get(name, set()) & set(failure.trajectories)
            if made:
                remove_failures(self.root, name, made)
        self._save_manifest()
        return write_summary(self.root)

    def _make_pictures(self, scenes: Sequence[PlannedScene]) -> None:
        """Pictures of prompts that have none yet and still need one."""
        wanted = {job.scene.name: job.scene for job in missing_jobs(scenes, self._not_to_make())}
        jobs = [
            Job(scene, ())
            for scene in wanted.values()
            if scene.kind == "prompt" and not picture_path(self.root, scene).is_file()
        ]
        stage = PictureStage(self.plan.settings, self.root)
        self._work(stage, jobs, "pictures", lambda job: 1)

    def _make_clips(self, scenes: Sequence[PlannedScene]) -> None:
        scenes = [scene for scene in scenes if scene.name not in self.failed]
        jobs = list(missing_jobs(scenes, self._not_to_make(), self.options.clips_per_job))
        stage = ClipStage(self.plan.settings, self.source, self.root, self.folder, self.codec)
        self._work(stage, jobs, "clips", lambda job: len(job.trajectories))

    def _not_to_make(self) -> dict[str, set[int]]:
        """Clips, by scene, that are there, or that failed in earlier runs unless those are tried again."""
        clips = {name: set(numbers) for name, numbers in self.finished.items()}
        if not self.options.retry_failed:
            for name, failure in self.earlier.items():
                clips.setdefault(name, set()).update(failure.trajectories)
        return clips

    def _work(self, stage: Stage, jobs: Sequence[Job], what: str, size: Callable[[Job], int]) -> None:
        if not jobs:
            return
        workers = self._workers(stage, len(jobs))
        lost: list[str] = []
        with run_progress(what, sum(size(job) for job in jobs)) as progress:
            for result in run_jobs(workers, jobs):
                if result.is_worker_lost:
                    logger.warning("%s; %d other workers go on", result.failure, len(workers) - len(lost) - 1)
                    lost.append(str(result.failure))
                    continue
                self._take_note(result)
                progress.advance(size(result.job), failed=result.failure is not None)
        if lost:
            num_left = progress.total - progress.num_done
            raise ValueError(
                f"{'; '.join(lost)} ({len(lost)} of {len(workers)} workers lost, {num_left} {what} "
                "left: run the command again to go on)"
            )

    def _workers(self, stage: Stage, num_jobs: int) -> Sequence[Worker]:
        from lyra_ns.device import chosen_device

        options = self.options
        if options.ray is not None:
            return ray_workers(stage, options.num_workers, options.device, num_jobs)
        device = str(chosen_device(options.device))
        return local_workers(stage, options.num_workers, device, num_jobs)

    def _connected(self) -> AbstractContextManager[None]:
        if self.options.ray is None:
            return nullcontext()
        return ray_cluster(self.options.ray, self.options.num_workers)

    def _take_note(self, result: JobResult) -> None:
        """Books one result; ValueError if it ends the run."""
        scene = result.job.scene
        if result.is_fatal:
            kept = " (what was made stays: run the command again to go on)" if self.num_made else ""
            raise ValueError(f"{result.failure}{kept}")
        if result.failure is not None:
            self._take_note_of_failure(result.job, result.failure)
            return
        if not result.job.trajectories:
            return
        self.codec = result.codec
        self.num_made += len(result.job.trajectories)
        self.finished.setdefault(scene.name, set()).update(result.job.trajectories)
        remove_failures(self.root, scene.name, result.job.trajectories)
        if monotonic() - self._saved > MANIFEST_SECONDS:
            self._save_manifest()

    def _take_note_of_failure(self, job: Job, reason: str) -> None:
        scene, before = job.scene, self.earlier.get(job.scene.name)
        numbers = job.trajectories or scene.trajectories
        attempts = before.attempts if before else 1
        if before and set(numbers) & set(before.trajectories):
            attempts = before.attempts + 1
        # Teachers may know the scene by its digest only.
        message = reason.replace(scene.digest, scene.name)
        if scene.name not in self.failed:
            logger.warning("scene %s: %s", scene.name, message)
        self.failed.add(scene.name)
        add_failure(self.root, Failure(scene.name, numbers, message, attempts))

    def _is_complete(self, scene: PlannedScene) -> bool:
        return set(scene.trajectories) <= self.finished.get(scene.name, set())

    def _codec_on_disk(self) -> VideoLatentSpec | None:
        """Codec of the latents that are there."""
        for name, numbers in self.finished.items():
            spec = codec_of_record(record_path(self.folder, name, min(numbers)))
            if spec is not None:
                return spec
        return None

    def _save_manifest(self) -> None:
        """Writes manifest.json with the scenes that are complete."""
        self._saved = monotonic()
        complete = {
            name: list(scene.trajectories)
            for name, scene in self.plan.scenes.items()
            if self._is_complete(scene)
        }
        if self.codec is None or not complete:
            return
        settings = self.plan.settings
        manifest = Manifest(
            codec=self.codec.codec,
            num_frames=settings.num_frames,
            height=settings.height,
            width=settings.width,
            scenes=complete,
            splits={
                split: [name for name in names if name in complete]
                for split, names in self.plan.splits.items()
            },
            is_dynamic=self.plan.is_dynamic,
            seed=settings.seed,
            versions={**current_versions(), "teacher": settings.teacher.teacher},
            codec_digest=self.codec.digest,
            flipped_pose_order="as_is",
        )
        write_manifest(self.root, manifest)


def _check_places(source: Path, output: Path) -> None:
    """ValueError where input and output would get in each other's way, or nothing can be written."""
    here, there = source.resolve(), output.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(
            f"output {output} must lie outside the input {source}, and the input outside it: what is written "
            "would be read again as input; take another output folder"
        )
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} must be a folder, found a file: take another name")
    place = next(folder for folder in (there, *there.parents) if folder.exists())
    if not os.access(place, os.W_OK):
        raise ValueError(f"output {output} must be in a folder that can be written to, found {place}")
