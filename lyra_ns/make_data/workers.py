"""Workers that do one job at a time: this process, processes with a GPU each, or actors of Ray.

A worker is started with a stage, which loads its models, and tells every outcome of a job in one sentence.
One that dies (a crash, the system short of memory) is blamed for the job that it held, and replaced. Ray
starts its actors, gives each its GPU, moves jobs and results, and says when one is gone; `run_jobs` does the
rest, as for workers of this host. On a cluster the folders of input and output must be the same on every
machine.
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol, runtime_checkable

import torch

from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.device import one_thread
from lyra_ns.errors import error_text
from lyra_ns.make_data.plan import Job, JobResult
from lyra_ns.memory import DoesNotFit

logger = logging.getLogger(__name__)

FATAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the file system that no other job would escape."""

DoJob = Callable[[Job], VideoLatentSpec | None]
"""Does a job and returns the codec of its latents, if it makes any."""


@runtime_checkable
class Stage(Protocol):
    """Something that workers can be started with; travels to other processes."""

    def start(self, device: torch.device) -> DoJob:
        """Loads the models on `device`."""
        ...


class StageWorker:
    """One worker: starts its stage with the first job, then does one job after the other."""

    def __init__(self, stage: Stage, device: str) -> None:
        self.stage = stage
        self.device = device
        self._do: DoJob | None = None

    def work(self, job: Job) -> JobResult:
        """What became of a job. Nothing is raised: what goes wrong is told in one sentence."""
        with one_thread():
            try:
                if self._do is None:
                    self._do = self.stage.start(torch.device(self.device))
            except Exception as error:
                logger.debug("start of a worker", exc_info=True)
                return JobResult(job, _sentence(error), is_fatal=True)
            try:
                return JobResult(job, codec=self._do(job))
            except Exception as error:
                logger.debug("scene %s", job.scene.name, exc_info=True)
                if _is_gpu_lost(error):
                    lost = f"scene {job.scene.name} left its GPU unusable: {_sentence(error)}"
                    return JobResult(job, lost, is_worker_lost=True)
                return JobResult(job, _sentence(error), is_fatal=_is_fatal(error))


def _is_fatal(error: Exception) -> bool:
    """Whether all other jobs would fail in the same way."""
    if isinstance(error, DoesNotFit):
        return True
    return isinstance(error, OSError) and error.errno in FATAL_ERRORS


def _is_gpu_lost(error: Exception) -> bool:
    """Whether CUDA fails in this process from now on, as after an illegal access; not out of memory."""
    if not isinstance(error, RuntimeError) or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _sentence(error: Exception) -> str:
    """What went wrong in one line, with the kind of error where the text may not speak for itself."""
    if isinstance(error, OSError) and error.errno is not None:
        return error_text(error)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | FileNotFoundError | ModuleNotFoundError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


MOST_DEATHS = 3
"""So many workers may die one after the other before a run gives up."""
DEATH = "the worker process died in the middle of this scene: most often the machine ran out of memory"


@runtime_checkable
class Worker(Protocol):
    """A place where one job at a time is done."""

    def submit(self, job: Job) -> Future[JobResult]:
        """Starts a job."""
        ...

    def restart(self) -> None:
        """Replaces a worker that died."""
        ...

    def close(self) -> None:
        """Ends the worker, whatever it does."""
        ...

    def is_death(self, error: BaseException) -> bool:
        """Whether an error means that the worker is gone."""
        ...


def run_jobs(workers: Sequence[Worker], jobs: Iterable[Job]) -> Iterator[JobResult]:
    """Results as they come, every worker holding one job at a time; the workers are closed at the end.

    A worker that is lost gets no further job: if all are, jobs are left. ValueError if workers die one after
    the other.
    """
    queue, deaths = iter(jobs), 0
    busy: dict[Future[JobResult], tuple[Worker, Job]] = {}
    try:
        for worker in workers:
            _submit_next(worker, queue, busy)
        while busy:
            done, _ = wait(busy, return_when=FIRST_COMPLETED)
            for future in done:
                worker, job = busy.pop(future)
                error = future.exception()
                if error is not None and not worker.is_death(error):
                    raise error
                deaths = 0 if error is None else deaths + 1
                result = future.result() if error is None else JobResult(job, DEATH)
                yield result
                if deaths >= MOST_DEATHS:
                    raise ValueError(
                        f"{deaths} workers died one after the other: start again with fewer workers, or look "
                        "for what kills them in the system's log"
                    )
                if error is not None:
                    worker.restart()
                if not result.is_worker_lost:
                    _submit_next(worker, queue, busy)
    finally:
        for worker in workers:
            worker.close()


def _submit_next(
    worker: Worker, queue: Iterator[Job], busy: dict[Future[JobResult], tuple[Worker, Job]]
) -> None:
    job = next(queue, None)
    if job is not None:
        busy[worker.submit(job)] = worker, job


class LocalWorker:
    """This process."""

    def __init__(self, stage: Stage, device: str) -> None:
        self._worker = StageWorker(stage, device)

    def submit(self, job: Job) -> Future[JobResult]:
        """Does the job at once."""
        future: Future[JobResult] = Future()
        future.set_result(self._worker.work(job))
        return future

    def restart(self) -> None:
        """Cannot happen."""
        raise AssertionError("this process is alive")

    def close(self) -> None:
        """Frees the models."""
        del self._worker

    def is_death(self, error: BaseException) -> bool:
        """Never."""
        return False


class ThreadWorker(LocalWorker):
    """This process, which meanwhile hands out jobs to others.

    A job that is not done when the program ends does not hold it up.
    """

    def submit(self, job: Job) -> Future[JobResult]:
        """Starts the job in a thread."""
        future: Future[JobResult] = Future()
        threading.Thread(target=_fulfil, args=(future, self._worker, job), daemon=True).start()
        return future


