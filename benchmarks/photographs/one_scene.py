"""One `generate` in a process of its own, so that its time and memory are those of a user's command.

    python -m benchmarks.photographs.one_scene PHOTOGRAPH FOLDER

writes FOLDER, and FOLDER.json with the seconds and the most memory that the process took.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import tyro


def main(photograph: tyro.conf.Positional[Path], folder: tyro.conf.Positional[Path]) -> None:
    """Make a scene of the photograph with default settings."""
    started = time.perf_counter()
    from lyra_ns.generation.generate import generate
    from lyra_ns.generation.settings import GenerateSettings

    generate(GenerateSettings(input=photograph, output=folder))
    used = resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        # Linux counts it in KiB.
        "peak_gib": used.ru_maxrss / 2**20,
    }
    folder.with_suffix(".json").write_text(json.dumps(measured))


if __name__ == "__main__":
    tyro.cli(main)
