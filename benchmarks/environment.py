"""Where and with what a result was measured."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

from lyra_ns.data.manifest import current_versions

ROOT = Path(__file__).resolve().parent.parent
"""Folder of the checkout."""
CODE = ("lyra_ns", "method_configs", "dataparsers", "benchmarks/*.py")
"""What a result depends on; its own file changes while it is measured."""
CPU_DESCRIPTION = Path("/proc/cpuinfo")
"""Where Linux says what processor it runs on."""


def describe_environment(device: str) -> dict[str, object]:
    """Device, number of threads, versions and commit, ready for JSON; `device` is `cpu` or a CUDA device."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {**current_versions(), **_installed("nerfstudio", "gsplat")},
        "commit": current_commit(),
    }


def device_name(device: str) -> str:
    """Name of the GPU, or model of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = cpu_model()
    return f"CPU {model}" if model else f"CPU {platform.machine()}"


def cpu_model() -> str | None:
    """Model of the processor with its number, None where the system does not say."""
    if not CPU_DESCRIPTION.is_file():
        return None
    lines = CPU_DESCRIPTION.read_text().splitlines()
    pairs = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    name = pairs.get("model name")
    if name is None:
        return None
    # Virtual machines say "Xeon Processor" without a number; family and model tell generations apart.
    return f"{name}, family {pairs.get('cpu family', '?')}, model {pairs.get('model', '?')}"


def current_commit() -> str:
    """Commit of the checkout, with `+changes` where its code was edited; `unknown` outside a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
    return f"{commit}+changes" if changes else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _installed(*names: str) -> dict[str, str]:
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