def _fulfil(future: Future[JobResult], worker: StageWorker, job: Job) -> None:
    try:
        future.set_result(worker.work(job))
    except BaseException as error:  # Else nobody would ever learn of it.
        future.set_exception(error)


@dataclass
class ProcessWorker:
    """A fresh process (a forked one could not use CUDA)."""

    stage: Stage
    """What it does."""
    device: str
    """cpu or cuda."""
    gpu: str | None = None
    """The only GPU that it sees, as CUDA_VISIBLE_DEVICES names it; None leaves that as it is."""
    _pool: ProcessPoolExecutor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _start_process, (self.stage, self.device, self.gpu))

    def submit(self, job: Job) -> Future[JobResult]:
        """Hands the job over."""
        return self._pool.submit(_work_in_process, job)

    def restart(self) -> None:
        """A new process in place of the dead one."""
        self._pool.shutdown(wait=False)
        self._start()

    def close(self) -> None:
        """Ends the process; what it has not finished is made again by the next run."""
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    def is_death(self, error: BaseException) -> bool:
        """Whether the process is gone."""
        return isinstance(error, BrokenProcessPool)


_process_worker: StageWorker | None = None
"""What a worker process was started with."""


def _start_process(stage: Stage, device: str, gpu: str | None) -> None:
    """Prepares a fresh process, which sees one GPU and ends with the process that started it."""
    global _process_worker
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _process_worker = StageWorker(stage, device)


def _end_with_parent() -> None:
    """Without this a worker would keep its GPU for ever after the main process was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only spawned processes run this"
    wait_for([parent.sentinel])
    os._exit(1)


def _work_in_process(job: Job) -> JobResult:
    assert _process_worker is not None
    return _process_worker.work(job)


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, for CUDA_VISIBLE_DEVICES of its children."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def local_workers(stage: Stage, num_workers: int, device: str, num_jobs: int) -> list[Worker]:
    """Workers of this host, no more than there are jobs; a single one is this process itself.

    0 workers: with CUDA one per GPU, on the CPU and on a GPU with a number (cuda:1) one. More workers than
    GPUs share them evenly.
    """
    gpus = visible_gpus() if device == "cuda" else []
    count = min(num_workers or max(len(gpus), 1), num_jobs)
    if count <= 1:
        return [LocalWorker(stage, device)]
    return [ProcessWorker(stage, device, gpus[index % len(gpus)] if gpus else None) for index in range(count)]


LOCAL = "local"
"""Address that starts Ray on this host instead of joining a cluster."""
START_SECONDS = "180"
"""How long Ray may take to start on this host."""


class RayWorker:
    """A Ray actor."""

    def __init__(self, stage: Stage, device: str) -> None:
        self.stage = stage
        self.device = device
        self._actor = self._start()

    def _start(self) -> Any:
        import ray

        needs = {"num_cpus": 1, "num_gpus": 1 if self.device.startswith("cuda") else 0}
        return ray.remote(StageWorker).options(**needs).remote(self.stage, self.device)

    def submit(self, job: Job) -> Future[JobResult]:
        """Hands the job over."""
        return self._actor.work.remote(job).future()

    def restart(self) -> None:
        """A new actor in place of the dead one."""
        self._actor = self._start()

    def close(self) -> None:
        """Ends the actor; what it has not finished is made again by the next run."""
        import ray

        ray.kill(self._actor)

    def is_death(self, error: BaseException) -> bool:
        """Whether actor or node are gone."""
        from ray.exceptions import RayActorError

        return isinstance(error, RayActorError)


@contextmanager
def ray_cluster(address: str, num_workers: int) -> Iterator[None]:
    """A connection to the cluster at `address`, or Ray on this host with one CPU per worker for `local`.

    ValueError if Ray is not installed or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--ray needs Ray, which is not installed: pip install 'lyra-ns[ray]'")
    is_local = address == LOCAL
    if is_local:
        # Ray reads it when it is imported; its own 30 s are too short for a busy machine.
        os.environ.setdefault("RAY_raylet_start_wait_time_s", START_SECONDS)
    import ray

    options: dict[str, Any] = {"num_cpus": num_workers or None} if is_local else {"address": address}
    try:
        ray.init(include_dashboard=False if is_local else None, log_to_driver=False, **options)
    except Exception as error:  # Ray raises that very class where a node does not come up in time.
        start = "free the machine and try again" if is_local else "start one with `ray start --head`"
        raise ValueError(
            f"expected Ray to answer at {address}, found that it does not ({error}): {start}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def ray_workers(stage: Stage, num_workers: int, device: str, num_jobs: int) -> list[RayWorker]:
    """Actors on the cluster that this process is connected to, no more than there are jobs.

    Device auto is cuda if any machine of the cluster has a GPU. 0 workers: one per GPU, else one per CPU.
    """
    import ray

    has = ray.cluster_resources()
    if device.startswith("cuda:"):
        raise ValueError(
            f"expected auto, cpu or cuda as --device with --ray, found {device}: every actor sees one GPU "
            "only, and Ray chooses which"
        )
    if device == "auto":
        device = "cuda" if has.get("GPU", 0) >= 1 else "cpu"
    kind = "GPU" if device == "cuda" else "CPU"
    count = num_workers or int(has.get(kind, 0))
    if count < 1:
        raise ValueError(f"expected a cluster with {kind}s, found none: give another --device or cluster")
    return [RayWorker(stage, device) for _ in range(min(count, num_jobs))]
