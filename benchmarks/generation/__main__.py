"""`python -m benchmarks.generation`: GEN3C's network with random weights at full size on a CUDA device.

Every row is written as soon as it is made; a row that fails says so and the others go on. Run it again with
the same output to make what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.full_size.inputs import Size
from benchmarks.generation.network import FULL_CONFIG, Bench, compiled_rows, evaluation_rows, guidance_rows
from benchmarks.generation.policies import codec_rows, policy_rows
from benchmarks.generation.result_file import ResultFile, free_memory
from benchmarks.generation.sampler import deviation_rows, error_rows
from benchmarks.generation.two_gpus import two_gpu_rows
from benchmarks.generation_tables import RESULT_FILE, TABLE_OF_PART

RESULTS = Path(__file__).resolve().parent.parent / "results"
"""Folder of the result files."""
Part = Literal["evaluations", "guidance", "errors", "deviations", "policies", "codec", "compiled", "two_gpus"]
ONE_GPU: tuple[Part, ...] = ("evaluations", "errors", "codec", "guidance", "policies", "deviations")
"""Parts that need one GPU and no long compilation, what matters most first."""


def main(
    output: Path = RESULTS / RESULT_FILE,
    parts: tuple[Part, ...] = ONE_GPU,
    num_frames: int = 121,
    height: int = 704,
    width: int = 1280,
    repetitions: int = 2,
    sampler_frames: int = 17,
    sampler_steps: int = 16,
    commit: str | None = None,
) -> None:
    """Measure `parts` and write them into the JSON file `output`, beside those it holds already.

    `sampler_frames` and `sampler_steps` are those of the part deviations, which runs the whole sampler for
    each way. `commit` names the code where it runs from a copy without git.
    """
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.generation measures on a CUDA device, found none: run it on one")
    size = Size(num_frames, height, width)
    makers: dict[Part, Callable[[Bench], None]] = {
        "evaluations": evaluation_rows,
        "guidance": guidance_rows,
        "errors": lambda bench: error_rows(bench, sampler_frames),
        "deviations": lambda bench: deviation_rows(bench, sampler_frames, sampler_steps),
        "policies": policy_rows,
        "codec": codec_rows,
        "compiled": compiled_rows,
        "two_gpus": two_gpu_rows,
    }
    for part in parts:
        print(f"== {part}", flush=True)
        file = ResultFile(output, part, vars(size), commit)
        makers[part](Bench(file, replace(size), "cuda", FULL_CONFIG, repetitions))
        free_memory()
    for part in parts:
        print(f"\n{TABLE_OF_PART[part](ResultFile(output, part, vars(size), commit).content['parts'])}")


if __name__ == "__main__":
    tyro.cli(main)
