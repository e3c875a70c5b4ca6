"""What a measurement must say about itself: device, versions, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

import lyra_ns

PACKAGES = ("gsplat", "nerfstudio", "lpips", "numpy", "triton", "mamba-ssm", "causal-conv1d")
"""Packages, beside torch, whose versions can change numbers."""


def environment(device: torch.device) -> dict[str, object]:
    """Device, versions and, in a checkout, the commit; ready for JSON."""
    return {
        "device": device_name(device),
        "versions": {
            "python": platform.python_version(),
            "lyra_ns": lyra_ns.__version__,
            "torch": torch.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "commit": source_commit(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's kind with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """The commit that this package runs from, with "+changes" if files differ; None outside its checkout."""
    package = Path(lyra_ns.__file__).parent
    # Installed inside somebody's repository, the package is not tracked there.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", ".")
    return None if commit is None else commit + ("+changes" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or is not there."""
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
