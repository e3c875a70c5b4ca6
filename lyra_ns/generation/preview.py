"""What a teacher would be shown, before any model runs: warped frames, cameras and depth of a planned scene.

Shape letters: L frames, M pictures, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.data.resizing import resize_depth
from lyra_ns.evaluation.pictures import contact_sheet, save_picture
from lyra_ns.export.video import save_video
from lyra_ns.generation.length_unit import farthest_frames
from lyra_ns.generation.outputs import for_sheet
from lyra_ns.generation.path_picture import write_path_picture
from lyra_ns.generation.scene_plan import PlannedPath, ScenePlan
from lyra_ns.generation.teachers.warp import WarpedFrames, shown_whole, warped_frames

HOLE = 0.75
"""Grey of what the cache does not show, 0 to 1."""
LITTLE = 0.5
"""A path whose emptiest frame shows less than this share is worth a warning."""
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Coverage:
    """How much of its frames a path sees of the cache."""

    path: PlannedPath
    """The path."""
    mean: float
    """Share of all pixels of all frames."""
    least: float
    """Share of the emptiest frame."""

    def __str__(self) -> str:
        warning = ": much would have to be invented" if self.least < LITTLE else ""
        return (
            f"path {self.path.trajectory} {self.path.name}: {self.mean:.0%} of the pixels are known, "
            f"{self.least:.0%} in the emptiest frame{warning}"
        )


def write_preview(
    folder: Path, plan: ScenePlan, is_warp: bool, on_step: OnStep | None = None
) -> list[Coverage]:
    """Writes a video per path, sheet.png, cameras.png and depth.png; how much of each path is known.

    With `is_warp` the cache is shown as the teacher `warp` shows it, torn edges and all; otherwise as video
    models are shown it.
    """
    assert plan.cache is not None
    cache = shown_whole(plan.cache) if is_warp else plan.cache
    coverages, rows = [], []
    frames = farthest_frames(plan.cameras)
    for number, path in enumerate(plan.paths):
        warped = warped_frames(cache, path.cameras)
        shown = _with_grey_holes(warped)
        save_video(shown, folder / f"{path.trajectory}_{path.name}.mp4")
        seen = warped.mask.float().mean((1, 2, 3))
        coverages.append(Coverage(path, float(seen.mean()), float(seen.min())))
        last = len(shown) - 1
        rows.append(shown[[0, last // 3, frames[number], last]])
        if on_step:
            on_step(number + 1, len(plan.paths))
    _write_sheet(folder / "sheet.png", plan, torch.stack(rows))
    paths = {f"{path.trajectory} {path.name}": path.cameras for path in plan.paths}
    write_path_picture(folder / "cameras.png", paths, plan.centre)
    depth = resize_depth(plan.depth[:1], *plan.image.shape[1:])
    columns = {"input": plan.image.movedim(0, -1)[None], f"depth: {plan.scale.estimator}": depth}
    save_picture(contact_sheet(columns), folder / "depth.png")
    return coverages


def _with_grey_holes(warped: WarpedFrames) -> Float[Tensor, "L H W 3"]:
    frames = torch.where(warped.mask, warped.video.float() / 255, HOLE)
    return frames.movedim(1, -1)


def _write_sheet(path: Path, plan: ScenePlan, rows: Float[Tensor, "V 4 H W 3"]) -> None:
    titles = ("start", "a third on", "farthest", "end")
    columns = {title: for_sheet(rows[:, place]) for place, title in enumerate(titles)}
    captions = [f"{path.trajectory} {path.name}" for path in plan.paths]
    save_picture(contact_sheet(columns, captions, f"{plan.name}: grey is not known"), path)
