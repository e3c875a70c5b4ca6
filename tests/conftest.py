"""What every test runs under: shapes checked at run time in the rooms of mathematics."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Set before torch is loaded: idle threads that spin starve the other workers on small machines.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from jaxtyping import install_import_hook

# Not attention and kernels: torch.library and triton.jit cannot read functions that are wrapped.
CHECKED_ROOMS = (
    "cameras",
    "gaussians",
    "ssd",
    "ssd_states",
    "ssd_types",
    "ssd_bidirectional",
    "decoder",
    "decoder_blocks",
    "decoder_config",
    "decoder_graphs",
    "decoder_head",
    "conditioning",
    "conditioning_cache",
    "memory_estimate",
    "memory_limits",
    "reconstruction",
    "stage_meter",
    "checkpoints",
    "losses",
    "perceptual",
    "trajectories",
    "refinement",
    "refinement_attributes",
    "refinement_config",
    "refinement_densify",
    "refinement_loss",
    "refinement_views",
    "rendering",
    "codec",
    "data",
    "evaluation",
    "export",
    "generation",
)
KERNEL_FILES = ("generation.gen3c.fused_kernels", "generation.gen3c.rounding_kernel")
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
install_import_hook(checked_modules(), "checked_types.checked")
# For the helpers beside this file; at the end, so that the installed package is never shadowed.
sys.path.append(str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
