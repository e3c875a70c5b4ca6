"""Workers on a cluster, or on this host, through Ray: actors that hold the models, one job at a time each.

Ray starts them, gives each its GPU, moves jobs and results, and says when one is gone; `run_jobs` does the
rest, as for workers of one host. The folders of input and output must be the same on every machine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from lyra_ns.generation.make_data.jobs import Job, JobResult
from lyra_ns.generation.make_data.stages import Stage, StageWorker

LOCAL = "local"
"""Address that starts Ray on this host instead of joining a cluster."""


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
    import ray

    is_local = address == LOCAL
    options: dict[str, Any] = {"num_cpus": num_workers or None} if is_local else {"address": address}
    try:
        ray.init(include_dashboard=False if is_local else None, log_to_driver=False, **options)
    except (ConnectionError, ValueError) as error:
        raise ValueError(
            f"expected a Ray cluster at {address}, found none ({error}): start one with `ray start --head`, "
            "or give local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def ray_workers(stage: Stage, num_workers: int, device: str) -> list[RayWorker]:
    """Actors on the cluster that this process is connected to; 0: one per GPU, or on CPUs one per CPU."""
    import ray

    kind = "GPU" if device.startswith("cuda") else "CPU"
    count = num_workers or int(ray.cluster_resources().get(kind, 0))
    if count < 1:
        raise ValueError(f"expected a cluster with {kind}s, found none: give another --device or cluster")
    return [RayWorker(stage, device) for _ in range(count)]
