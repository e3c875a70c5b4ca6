"""Rasterization of full-size scenes, and writing them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from benchmarks.full_size.inputs import Size, cameras, gaussians
from benchmarks.full_size.measure import measure
from lyra_ns.export.ply import save_ply
from lyra_ns.gaussians import prune
from lyra_ns.rendering import RenderSettings, render


@torch.no_grad()
def rendering_rows(num_views: int, size: Size, device: str, repetitions: int = 20) -> list[dict[str, Any]]:
    """Milliseconds of one image of all Gaussians and of the kept ones, for both responses."""
    every = gaussians(num_views, size, device)
    paths = cameras(num_views, size, device)[0, 0]
    rows = []
    for scene in (every, prune(every, 0.8)):
        for response in ("ewa", "ray3d"):
            settings = RenderSettings(response=response)
            middle = paths[size.num_frames // 2].reshape(1)
            measured = measure(partial(render, scene, middle, settings), repetitions)
            rows.append({"num_gaussians": scene.num, "response": response, **measured.row()})
            print(rows[-1], flush=True)
    return rows


def writing_rows(num_views: int, size: Size, device: str) -> list[dict[str, Any]]:
    """Seconds that the kept Gaussians take to a PLY."""
    kept = prune(gaussians(num_views, size, device), 0.8).to("cpu")
    with TemporaryDirectory() as folder:
        started = perf_counter()
        save_ply(kept, Path(folder) / "scene.ply")
        seconds = perf_counter() - started
    return [{"num_gaussians": kept.num, "seconds": round(seconds, 3)}]
