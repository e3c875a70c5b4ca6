"""Many workers, killed runs and dead workers: the same files in the end, nothing lost and nothing twice."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lyra_ns.make_data import leftovers
from lyra_ns.make_data.leftovers import registered_run, sweep_up
from lyra_ns.make_data.plan import Job, JobResult, PlannedScene, Shard
from lyra_ns.make_data.run import RunOptions, make_data
from lyra_ns.make_data.workers import (
    MOST_DEATHS,
    DoJob,
    LocalWorker,
    ProcessWorker,
    ThreadWorker,
    local_workers,
    ray_workers,
    run_jobs,
    visible_gpus,
)
from lyra_ns.progress import RunProgress, in_words, steps_shown
from tests.helpers.small_make_data import ON_CPU, SETTINGS, save_picture
from tests.helpers.small_workers import FragileStage

NUM_SCENES = 4


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(NUM_SCENES):
        save_picture(folder / f"scene{seed}.png", seed)
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def reference(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a data set made without interruption by this process."""
    root = tmp_path_factory.mktemp("reference") / "out"
    make_data(pictures, root, SETTINGS, ON_CPU)
    return files_below(root)


def files_below(root: Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def command(pictures: Path, root: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "lyra_ns.cli.main", "make-data", str(pictures), "-o", str(root)),
        *("--height", "32", "--width", "48", "--num-frames", "9", "--depth", "plane", "--device", "cpu"),
        *("--trajectories", "0", "4", *options),
    ]


