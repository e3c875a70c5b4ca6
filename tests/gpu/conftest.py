"""What all tests on a GPU share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch

from lyra_ns.ops.ssd_types import why_no_mamba_ssm


@pytest.fixture(scope="session", autouse=True)
def untuned_mamba_ssm() -> None:
    """The kernels of mamba-ssm run with their smallest tiles, which fit any card in any precision.

    They would compile and time about ten tilings each, once more for every shape and precision: minutes for
    values that are the same but for the order of sums.
    """
    if not torch.cuda.is_available() or why_no_mamba_ssm():
        return
    for tuner in list(tuners_of_mamba_ssm()):
        tuner.configs = [min(tuner.configs, key=tile_size)]


def tuners_of_mamba_ssm() -> Iterator[Any]:
    """Every kernel that chooses among tilings, in the modules of the state scan."""
    import mamba_ssm.ops.triton.ssd_combined  # noqa: F401
    from triton.runtime import Autotuner

    for name, module in list(sys.modules.items()):
        if name.startswith("mamba_ssm.ops.triton.ssd_"):
            for kernel in list(vars(module).values()):
                # Autotuning may lie behind heuristics, which wrap it as `fn`.
                while kernel is not None and not isinstance(kernel, Autotuner):
                    kernel = getattr(kernel, "fn", None) if hasattr(kernel, "run") else None
                if kernel is not None:
                    yield kernel


def tile_size(config: Any) -> int:
    """Numbers that one program holds, up to a factor."""
    sizes = [size for name, size in config.kwargs.items() if name.startswith("BLOCK")]
    return prod(sizes) * config.num_stages
