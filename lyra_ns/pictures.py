"""Pictures to judge results by: depth in colours, and sheets that set columns of images side by side.

Shape letters: M views, H W image.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lyra_ns.data.atomic import write_whole

DEPTH_COLOURS = (
    *((35, 20, 70), (52, 70, 170), (45, 130, 220), (35, 190, 200), (80, 220, 130)),
    *((170, 230, 70), (240, 200, 50), (250, 130, 40), (215, 55, 25), (125, 10, 15)),
)
"""Evenly spaced colours from far (dark blue) to near (dark red), red green blue."""

UNKNOWN_COLOUR = (225, 225, 225)
"""Grey where there is no depth."""

INK, PAPER = (40, 44, 50), (255, 255, 255)
"""Colours of captions and of the sheet."""

GAP = 6
"""Pixels between the images of a sheet."""

ColumnImages = Float[Tensor, "M H W 3"] | Float[Tensor, "M H W"]
"""Colour images from 0 to 1, or z-depths (0 where unknown)."""


def inverse_depth_limits(*depths: Float[Tensor, "*any"]) -> tuple[float, float]:
    """Smallest and largest inverse depth worth a colour: the 2nd and 98th percentile of all known values.

    Taken over whole clips, so that colours do not flicker, and over several of them, so that they compare.
    """
    known = torch.cat([1.0 / depth[(depth > 0) & torch.isfinite(depth)].flatten() for depth in depths])
    if known.numel() == 0:
        return 0.0, 1.0
    low, high = np.percentile(known.detach().cpu().numpy(), [2.0, 98.0])
    return float(low), float(high)


def colour_depth(
    depth: Float[Tensor, "*batch H W"], limits: tuple[float, float] | None = None
) -> UInt8[Tensor, "*batch H W 3"]:
    """Colours of z-depths: near is red, far is blue, grey where the depth is 0 or not finite.

    The scale is even in inverse depth between `limits` (default: those of this very tensor).
    """
    low, high = limits or inverse_depth_limits(depth)
    is_known = (depth > 0) & torch.isfinite(depth)
    share = (torch.where(is_known, depth, 1.0).reciprocal() - low) / max(high - low, 1e-12)
    colours = torch.tensor(DEPTH_COLOURS, dtype=torch.float32, device=depth.device)
    position = share.clamp(0.0, 1.0) * (len(colours) - 1)
    below = position.long().clamp(max=len(colours) - 2)
    weight = (position - below)[..., None]
    blended = torch.lerp(colours[below], colours[below + 1], weight)
    unknown = torch.tensor(UNKNOWN_COLOUR, dtype=torch.float32, device=depth.device)
    return torch.where(is_known[..., None], blended, unknown).round().to(torch.uint8)


def contact_sheet(
    columns: Mapping[str, ColumnImages], row_captions: Sequence[str] | None = None, title: str = ""
) -> Image.Image:
    """One picture with a row for each view and a captioned column for each entry, e.g. input, teacher, ours.

    Colour columns are [M, H, W, 3] from 0 to 1; depth columns are [M, H, W] and share one colour scale. All
    images must have one size and every column one number of views.
    """
    num_rows, height, width = _common_shape(columns)
    if row_captions is not None and len(row_captions) != num_rows:
        raise ValueError(f"expected {num_rows} row captions, one for each view, found {len(row_captions)}")
    size = max(11, round(height * 0.075))
    font = ImageFont.load_default(size)
    left = 0 if row_captions is None else GAP + max(round(font.getlength(text)) for text in row_captions)
    top = GAP + (round(2.2 * size) if title else 0) + round(1.6 * size)
    sheet_size = (left + GAP + len(columns) * (width + GAP), top + num_rows * (height + GAP))
    sheet = Image.new("RGB", sheet_size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, GAP), title, INK, ImageFont.load_default(round(1.3 * size)))
    for row, text in enumerate(row_captions or []):
        draw.text((GAP, top + row * (height + GAP) + height // 2), text, INK, font, anchor="lm")
    for column, (caption, images) in enumerate(_as_bytes(columns).items()):
        x = left + GAP + column * (width + GAP)
        draw.text((x + width // 2, top - round(0.5 * size)), caption, INK, font, anchor="ms")
        for row, image in enumerate(images):
            sheet.paste(Image.fromarray(image.numpy()), (x, top + row * (height + GAP)))
    return sheet


def save_picture(picture: Image.Image | UInt8[Tensor, "H W 3"], path: Path) -> None:
    """Write a picture as PNG or JPEG, by its suffix; the file appears whole or not at all."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture.cpu().numpy())
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
    if path.suffix.lower() not in formats:
        raise ValueError(f"pictures are written as {', '.join(formats)}, found {path.name!r}")
    buffer = io.BytesIO()
    image.save(buffer, formats[path.suffix.lower()], quality=92)
    write_whole(path, buffer.getvalue())


def _common_shape(columns: Mapping[str, ColumnImages]) -> tuple[int, int, int]:
    shapes = {caption: tuple(images.shape[:3]) for caption, images in columns.items()}
    if not shapes:
        raise ValueError("a contact sheet needs at least one column, found none")
    first = next(iter(shapes.values()))
    if any(shape != first for shape in shapes.values()):
        listed = ", ".join(f"{caption} {shape}" for caption, shape in shapes.items())
        raise ValueError(f"all columns need one number of views and one size (M, H, W), found {listed}")
    num_rows, height, width = first
    return num_rows, height, width


def _as_bytes(columns: Mapping[str, ColumnImages]) -> dict[str, UInt8[Tensor, "M H W 3"]]:
    """The columns as 8-bit colours, depths on one scale."""
    depths = [images for images in columns.values() if images.ndim == 3]
    limits = inverse_depth_limits(*depths) if depths else (0.0, 1.0)
    return {
        caption: colour_depth(images.detach().cpu().float(), limits)
        if images.ndim == 3
        else (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
        for caption, images in columns.items()
    }
