"""What every test runs under: shapes checked at run time in the rooms of mathematics."""

from __future__ import annotations

import os
from pathlib import Path

# Set before torch is loaded: idle threads that spin starve the other workers on small machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from jaxtyping import install_import_hook

import tests.helpers.checked_types  # noqa: F401  which the hook names and does not import

# Not attention and kernels: torch.library and triton.jit cannot read functions that are wrapped.
CHECKED_ROOMS = (
    "cache3d",
    "camera_paths",
    "cameras",
    "codec",
    "data",
    "decoder",
    "depth",
    "environment",
    "evaluation",
    "export",
    "gaussians",
    "gen3c",
    "generation",
    "losses",
    "make_data",
    "memory",
    "metrics",
    "ops.lpips",
    "ops.ssd",
    "ops.ssd_types",
    "pictures",
    "pretrained",
    "progress",
    "reconstruction",
    "refinement",
    "rendering",
    "teachers",
    "text",
)
KERNEL_FILES = ("gen3c.triton",)
"""Files of triton.jit inside checked rooms."""


def checked_modules() -> list[str]:
    """Full names of the modules of the checked rooms.

    Each is named, since the hook takes what lies below a name, too, and knows no exceptions.
    """
    package = Path(__file__).parents[1] / "lyra_ns"
    files = (path for path in package.rglob("*.py") if path.name != "__init__.py")
    names = {".".join(path.relative_to(package).with_suffix("").parts) for path in files}
    rooms = tuple(f"{room}." for room in CHECKED_ROOMS)
    checked = (name for name in names - set(KERNEL_FILES) if f"{name}.".startswith(rooms))
    return sorted(f"lyra_ns.{name}" for name in checked)


# Stays installed for the whole session: rooms may be imported late, inside a test.
install_import_hook(checked_modules(), "tests.helpers.checked_types.checked")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
