"""Sheets of photographs seen from ever farther beside them: one Gaussian per pixel, and the scene made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional

from benchmarks.photographs.five import PER_PIXEL, Row
from benchmarks.photographs.held_out import TEN, Picture
from benchmarks.photographs.scenes import PhotographView, SceneMaker
from benchmarks.photographs.views import on_arc, seen
from lyra_ns.gaussians import Gaussians
from lyra_ns.pictures import contact_sheet, save_picture

DEGREES = (0, 8, 16, 25)
"""Angles that are shown, to the right."""
OVERVIEW_WIDTH = 620
"""Width of a photograph's sheet in the overview, which has two side by side."""
OVERVIEW = "orbits.jpg"
"""The overview of all photographs."""
OVERVIEW_QUALITY = 80
"""JPEG quality that keeps it small."""


def write_orbits(
    photographs: Mapping[str, Picture], makers: Mapping[str, SceneMaker], folder: Path
) -> list[Row]:
    """A sheet for each photograph and one of all of them in `folder`; a row for each of what it shows."""
    sheets, rows = {}, []
    sources = {held.name: held for held in TEN}
    for name, picture in photographs.items():
        scenes = {way: maker.made(name, picture) for way, maker in makers.items()}
        view = next(iter(scenes.values())).view
        shown = {PER_PIXEL: view.per_pixel} | {way: scene.gaussians for way, scene in scenes.items()}
        sheets[name] = orbit_sheet(name, shown, view)
        save_picture(sheets[name], folder / f"{name}.jpg")
        held = sources[name]
        rows.append({"photograph": name, "package": held.package, "source": held.source, "box": held.box})
        print(folder / f"{name}.jpg", flush=True)
    overview(list(sheets.values())).save(folder / OVERVIEW, quality=OVERVIEW_QUALITY)
    return rows


def orbit_sheet(name: str, shown: Mapping[str, Gaussians], view: PhotographView) -> Image.Image:
    """A row for each of what is shown, a column for each angle."""
    columns = {}
    for degrees in DEGREES:
        camera = on_arc(view.camera, degrees, view.centre_depth)
        images = torch.cat([seen(gaussians, camera).rgb for gaussians in shown.values()])
        half = functional.interpolate(images.movedim(-1, 1), scale_factor=0.75, mode="area")
        columns[f"{degrees} degrees"] = half.movedim(1, -1)
    return contact_sheet(columns, list(shown), name)


def overview(sheets: list[Image.Image]) -> Image.Image:
    """All sheets, two side by side, those of one row at one width."""
    small = [
        sheet.resize((OVERVIEW_WIDTH, round(sheet.height * OVERVIEW_WIDTH / sheet.width))) for sheet in sheets
    ]
    pairs = [small[place : place + 2] for place in range(0, len(small), 2)]
    heights = [max(sheet.height for sheet in pair) for pair in pairs]
    whole = Image.new("RGB", (2 * OVERVIEW_WIDTH, sum(heights)), "white")
    top = 0
    for pair, height in zip(pairs, heights, strict=True):
        for place, sheet in enumerate(pair):
            whole.paste(sheet, (place * OVERVIEW_WIDTH, top))
        top += height
    return whole
