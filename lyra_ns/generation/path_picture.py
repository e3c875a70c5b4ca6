"""A picture of camera paths: from above and from the side, with frusta along them and the start marked."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.data.files import write_whole

PANEL = 512
"""Side of each of the two views in pixels."""
MARGIN = 36
"""Free pixels around what is drawn in a view."""
LINE_HEIGHT = 16
"""Pixels from one line of the legend to the next."""
NUM_FRUSTA = 6
"""Frusta along a path, the first and last camera included."""
FRUSTUM_SHARE = 0.12
"""Depth of a drawn frustum as a share of the extent of all that is drawn."""
MAX_EXTENTS = 4.0
"""The centre is left out of the picture where it lies farther from the start than this many path extents."""
INK, PAPER, FAINT, START = (40, 44, 50), (255, 255, 255), (205, 208, 212), (20, 150, 60)
"""Colours of text, ground, axes and the start."""
COLOURS = ((31, 98, 184), (214, 92, 20), (120, 60, 170), (0, 140, 140), (190, 30, 70), (120, 110, 20))
"""Colours of the paths, in turn."""


@dataclass(frozen=True)
class _Framing:
    """What part of the world both views show."""

    middle: Float[Tensor, " 3"]
    """World point in the middle of both views."""
    extent: float
    """World units between the margins of a view."""
    frustum_depth: float
    """Depth of a drawn frustum in world units."""
    centre: Float[Tensor, " 3"] | None
    """The point that the paths turn about, if it is near enough to be drawn."""


@dataclass(frozen=True)
class _View:
    """One of the two views: which axes go right and down, and how world units become pixels."""

    title: str
    across: tuple[int, float]
    """World axis that runs to the right, and its sign."""
    down: tuple[int, float]
    """World axis that runs downwards, and its sign."""
    left: int
    """First pixel column of the view."""

    def pixels(self, points: Float[Tensor, "n 3"], framing: _Framing) -> list[tuple[float, float]]:
        """Pixel positions of world points."""
        places = (points - framing.middle) * ((PANEL - 2 * MARGIN) / framing.extent)
        x = self.left + PANEL / 2 + self.across[1] * places[:, self.across[0]]
        y = PANEL / 2 + self.down[1] * places[:, self.down[0]]
        return list(zip(x.tolist(), y.tolist(), strict=True))


VIEWS = (
    _View("from above: x right, z up", (0, 1.0), (2, -1.0), 0),
    _View("from the right side: z right, y down", (2, 1.0), (1, 1.0), PANEL),
)


def write_path_picture(
    path: Path, paths: Mapping[str, CameraPath], centre: Float[Tensor, " 3"] | None = None
) -> None:
    """Writes `draw_paths` as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    draw_paths(paths, centre).save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