@pytest.mark.slow
def test_killed_run_is_resumed_without_a_trace(
    pictures: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    """SIGKILL in the middle of two workers' jobs, then the same command with one: not a byte differs.

    The workers end with the process that started them, and what they left half-written is swept away.
    """
    root = tmp_path / "out"
    run = subprocess.Popen(
        command(pictures, root, "--num-workers", "2", "--clips-per-job", "1"), start_new_session=True
    )
    try:
        wait_until(lambda: any(root.glob("static/*/pose/*.npz")) or run.poll() is not None, 120)
        children = children_of(run.pid)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert children
    wait_until(lambda: not any(map(is_running, children)), 20)
    (root / "static" / "0" / "rgb" / ".scene0.mp4.123.partial").write_bytes(b"half")
    before = set(files_below(root))
    assert len([name for name in before if "/pose/" in name]) < 2 * NUM_SCENES
    report = make_data(pictures, root, SETTINGS, ON_CPU)
    assert report.num_made + report.num_kept == 2 * NUM_SCENES
    assert report.num_kept >= 1
    assert files_below(root) == reference


@pytest.mark.slow
def test_ray_makes_the_same_files(
    pictures: Path, reference: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actors of a Ray that is started for it."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    root = tmp_path / "out"
    report = make_data(pictures, root, SETTINGS, replace(ON_CPU, ray="local", num_workers=2, clips_per_job=1))
    assert report.num_made == 2 * NUM_SCENES
    assert files_below(root) == reference
    import ray

    assert not ray.is_initialized()


def test_absent_ray_and_cluster_are_told(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        make_data(pictures, tmp_path / "out", replace(SETTINGS, depth="small"), RunOptions(ray="auto"))


@pytest.mark.slow
def test_shards_make_the_whole_together(pictures: Path, reference: dict[str, bytes], tmp_path: Path) -> None:
    root = tmp_path / "out"
    made = [
        make_data(pictures, root, SETTINGS, replace(ON_CPU, shard=Shard(index, 2))).num_made
        for index in range(2)
    ]
    assert sum(made) == 2 * NUM_SCENES
    assert files_below(root) == reference


def jobs_called(*names: str) -> list[Job]:
    return [Job(PlannedScene(name, "image", name, name, (0,), "train"), (0,)) for name in names]


@pytest.mark.slow
def test_a_dead_worker_is_blamed_for_its_job_and_replaced() -> None:
    workers = [ProcessWorker(FragileStage(), "cpu")]
    results = list(run_jobs(workers, jobs_called("a", "deadly", "b")))
    assert [result.failure is None for result in results] == [True, False, True]
    assert "died in the middle" in str(results[1].failure)


class DyingWorker:
    """Loses every job."""

    num_restarts = 0

    def submit(self, job: Job) -> Future[JobResult]:
        future: Future[JobResult] = Future()
        future.set_exception(BrokenProcessPool("gone"))
        return future

    def restart(self) -> None:
        self.num_restarts += 1

    def close(self) -> None:
        pass

    def is_death(self, error: BaseException) -> bool:
        return isinstance(error, BrokenProcessPool)


def test_workers_that_die_one_after_the_other_end_the_run() -> None:
    worker = DyingWorker()
    results = run_jobs([worker], jobs_called("a", "b", "c", "d"))
    assert all(next(results).failure is not None for _ in range(MOST_DEATHS))
    with pytest.raises(ValueError, match="died one after the other"):
        next(results)
    assert worker.num_restarts == MOST_DEATHS - 1


class WaitingStage:
    """Its first job lasts until another worker has done all others."""

    def __init__(self) -> None:
        self.others_done = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self, device: torch.device) -> DoJob:
        def work(job: Job) -> None:
            self.threads.append(threading.current_thread())
            if not self.others_done.wait(20):
                raise ValueError("the other worker got nothing to do meanwhile")

        return work


def test_others_get_their_jobs_while_this_process_works() -> None:
    stage, done = WaitingStage(), []
    other = LocalWorker(FragileStage(), "cpu")
    for result in run_jobs([other, ThreadWorker(stage, "cpu")], jobs_called(*"abcd")):
        assert result.failure is None
        done.append(result.job.scene.name)
        if len(done) == 3:
            stage.others_done.set()
    assert sorted(done) == [*"abcd"]
    assert done[-1] == "b"
    assert stage.threads[0].daemon, "Ctrl-C would wait for the clip"


class DyingStage:
    """Something that is no Exception goes wrong."""

    def start(self, device: torch.device) -> DoJob:
        def work(job: Job) -> None:
            raise SystemExit("out")

        return work


def test_whatever_ends_a_thread_is_told() -> None:
    with pytest.raises(SystemExit, match="out"):
        list(run_jobs([ThreadWorker(DyingStage(), "cpu")], jobs_called("a")))


def test_every_gpu_gets_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process sees one GPU; further workers share them; there are no more workers than jobs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert visible_gpus() == ["3", "5"]

    def gpus(num_workers: int, num_jobs: int) -> list[str | None]:
        workers = local_workers(FragileStage(), num_workers, "cuda", num_jobs)
        return [worker.gpu if isinstance(worker, ProcessWorker) else None for worker in workers]

    assert gpus(0, 9) == ["3", "5"]
    assert gpus(3, 9) == ["3", "5", "3"]
    assert gpus(0, 1) == [None]
    # A process that sees one GPU has no cuda:1, and no other was asked for.
    (worker,) = local_workers(FragileStage(), 0, "cuda:1", 9)
    assert isinstance(worker, LocalWorker)


def test_leftovers_are_kept_while_another_run_works(tmp_path: Path) -> None:
    """They may be its own; marks of dead runs do not count."""
    half = tmp_path / "static" / ".a.mp4.1.partial"
    half.parent.mkdir()
    half.write_bytes(b"")
    sleeper = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    sleeper.start()
    marks = tmp_path / ".runs"
    marks.mkdir()
    host = os.uname().nodename
    (marks / f"{host}.{sleeper.pid}").touch()
    with registered_run(tmp_path):
        sweep_up(tmp_path)
        assert half.exists()
    sleeper.kill()
    sleeper.join()
    (marks / "elsewhere.7").touch()
    os.utime(marks / "elsewhere.7", (0, 0))
    newer = half.with_name(".b.mp4.2.partial")
    with registered_run(tmp_path):
        newer.write_bytes(b"")
        later = time.time() + 1
        os.utime(newer, (later, later))
        sweep_up(tmp_path)
        assert not half.exists()
        assert newer.exists(), "a run that started since may be writing it"
    assert not marks.exists()


def test_a_run_gives_signs_of_life_while_a_job_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve clips of GEN3C take an hour, after which runs elsewhere would take it for dead."""
    monkeypatch.setattr(leftovers, "SECONDS_BETWEEN_SIGNS", 0.02)
    with registered_run(tmp_path):
        (mark,) = (tmp_path / ".runs").iterdir()
        os.utime(mark, (0, 0))
        wait_until(lambda: mark.stat().st_mtime > 0, 10)


def test_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()
    clock = iter([0.0, 30.0, 240.0])
    monkeypatch.setattr("lyra_ns.progress.monotonic", lambda: next(clock))
    with steps_shown("clips", Console(file=printed, soft_wrap=True), seconds_between=60.0) as on_step:
        progress = RunProgress(10, on_step)
        progress.advance(3)
        progress.advance(failed=True)
    assert printed.getvalue() == "clips: 4 of 10, 1 failed, about 6 min left\n"
    assert [in_words(seconds) for seconds in (5, 7300, 200000)] == ["5 s", "2 h", "2 d"]


def children_of(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in tasks.read_text().split()] if tasks.exists() else []


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)


def test_ray_actors_choose_no_gpu_of_their_own(monkeypatch):
    """Each sees one GPU, so that cuda:1 would be none."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0, "CPU": 4.0})
    with pytest.raises(ValueError, match="sees one GPU only"):
        ray_workers(FragileStage(), 0, "cuda:1", 2)
