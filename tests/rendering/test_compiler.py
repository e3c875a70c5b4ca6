"""The kernel's build: kept, shared between processes, and honest where there is no compiler."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from lyra_ns.cameras import CameraPath
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering import RenderSettings, cpu, describe_backend, render, renderer


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and nothing remembered in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for cached in (cpu.load_kernel, renderer._best_backend):
        cached.cache_clear()
    yield tmp_path / "lyra_ns" / "kernels"
    for cached in (cpu.load_kernel, renderer._best_backend):
        cached.cache_clear()


def one_gaussian() -> tuple[Gaussians, CameraPath]:
    gaussians = Gaussians(
        torch.tensor([[0.0, 0.0, 2.0]]),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.full((1, 3), 0.5),
        torch.tensor([0.9]),
        torch.tensor([[1.0, 0.0, 0.0]]),
    )
    return gaussians, CameraPath(
        torch.eye(4)[None], torch.tensor([[8.0, 8.0, 4.0, 4.0]]), torch.zeros(1), 8, 8
    )


@pytest.mark.slow
@pytest.mark.skipif(cpu.find_compiler() is None, reason="needs a C++ compiler")
def test_processes_share_one_build_and_leave_no_drafts(fresh):
    # Run by its path, so that no worker waits for torch.
    build = f"import runpy; runpy.run_path({cpu.__file__!r})['load_kernel']()"
    command = [sys.executable, "-c", build]
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    (built,) = fresh.iterdir()
    before = built.stat().st_mtime_ns
    render(*one_gaussian(), RenderSettings(backend="cpu"))
    assert [path.stat().st_mtime_ns for path in fresh.iterdir()] == [before]


@pytest.mark.slow
@pytest.mark.skipif(cpu.find_compiler() is None, reason="needs a C++ compiler")
def test_compiler_without_openmp_still_builds(fresh, tmp_path, monkeypatch):
    poor = tmp_path / "poor-c++"
    poor.write_text(
        f'#!/bin/sh\ncase "$*" in *-fopenmp*) echo "no openmp here" >&2; exit 1;; esac\n'
        f'exec {cpu.find_compiler()} "$@"\n'
    )
    poor.chmod(0o755)
    monkeypatch.setenv("CXX", str(poor))
    assert cpu.load_kernel().description == "poor-c++ -march=native"
    assert render(*one_gaussian(), RenderSettings(backend="cpu")).alpha[0, 3, 3] > 0.8


def test_without_a_compiler(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    gaussians, cameras = one_gaussian()
    with pytest.raises(cpu.CompilerMissing, match="found none"):
        render(gaussians, cameras, RenderSettings(backend="cpu"))
    with caplog.at_level(logging.WARNING):
        images = render(gaussians, cameras)
    assert images.alpha[0, 3, 3] > 0.8
    assert "falls back to plain PyTorch" in caplog.text
    assert "plain PyTorch" in describe_backend(RenderSettings(), "cpu")


def test_broken_compiler_is_quoted(fresh, tmp_path, monkeypatch):
    broken = tmp_path / "broken-c++"
    broken.write_text('#!/bin/sh\necho "out of paper" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(cpu.CompilerMissing, match="out of paper"):
        cpu.load_kernel()
    assert list(fresh.iterdir()) == []
