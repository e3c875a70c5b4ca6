"""Makes the clips of one scene: inputs, cache, paths, teacher, depth of frames, files.

What a clip becomes depends on the scene's content, its number and the settings, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lyra_ns.codec.interface import VideoLatentSpec
from lyra_ns.data.writer import write_clip
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.depth.estimator import DepthEstimator
from lyra_ns.generation.depth.scene_scale import SceneScale
from lyra_ns.generation.make_data.clip_records import ClipRecord, record_path, write_record
from lyra_ns.generation.make_data.frame_depth import estimated_depth
from lyra_ns.generation.make_data.given_clips import read_given_clip
from lyra_ns.generation.make_data.jobs import Job
from lyra_ns.generation.make_data.plan import PlannedScene
from lyra_ns.generation.make_data.scene_inputs import InputReader, SceneInputs
from lyra_ns.generation.make_data.scene_paths import ClipPath, in_forward_time, noise_seed, scene_path
from lyra_ns.generation.make_data.settings import MakeDataSettings
from lyra_ns.generation.make_data.sources import clips_digest, file_scene_digest
from lyra_ns.generation.teachers.clips_on_disk import ClipOnDisk, clips_on_disk
from lyra_ns.generation.teachers.interface import CameraVideoTeacher, TeacherClip, TeacherRequest


class _ClipInputs(NamedTuple):
    """What one clip is made from."""

    path: ClipPath
    image: Tensor
    cache: SceneCache | None
    scale: SceneScale | None
    notes: tuple[str, ...]


@dataclass
class ClipMaker:
    """A worker's models, and how it makes clips with them."""

    settings: MakeDataSettings
    """How the data set is made."""
    source: Path
    """Input of the run."""
    root: Path
    """Folder of the data set."""
    folder: Path
    """Folder in it that holds the numbered ones."""
    teacher: CameraVideoTeacher
    """Source of clips."""
    estimator: DepthEstimator
    """Source of depth."""
    device: torch.device
    """Where caches lie and depth is estimated."""

    def __post_init__(self) -> None:
        self._reader = InputReader(self.settings, self.source, self.root, self.estimator, self.device)
        self._latest: tuple[str, SceneInputs] | None = None

    def __call__(self, job: Job) -> VideoLatentSpec:
        """Writes the clips of a job and returns the codec of their latents; raises what went wrong.

        Clips that the teacher makes together are written before the next: at full size each takes a GB.
        """
        self._check_source(job.scene)
        inputs = self._inputs(job)
        while together := list(islice(inputs, self.settings.teacher.samples_at_once)):
            self._make(job.scene, together)
        return self.teacher.codec.spec

    def _make(self, scene: PlannedScene, inputs: list[_ClipInputs]) -> None:
        clips = self.teacher.generate([self._request(scene, each) for each in inputs])
        for each, clip in zip(inputs, clips, strict=True):
            self._write(scene, each, clip)

    @cached_property
    def _given_clips(self) -> dict[tuple[str, int], ClipOnDisk]:
        """The clips that are the source, by scene and trajectory."""
        return {(clip.scene, clip.trajectory): clip for clip in clips_on_disk(self.source)}

    def _check_source(self, scene: PlannedScene) -> None:
        """ValueError if the source is not what was planned: clips would not follow from their record."""
        if scene.kind == "clips":
            clips = [self._given_clips.get((scene.source, number)) for number in scene.trajectories]
            found = clips_digest(clip for clip in clips if clip is not None)
        else:
            found = file_scene_digest(scene.kind, scene.source, self.source)
        if found != scene.digest:
            raise ValueError(
                f"source {scene.source} must be what it was when it was planned ({scene.digest[:8]}), found "
                f"{found[:8]}: it changed meanwhile; run the command again to plan it anew"
            )

    def _inputs(self, job: Job) -> Iterator[_ClipInputs]:
        if job.scene.kind == "clips":
            for trajectory in job.trajectories:
                yield self._given(job.scene, trajectory)
            return
        inputs = self._scene_inputs(job.scene)
        caches: dict[bool, tuple[SceneInputs, SceneCache]] = {}
        height, width = self.settings.height, self.settings.width
        for trajectory in job.trajectories:
            path = scene_path(
                self.settings,
                job.scene.digest,
                trajectory,
                inputs.cameras.resized(height, width),
                inputs.scale.centre_depth,
            )
            if path.is_flipped not in caches:
                turned = inputs.in_reverse() if path.is_flipped else inputs
                caches[path.is_flipped] = turned, turned.cache(self.device)
            turned, cache = caches[path.is_flipped]
            yield _ClipInputs(path, turned.first_frame(height, width), cache, inputs.scale, inputs.notes)

    def _scene_inputs(self, scene: PlannedScene) -> SceneInputs:
        """Inputs of a scene, kept for its next job."""
        if self._latest is None or self._latest[0] != scene.digest:
            self._latest = None  # Frees the earlier scene before the next one is read.
            self._latest = scene.digest, self._reader.read(scene)
        return self._latest[1]

    def _given(self, scene: PlannedScene, trajectory: int) -> _ClipInputs:
        given = read_given_clip(self._given_clips[scene.source, trajectory], self.settings)
        needs_cache = self.teacher.needs_cache or self.settings.frame_depth == "estimated"
        units = given.with_cache(self.estimator, self.settings, self.device) if needs_cache else None
        cache, scale = units or (None, None)
        return _ClipInputs(ClipPath(trajectory, None, given.cameras), given.image, cache, scale, ())

    def _request(self, scene: PlannedScene, inputs: _ClipInputs) -> TeacherRequest:
        # Teachers draw noise by the name of the scene, which must not decide anything; clips are found by it.
        return TeacherRequest(
            scene=scene.source if scene.kind == "clips" else scene.digest,
            trajectory=inputs.path.trajectory,
            cameras=inputs.path.cameras,
            image=inputs.image,
            cache=inputs.cache,
            prompt=scene.prompt or self.settings.prompt,
            negative_prompt=self.settings.negative_prompt,
            seed=noise_seed(self.settings.seed, scene.digest, inputs.path.trajectory),
        )

    def _write(self, scene: PlannedScene, inputs: _ClipInputs, clip: TeacherClip) -> None:
        """Files of one clip; the pose comes last, and the record before it."""
        path = inputs.path
        depth, origin, scale = self._depth(scene, inputs, clip)
        record = ClipRecord(
            scene=scene,
            path=path,
            prompt=scene.prompt or self.settings.prompt,
            noise_seed=noise_seed(self.settings.seed, scene.digest, path.trajectory),
            scale=scale,
            source_notes=inputs.notes,
            teacher=self.teacher.name,
            teacher_notes=clip.notes,
            codec=self.teacher.codec.spec,
            depth=origin,
        )
        clip, cameras = TeacherClip(clip.z, clip.video, depth, clip.notes), path.cameras
        if path.is_flipped:
            clip, cameras = in_forward_time(clip, cameras)
        where = record_path(self.folder, scene.name, path.trajectory)
        write_record(where, record.as_json(self.settings))
        write_clip(
            self.folder,
            scene.name,
            path.trajectory,
            cameras,
            z=clip.z,
            rgb=clip.video,
            depth=clip.depth,
            latent_format=self.settings.latent_format,
        )

    def _depth(
        self, scene: PlannedScene, inputs: _ClipInputs, clip: TeacherClip
    ) -> tuple[Tensor | None, str | None, SceneScale | None]:
        """Depth of the frames as they were made, where it is from, and the units."""
        wanted = self.settings.frame_depth
        if wanted == "teacher" or (wanted == "auto" and clip.depth is not None):
            return clip.depth, None if clip.depth is None else self.teacher.name, inputs.scale
        cache, scale = inputs.cache, inputs.scale
        if cache is None:
            given = read_given_clip(self._given_clips[scene.source, inputs.path.trajectory], self.settings)
            cache, scale = given.with_cache(self.estimator, self.settings, self.device)
        depth = estimated_depth(clip.video, inputs.path.cameras, cache, self.estimator)
        return depth, f"{self.estimator.name}, fitted to the 3D cache", scale
