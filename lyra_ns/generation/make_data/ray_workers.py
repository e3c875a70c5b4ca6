"""Workers on a cluster, or on this host, through Ray: actors that hold the models, one job at a time each.

Ray starts them, gives each its GPU, moves jobs and results, and says when one is gone; `run_jobs` does the
rest, as for workers of one host. The folders of input and output must be the same on every machine.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from lyra_ns.generation.make_data.jobs import Job, JobResult
from lyra_ns.generation.make_data.stages import Stage, StageWorker

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
