"""The Triton kernel of both directions' convolution, in triton's interpreter on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "mamba_kernel_values.py"


def kernel_errors(name: str) -> list[dict[str, float]]:
    """Relative errors by result and gradient, for each case of the script."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), name], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_convolution_equals_torch() -> None:
    """Five results, three gradients: batches, odd lengths, fewer tokens than taps, cut blocks, other taps."""
    cases = kernel_errors("convolution")
    assert len(cases) == 4
    for case in cases:
        assert len(case) == 8
        assert max(case.values()) < 1e-5, case
