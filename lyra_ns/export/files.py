"""Gaussians to and from files, whose kind is the ending: .ply, .splat or .html.

.splat is the layout of 32 bytes per Gaussian that light web viewers read.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from lyra_ns.cameras import CameraPath
from lyra_ns.data.atomic import write_whole
from lyra_ns.export.html import save_html
from lyra_ns.export.ply import load_ply, require_exportable, save_ply
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering.types import Response

SPLAT_ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])
"""One Gaussian: centre, standard deviations, colour with opacity, rotation (w x y z as 128 + 128 q)."""


def save_splat(gaussians: Gaussians, path: Path) -> None:
    """Write one scene [G] as .splat, the largest and most opaque first so that a stream looks right early.

    ValueError if there is nothing to write or a number is not finite; the file appears whole or not at all.
    """
    require_exportable(gaussians)
    gaussians = gaussians.detach().to("cpu")
    importance = gaussians.opacities * gaussians.scales.prod(-1)
    gaussians = gaussians.select(importance.argsort(descending=True, stable=True))
    rows = np.empty(gaussians.num, SPLAT_ROW)
    rows["mean"] = gaussians.means.numpy()
    rows["scale"] = gaussians.scales.numpy()
    rows["rgba"][:, :3] = (gaussians.rgb.clamp(0, 1) * 255).round().numpy()
    rows["rgba"][:, 3] = (gaussians.opacities.clamp(0, 1) * 255).round().numpy()
    unit = functional.normalize(gaussians.quats, dim=-1)
    rows["quat"] = (unit * 128 + 128).round().clamp(0, 255).numpy()
    write_whole(path, rows.tobytes())


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
