"""Programs of the tests in Triton's interpreter, each in a process of its own: Triton asks when imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def interpreted(program: str, *arguments: str, seconds: float = 300, **environment: str) -> str:
    """What a program of this folder prints in Triton's interpreter; it must end well, and in time."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests" / "helpers" / program), *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
