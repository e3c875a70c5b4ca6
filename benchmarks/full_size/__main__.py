"""`python -m benchmarks.full_size`: measure at the paper's size on a CUDA device and write a result file.

Parts are written as soon as they are done, into one file for each device, so that a run can be cut and a part
repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import tyro

from benchmarks.environment import describe_environment
from benchmarks.full_size.forward import ablations, error_rows, forward_rows, ways
from benchmarks.full_size.inputs import Size
from benchmarks.full_size.rendering import rendering_rows, writing_rows
from benchmarks.kernels.cosmos_encoder import error_rows as encoder_error_rows
from benchmarks.kernels.cosmos_encoder import random_autoencoder, scene_cameras, scene_rows
from benchmarks.training_step import StepSize, training_rows
from lyra_ns.data.atomic import write_whole

RESULTS = Path(__file__).resolve().parent.parent / "results"
"""Folder of the result files."""

Part = Literal[
    "forward", "errors", "low_precision", "ablations", "rendering", "writing", "plucker", "training"
]
ALL_PARTS: tuple[Part, ...] = (
    "forward",
    "errors",
    "low_precision",
    "ablations",
    "rendering",
    "writing",
    "plucker",
    "training",
)


def rows_of(
    part: Part, views: tuple[int, ...], size: Size, repetitions: int, data: Path | None
) -> list[dict[str, Any]]:
    """The rows of one part."""
    most = max(views)
    makers: dict[Part, Callable[[], list[dict[str, Any]]]] = {
        "forward": lambda: forward_rows(views, size, "cuda", ways(), repetitions),
        "errors": lambda: error_rows(size, "cuda"),
        "low_precision": lambda: precision_rows(data),
        "ablations": lambda: forward_rows((1, most), size, "cuda", ablations(), 1),
        "rendering": lambda: rendering_rows(most, size, "cuda"),
        "writing": lambda: writing_rows(most, size, "cuda"),
        "plucker": lambda: plucker_rows(size, repetitions),
        "training": lambda: step_rows(size),
    }
    return makers[part]()


def plucker_rows(size: Size, repetitions: int) -> list[dict[str, Any]]:
    """Cameras of six trajectories to Plücker latents, diffusers' encoder beside ours, and their errors."""
    autoencoder = random_autoencoder()
    paths = scene_cameras(size)
    return scene_rows(autoencoder, paths, repetitions) + encoder_error_rows(autoencoder)


def precision_rows(data: Path | None) -> list[dict[str, Any]]:
    """Renders of the held-out scenes of `data` (None: of four new ones) by each form of attention."""
    # Here, because reading scenes needs PyAV, which no other part does.
    from benchmarks.full_size.low_precision import low_precision_rows
    from lyra_ns.synthetic import write_sample_data

    if data is not None:
        return low_precision_rows(data)
    with TemporaryDirectory() as folder:
        write_sample_data(Path(folder), 1, num_held_out=4, seed=21, device="cuda")
        return low_precision_rows(Path(folder))


def step_rows(size: Size) -> list[dict[str, Any]]:
    """One training step for each size of the official one's table, our settings beside plain ones.

    Source: docs/reference/performance.md, "Training step".
    """
    rows = []
    for num_views, num_targets, prune_ratio in ((1, 9, 0.0), (6, 12, 0.8), (6, 54, 0.8), (6, 54, 0.0)):
        step = StepSize(num_views, num_targets, prune_ratio, size.num_frames, size.height, size.width)
        rows += training_rows(step)
        print(*rows[-2:], sep="\n", flush=True)
    return rows


def file_name(device: str) -> str:
    """Name of a device's result file: `full_size_h200.json` for an NVIDIA H200."""
    words = re.findall(r"[a-z0-9]+", device.lower().removeprefix("nvidia"))
    return f"full_size_{'_'.join(words)}.json"


def main(
    output: Path | None = None,
    parts: tuple[Part, ...] = ALL_PARTS,
    views: tuple[int, ...] = (1, 2, 4, 6),
    num_frames: int = 121,
    height: int = 704,
    width: int = 1280,
    repetitions: int = 3,
    data: Path | None = None,
    commit: str | None = None,
) -> None:
    """Measure `parts` and write them into the JSON file `output`, beside those it holds already.

    Without `output` that file is named after the device and lies in benchmarks/results. `data` holds
    the held-out scenes of the part low_precision (by default new ones are made); `commit` names the code
    where it runs from a copy without git.
    """
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.full_size measures on a CUDA device, found none: run it on one")
    output = output or RESULTS / file_name(torch.cuda.get_device_name())
    size = Size(num_frames, height, width)
    content = json.loads(output.read_text()) if output.is_file() else {"parts": {}}
    for part in parts:
        print(f"== {part}", flush=True)
        rows = rows_of(part, views, size, repetitions, data)
        environment = describe_environment("cuda")
        content["parts"][part] = {
            "environment": environment | {"commit": environment["commit"] or commit},
            "size": vars(size),
            "rows": rows,
        }
        write_whole(output, json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    tyro.cli(main)
