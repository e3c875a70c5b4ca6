"""`python -m benchmarks.splat`: frames warped by the 3D cache, all at once beside one after the other.

One picture with a near box before a slope, seen along the official camera paths. `plain loop` unprojects,
projects and splats frame by frame; the others are `SceneCache.render`. Agreement with the plain loop is told
as the share of pixels with the same mask and as the mean difference of colours. Runs on CPU and CUDA.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.environment import describe_environment
from benchmarks.full_size.inputs import Size, cameras
from benchmarks.generation_tables import SPLAT_COLUMNS
from benchmarks.table_text import numbers, table
from lyra_ns.cache3d.cache import CacheSettings, SceneCache, Warps
from lyra_ns.cache3d.reference import plain_warp
from lyra_ns.cache3d.splat import SplatSettings
from lyra_ns.cameras import CameraPath
from lyra_ns.data.atomic import write_whole
from lyra_ns.device import GIB

Row = dict[str, Any]
Way = Callable[[SceneCache, CameraPath], Warps]

SOFT = CacheSettings(foreground_masking=False)
HARD = replace(SOFT, splat=SplatSettings("hard"))
WAYS: dict[str, tuple[CacheSettings, bool]] = {
    "plain loop, soft": (SOFT, True),
    "at once, soft": (SOFT, False),
    "plain loop, hard": (HARD, True),
    "at once, hard": (HARD, False),
    "at once, soft, foreground masking": (CacheSettings(), False),
}
"""Name of each row, its settings, and whether it is the plain loop."""


def scene(size: Size, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Noise [3, H, W], and the depth [H, W] of a slope with a box before it and sky above."""
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand(3, size.height, size.width, generator=generator)
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, size.height), torch.linspace(-1, 1, size.width), indexing="ij"
    )
    depth = 1.2 + 0.3 * torch.sin(3 * columns) - 0.2 * rows
    depth[(rows.abs() < 0.4) & (columns.abs() < 0.3)] = 0.7
    depth[rows < -0.8] = torch.inf
    return rgb.to(device), depth.to(device)


def plain_loop(cache: SceneCache, paths: CameraPath) -> Warps:
    """The frames of `paths` [L] one after the other."""
    frames, camera = cache.frames, cache.frames.cameras[0]
    warped = [
        plain_warp(
            frames.rgb[0],
            frames.depth[0],
            frames.usable[0],
            camera,
            paths[k],
            cache.farthest,
            cache.settings.splat,
        )
        for k in range(paths.shape[0])
    ]
    return Warps(
        torch.stack([one.rgb for one in warped]),
        torch.stack([one.mask[:, None] for one in warped]),
        torch.stack([one.depth for one in warped]),
    )


def rows_of(size: Size, device: str, num_views: int, repetitions: int) -> list[Row]:
    """One row per way, over `num_views` paths of `size.num_frames` frames."""
    targets = cameras(num_views, size, device).reshape(-1)
    rgb, depth = scene(size, device)
    rows, truth = [], None
    for name, (settings, is_plain) in WAYS.items():
        cache = SceneCache.from_image(rgb, depth, targets[0], settings=settings)
        work: Way = plain_loop if is_plain else SceneCache.render
        milliseconds, growth, warps = timed(work, cache, targets, repetitions)
        row: Row = {"way": name, "ms_per_frame": milliseconds / targets.shape[0], "growth_gib": growth}
        truth = warps if is_plain else truth
        comparable = truth is not None and not is_plain and not settings.foreground_masking
        rows.append(row | (agreement(warps, truth) if comparable and truth is not None else NO_AGREEMENT))
    return rows


NO_AGREEMENT: Row = {"same_mask": None, "colour_difference": None}


def agreement(warps: Warps, truth: Warps) -> Row:
    """How far warps are from those of the plain loop."""
    return {
        "same_mask": (warps.mask == truth.mask).float().mean().item(),
        "colour_difference": (warps.rgb - truth.rgb).abs().mean().item(),
    }


def timed(
    work: Way, cache: SceneCache, targets: CameraPath, repetitions: int
) -> tuple[float, float | None, Warps]:
    """Median milliseconds after one call that does not count, most GiB above the inputs, and the result."""
    on_gpu = cache.frames.rgb.is_cuda
    warps = work(cache, targets)
    before = 0
    times = []
    for _ in range(repetitions):
        del warps
        if on_gpu:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        warps = work(cache, targets)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    growth = (torch.cuda.max_memory_allocated() - before) / GIB if on_gpu else None
    return median(times), growth, warps


def main(
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    num_views: int = 1,
    num_frames: int = 121,
    height: int = 704,
    width: int = 1280,
    repetitions: int = 3,
    output: Path | None = None,
) -> None:
    """Print the table, and write its rows to the JSON file `output` if one is named."""
    size = Size(num_frames, height, width)
    rows = rows_of(size, device, num_views, repetitions)
    titles = ["way", *(column.title for column in SPLAT_COLUMNS)]
    print(table(titles, [[row["way"], *numbers([row], SPLAT_COLUMNS)] for row in rows]), flush=True)
    if output is not None:
        content = {
            "environment": describe_environment(device),
            "size": {**vars(size), "num_views": num_views},
            "rows": rows,
        }
        write_whole(output, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    tyro.cli(main)
