"""What will be made, before any model runs: warped frames, depth, a picture of the paths, and memory.

The picture shows camera paths from above and from the side, with frusta along them and the start marked.
Memory is said as far as it is known before models are loaded.

Shape letters: L frames, M pictures, H W image.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.data.atomic import write_whole
from lyra_ns.data.resize import resize_depth
from lyra_ns.data.video import VideoSize
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.export.video import save_video
from lyra_ns.generation.clips import decoder_size, teacher_name
from lyra_ns.generation.decoder_input import is_small
from lyra_ns.generation.length_unit import farthest_frames
from lyra_ns.generation.outputs import for_sheet
from lyra_ns.generation.plan import PlannedPath, ScenePlan
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.memory import SceneSize, available_bytes, estimate_inference_memory, gib, inference_plan
from lyra_ns.pictures import contact_sheet, save_picture
from lyra_ns.teachers.warp import WarpedFrames, shown_whole, warped_frames

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


CELL = 8
"""Pixels, and frames, of a latent cell along each axis."""


def memory_lines(
    settings: GenerateSettings,
    decoder: LatentGaussianDecoder,
    size: VideoSize,
    num_paths: int,
    device: torch.device,
) -> list[str]:
    """What decoder and teacher will need on the device, in words."""
    name = teacher_name(settings)
    if name == "gen3c" and is_small(decoder.config):
        size = decoder_size(settings, decoder, size)
    scene = SceneSize(num_paths, (size.num_frames - 1) // CELL + 1, size.height // CELL, size.width // CELL)
    codec = "linear" if is_small(decoder.config) else "cosmos"
    estimate = estimate_inference_memory(
        decoder.config,
        scene,
        inference_plan(codec, is_chunked=settings.memory == "low"),
        prune_ratio=settings.prune_ratio,
        codec=codec,
        scan=decoder.config.scan_form(decoder.scan.form_on(device), device),
        is_low_precision=decoder.config.parity or decoder.uses_autocast(device.type),
    )
    free = available_bytes(device)
    lines = [f"decoder: about {estimate}" + ("" if free is None else f"; {gib(free)} of {device} are free")]
    if name == "warp":
        return [*lines, "teacher warp: no network"]
    stored = _stored_bytes(settings.weights)
    weights = f"{gib(stored)} of weights on disk" if stored else "weights that are not in a folder here"
    return [*lines, f"teacher {name}: {weights}, and --memory {settings.memory}"]


def _stored_bytes(weights: str | None) -> int:
    """Bytes of the weights in a folder; 0 for a hub id."""
    folder = Path(weights or "").expanduser()
    if not weights or not folder.is_dir():
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


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
