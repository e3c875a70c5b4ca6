"""The clips of one scene made by several processes, each with a GPU and a teacher of its own.

This process is one of them. Each keeps the clips that it makes, and all are read from there in the end. The
workers are those of `ns-lyra make-data`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lyra_ns.codec.interface import VideoLatentSpec
from lyra_ns.generation.clip_making import OnStep, grouped, no_memory
from lyra_ns.generation.kept_clips import KeptClips
from lyra_ns.generation.make_data.jobs import Job
from lyra_ns.generation.make_data.plan import PlannedScene
from lyra_ns.generation.make_data.stages import DoJob
from lyra_ns.generation.make_data.workers import ProcessWorker, ThreadWorker, Worker, run_jobs, visible_gpus
from lyra_ns.generation.teachers.interface import CameraVideoTeacher, TeacherClip, TeacherRequest
from lyra_ns.generation.teachers.registry import TeacherChoice, load_teacher
from lyra_ns.generation.teachers.requests import cache_on


def check_num_gpus(num_gpus: int, device: torch.device) -> None:
    """ValueError if there are not so many GPUs; on the CPU every number of processes is possible."""
    if num_gpus == 1 or device.type != "cuda":
        return
    if str(device) != "cuda":
        raise ValueError(
            f"--num-gpus {num_gpus} chooses the GPUs itself, found --device {device}: leave --device out"
        )
    found = len(visible_gpus())
    if found < num_gpus:
        raise ValueError(
            f"--num-gpus {num_gpus} needs as many GPUs that this process may use, found {found}: give a "
            "smaller number"
        )


def make_shared_clips(
    teacher: CameraVideoTeacher,
    choice: TeacherChoice,
    requests: Sequence[TeacherRequest],
    kept: KeptClips,
    num_gpus: int,
    device: torch.device,
    on_step: OnStep | None = None,
) -> list[TeacherClip]:
    """The clips that were asked for, made by `num_gpus` processes; those that `kept` has are not made again.

    `choice` is how the other processes load what this one has in `teacher`. A clip is the same whoever makes
    it. ValueError with the reason if one cannot be made: no further one is begun then, and those that others
    are making are finished and kept.
    """
    there = kept.there(requests)
    missing = [request for request in requests if request.trajectory not in there]
    groups = grouped(missing, choice.samples_at_once)
    workers = _workers(teacher, choice, requests, kept, min(num_gpus, len(groups)), device)
    failures: list[str] = []
    for number, result in enumerate(run_jobs(workers, _jobs(groups, failures))):
        if result.failure is not None:
            failures.append(result.failure)
        if on_step is not None:
            on_step(number + 1, len(groups))
    if failures:
        raise no_memory(teacher.name) if "OutOfMemoryError" in failures[0] else ValueError(failures[0])
    return [kept.read(request.trajectory) for request in requests]


@dataclass(frozen=True)
class TeacherStage:
    """What another process is started with."""

    choice: TeacherChoice
    """How it loads its teacher."""
    requests: bytes
    """All requests, as torch.save writes them: shared memory is small in containers."""
    kept: KeptClips
    """Where it keeps its clips."""

    def start(self, device: torch.device) -> DoJob:
        """Loads the teacher."""
        requests = torch.load(io.BytesIO(self.requests), weights_only=False)
        return _makes(load_teacher(self.choice, device), requests, self.kept)


@dataclass(frozen=True)
class LoadedStage:
    """This process, which has its teacher already."""

    teacher: CameraVideoTeacher
    """The teacher."""
    requests: Sequence[TeacherRequest]
    """All requests."""
    kept: KeptClips
    """Where it keeps its clips."""

    def start(self, device: torch.device) -> DoJob:
        """Has nothing to load."""
        return _makes(self.teacher, self.requests, self.kept)


def _makes(teacher: CameraVideoTeacher, requests: Sequence[TeacherRequest], kept: KeptClips) -> DoJob:
    by_number = {request.trajectory: request for request in requests}

    def make(job: Job) -> VideoLatentSpec:
        asked = [by_number[trajectory] for trajectory in job.trajectories]
        for request, clip in zip(asked, teacher.generate(asked), strict=True):
            kept.write(request, clip)
        return teacher.codec.spec

    return make


def _workers(
    teacher: CameraVideoTeacher,
    choice: TeacherChoice,
    requests: Sequence[TeacherRequest],
    kept: KeptClips,
    count: int,
    device: torch.device,
) -> list[Worker]:
    """Processes for all GPUs but the first, and this process."""
    stored = io.BytesIO()
    if count > 1:
        torch.save([_on_cpu(request) for request in requests], stored)
    stage = TeacherStage(choice, stored.getvalue(), kept)
    gpus = visible_gpus() if device.type == "cuda" else []
    others = [ProcessWorker(stage, device.type, gpus[number] if gpus else None) for number in range(1, count)]
    return [*others, ThreadWorker(LoadedStage(teacher, requests, kept), str(device))]


def _on_cpu(request: TeacherRequest) -> TeacherRequest:
    return request if request.cache is None else replace(request, cache=cache_on(request.cache, "cpu"))


def _jobs(groups: Sequence[Sequence[TeacherRequest]], failures: Sequence[str]) -> Iterator[Job]:
    """A job for each group, until something fails."""
    for group in groups:
        if failures:
            return
        numbers = tuple(request.trajectory for request in group)
        name = group[0].scene
        yield Job(PlannedScene(name, "image", name, name, numbers, "train"), numbers)