def draw_paths(paths: Mapping[str, CameraPath], centre: Float[Tensor, " 3"] | None = None) -> Image.Image:
    """Two views of named paths [L], with a legend; `centre` is the point that they turn about.

    ValueError without a path, or where a position is not finite.
    """
    shown = {name: path.to("cpu") for name, path in paths.items() if path.shape.numel()}
    if not shown or not all(bool(path.camera_to_world.isfinite().all()) for path in shown.values()):
        raise ValueError("expected at least one camera path with finite poses to draw, found none")
    framing = _framing(shown, None if centre is None else centre.cpu().float())
    image = Image.new("RGB", (2 * PANEL, PANEL + LINE_HEIGHT * (len(shown) + 2)), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default()
    for view in VIEWS:
        pen.rectangle((view.left, 0, view.left + PANEL - 1, PANEL - 1), outline=FAINT)
        pen.text((view.left + 8, 6), view.title, fill=INK, font=font)
        if framing.centre is not None:
            _draw_cross(pen, view.pixels(framing.centre[None], framing)[0])
        for number, path in enumerate(shown.values()):
            _draw_path(pen, view, path, COLOURS[number % len(COLOURS)], framing)
        _draw_start(pen, view, next(iter(shown.values())), framing)
    _draw_legend(pen, font, shown, framing)
    return image


def _framing(paths: Mapping[str, CameraPath], centre: Float[Tensor, " 3"] | None) -> _Framing:
    """A cube that holds the paths with their frusta, and the centre if it lies near enough to be drawn."""
    positions = torch.cat([path.camera_to_world[:, :3, 3] for path in paths.values()]).float()
    reach = float((positions.amax(0) - positions.amin(0)).amax())
    if centre is not None and (reach == 0 or float((centre - positions[0]).norm()) <= MAX_EXTENTS * reach):
        positions = torch.cat([positions, centre[None]])
    else:
        centre = None
    depth = FRUSTUM_SHARE * (float((positions.amax(0) - positions.amin(0)).amax()) or 1.0)
    corners = [_frusta(path, depth).flatten(0, 1) for path in paths.values()]
    seen = torch.cat([*corners, positions])
    low, high = seen.amin(0), seen.amax(0)
    return _Framing((low + high) / 2, float((high - low).amax()), depth, centre)


def _frusta(path: CameraPath, depth: float) -> Float[Tensor, "n 5 3"]:
    """Apex and four image corners of some cameras along the path, in the world."""
    frames = torch.linspace(0, len(path.camera_to_world) - 1, NUM_FRUSTA).round().long().unique()
    cameras = path[frames]
    fx, fy, cx, cy = cameras.intrinsics.float().unbind(-1)
    x = torch.stack([-cx / fx, (path.width - cx) / fx], -1)[:, [0, 1, 1, 0]]
    y = torch.stack([-cy / fy, (path.height - cy) / fy], -1)[:, [0, 0, 1, 1]]
    corners = torch.stack([x, y, torch.ones_like(x)], -1) * depth
    corners = torch.cat([torch.zeros_like(corners[:, :1]), corners], 1)
    poses = cameras.camera_to_world.float()
    return corners @ poses[:, :3, :3].mT + poses[:, None, :3, 3]


def _draw_path(
    pen: ImageDraw.ImageDraw,
    view: _View,
    path: CameraPath,
    colour: tuple[int, int, int],
    framing: _Framing,
) -> None:
    """The line of a path and frusta along it, the later the darker."""
    frusta = _frusta(path, framing.frustum_depth)
    for number, frustum in enumerate(frusta):
        share = 0.35 + 0.65 * number / max(len(frusta) - 1, 1)
        shade = _mixed(colour, share)
        apex, *corners = view.pixels(frustum, framing)
        pen.line([*corners, corners[0]], fill=shade)
        for corner in corners:
            pen.line([apex, corner], fill=shade)
    places = view.pixels(path.camera_to_world[:, :3, 3].float(), framing)
    pen.line(places, fill=colour, width=3)
    _draw_dot(pen, places[-1], colour, 4)


def _draw_start(pen: ImageDraw.ImageDraw, view: _View, path: CameraPath, framing: _Framing) -> None:
    (x, y) = view.pixels(path.camera_to_world[:1, :3, 3].float(), framing)[0]
    _draw_dot(pen, (x, y), START, 6)
    pen.text((x + 9, y + 5), "start", fill=START, font=ImageFont.load_default())


def _draw_legend(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    paths: Mapping[str, CameraPath],
    framing: _Framing,
) -> None:
    """One line per path with its frames and length, and one with the size of the views."""
    scale = framing.extent * PANEL / (PANEL - 2 * MARGIN)
    note = f"each view is {scale:.3g} units wide; dots end the paths"
    note += "" if framing.centre is None else "; the cross is the centre"
    pen.text((8, PANEL + 4), note, fill=INK, font=font)
    for number, (name, path) in enumerate(paths.items()):
        top = PANEL + 4 + LINE_HEIGHT * (number + 1)
        length = float(path.camera_to_world[:, :3, 3].diff(dim=0).norm(dim=-1).sum())
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle((8, top + 2, 20, top + 10), fill=colour)
        text = f"{name}: {len(path.camera_to_world)} frames, {length:.3g} units long"
        pen.text((26, top), text, fill=INK, font=font)


def _draw_dot(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], colour: tuple[int, ...], radius: int
) -> None:
    pen.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), fill=colour)


def _draw_cross(pen: ImageDraw.ImageDraw, at: tuple[float, float]) -> None:
    pen.line((at[0] - 6, at[1], at[0] + 6, at[1]), fill=INK, width=2)
    pen.line((at[0], at[1] - 6, at[0], at[1] + 6), fill=INK, width=2)


def _mixed(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """The colour with this share of it on paper."""
    red, green, blue = (
        round(share * c + (1 - share) * ground) for c, ground in zip(colour, PAPER, strict=True)
    )
    return red, green, blue
