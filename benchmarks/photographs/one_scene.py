"""One `generate` in a process of its own, so that its time and memory are those of a user's command.

    python benchmarks/photographs/one_scene.py PHOTOGRAPH FOLDER

writes FOLDER, and FOLDER.json with the seconds and the most memory that the process took. It runs as a file
and imports nothing but the package, so that PYTHONPATH may name an older checkout.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import tyro


def main(
    photograph: tyro.conf.Positional[Path],
    folder: tyro.conf.Positional[Path],
    refine_steps: int | None = None,
) -> None:
    """Make a scene of the photograph with default settings, or with so many steps of refinement."""
    started = time.perf_counter()
    try:
        from lyra_ns.generation.run import generate
    except ModuleNotFoundError:
        # Checkouts before 0.2.0.
        from lyra_ns.generation.generate import generate
    from lyra_ns.generation.settings import GenerateSettings

    given = {} if refine_steps is None else {"refine_steps": refine_steps}
    generate(GenerateSettings(input=photograph, output=folder, **given))
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
