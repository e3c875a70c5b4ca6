"""Gaussians to and from files, whose kind is the ending: .ply, .splat or .html."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from lyra_ns.cameras import CameraPath
from lyra_ns.export.html import save_html
from lyra_ns.export.ply import load_ply, save_ply
from lyra_ns.export.splat import save_splat
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering.types import Response

SUFFIXES = (".ply", ".splat", ".html")
"""Kinds of files that are written."""
PAGE_SIZE = (720, 1280)
"""Height and width of the view of a page that starts at no known camera."""
PAGE_FOV = math.radians(60.0)
"""Its horizontal field of view."""


def save_gaussians(
    gaussians: Gaussians,
    path: str | Path,
    camera: CameraPath | None = None,
    title: str = "Lyra",
    response: Response = "ewa",
) -> Path:
    """The path of the file to which one scene [G] was written, whole or not at all.

    `camera`, `title` and `response` are for a page: the single camera at which it starts (in the frame of the
    Gaussians; by default one at the origin that looks along +z), its title, and how its Gaussians answer
    pixels. ValueError for another ending, and for Gaussians that cannot be written.
    """
    path = Path(path).expanduser()
    check_suffix(path)
    if path.suffix == ".html":
        save_html(gaussians, path, front_camera() if camera is None else camera, title, response=response)
    elif path.suffix == ".splat":
        save_splat(gaussians, path)
    else:
        save_ply(gaussians, path)
    return path


def load_gaussians(path: str | Path) -> Gaussians:
    """The Gaussians [G] of a 3DGS PLY, ours or any trainer's, on the CPU.

    FileNotFoundError or ValueError say what is wrong with the file.
    """
    path = Path(path).expanduser()
    if path.suffix != ".ply":
        raise ValueError(
            f"Gaussians are read from a .ply alone, found {path.name!r}: the other kinds round them, so give "
            "the PLY of the same scene"
        )
    return load_ply(path)


def check_suffix(path: Path) -> None:
    """ValueError if the ending is that of no kind of file that is written."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a file of Gaussians must end in {', '.join(SUFFIXES)}, found {path.name!r}")


def front_camera() -> CameraPath:
    """One camera at the origin that looks along +z."""
    height, width = PAGE_SIZE
    focal = width / 2 / math.tan(PAGE_FOV / 2)
    intrinsics = torch.tensor([focal, focal, width / 2, height / 2])
    return CameraPath(torch.eye(4), intrinsics, torch.tensor(0.0), height, width)
