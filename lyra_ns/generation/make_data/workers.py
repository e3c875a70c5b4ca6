"""Workers of one host: this process, or processes, each with a GPU of its own where there are any.

A worker that dies (a crash, the system short of memory) is blamed for the job that it held, and replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for
from typing import Protocol, runtime_checkable

import torch

from lyra_ns.generation.make_data.jobs import Job, JobResult
from lyra_ns.generation.make_data.stages import Stage, StageWorker

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
