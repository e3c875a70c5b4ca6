"""One web page that holds a scene and draws it: no server, no network, no foreign code.

Each Gaussian is packed into six 32-bit words: centre x, y, z as float32; red, green, blue and opacity as
bytes; three logarithms of scales, ten bits each, over the range of the scene; and the three smaller parts of
the rotation, ten bits each, with two bits for which part was left out.
"""

from __future__ import annotations

import base64
import html
import json
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt32
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, project
from lyra_ns.data.atomic import write_whole
from lyra_ns.export.ply import require_exportable
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering.types import Response

SCRIPTS = ("viewer_camera.js", "viewer_splats.js", "viewer.js")
"""Our viewer, in the order in which its parts are joined."""

TEN_BITS = 1023
"""Largest ten-bit number."""

DEFAULT_MAX_SPLATS = 200_000
"""Keeps a page under 8 MB (32 bytes for each splat in base64)."""


def save_html(
    gaussians: Gaussians,
    path: Path,
    reference: CameraPath,
    title: str = "Lyra",
    max_splats: int = DEFAULT_MAX_SPLATS,
    response: Response = "ray3d",
    sway_radians: float = 0.06,
) -> int:
    """Number of splats in the page written to `path`, which starts at the single camera `reference`.

    The scene [G] keeps its `max_splats` most opaque Gaussians. The view orbits the median depth that the
    reference camera sees, and sways by `sway_radians` until it is touched. `response` should be the one that
    the scene was made for (see RenderSettings). The page sets window.lyra = {ready, error, numSplats} for
    tests; "#still" after its address stops the sway.
    """
    require_exportable(gaussians)
    if reference.shape != ():
        raise ValueError(f"the page starts at one camera, found cameras of shape {tuple(reference.shape)}")
    if max_splats < 1:
        raise ValueError(f"a page needs at least one splat, found max_splats = {max_splats}")
    num_found = gaussians.num
    gaussians = _most_opaque(gaussians.detach().to("cpu"), max_splats)
    reference = reference.to("cpu")
    words, smallest, step = pack_splats(gaussians)
    count = (
        f"{gaussians.num:,} splats"
        if gaussians.num == num_found
        else f"{gaussians.num:,} of {num_found:,} splats"
    )
    scene = {
        "logScale": [smallest, step],
        "alongRay": response == "ray3d",
        "rotation": reference.camera_to_world[:3, :3].tolist(),
        "centre": reference.camera_to_world[:3, 3].tolist(),
        "depth": centre_depth(gaussians, reference),
        "intrinsics": reference.intrinsics.tolist(),
        "width": reference.width,
        "height": reference.height,
        "sway": sway_radians,
    }
    page = _fill(
        {
            "title": html.escape(title),
            "count": count,
            "scene": json.dumps(scene),
            "splats": base64.b64encode(words.tobytes()).decode("ascii"),
        }
    )
    write_whole(path, page.encode("utf-8"))
    return gaussians.num


def centre_depth(gaussians: Gaussians, camera: CameraPath) -> float:
    """Median z-depth of the Gaussians inside the image of one camera; a good pivot to orbit around."""
    pixels, depth = project(gaussians.means, camera)
    size = pixels.new_tensor([camera.width, camera.height])
    is_seen = (depth > 0) & (pixels >= 0).all(-1) & (pixels <= size).all(-1) & (gaussians.opacities > 0.05)
    if not is_seen.any():
        raise ValueError(
            "the reference camera sees none of the Gaussians: are both in the frame of one camera?"
        )
    return float(depth[is_seen].median())


def pack_splats(gaussians: Gaussians) -> tuple[UInt32[np.ndarray, "G 6"], float, float]:
    """Six words for each Gaussian, the smallest logarithm of a scale, and the step between two of them."""
    log_scales = gaussians.scales.double().log()
    smallest = float(log_scales.min())
    step = max(float(log_scales.max()) - smallest, 1e-6) / TEN_BITS
    rgba = torch.cat([gaussians.rgb, gaussians.opacities[:, None]], -1).clamp(0, 1)
    words = np.empty((gaussians.num, 6), np.uint32)
    words[:, :3] = gaussians.means.float().contiguous().numpy().astype("<f4").view(np.uint32)
    words[:, 3] = _join((rgba * 255).round(), bits=8)
    words[:, 4] = _join(((log_scales - smallest) / step).round(), bits=10)
    words[:, 5] = _pack_rotations(gaussians.quats)
    return words.astype("<u4", copy=False), smallest, step


def _pack_rotations(quats: Float[Tensor, "G 4"]) -> UInt32[np.ndarray, " G"]:
    """The three smaller parts in ten bits each, the index of the largest (made positive) in the top two."""
    unit = functional.normalize(quats.double(), dim=-1)
    largest = unit.abs().argmax(-1, keepdim=True)
    unit = unit * torch.where(unit.gather(-1, largest) < 0, -1.0, 1.0)
    is_kept = torch.arange(4) != largest
    small = unit[is_kept].reshape(-1, 3)
    packed = _join(((small * 2**-0.5 + 0.5) * TEN_BITS).round(), bits=10)
    return packed | (largest[:, 0].numpy().astype(np.uint32) << 30)


def _join(columns: Float[Tensor, "G k"], bits: int) -> UInt32[np.ndarray, " G"]:
    """Whole numbers side by side in one word, the first in the lowest bits."""
    numbers = columns.numpy().astype(np.uint32)
    joined = np.zeros(len(numbers), np.uint32)
    for position in range(numbers.shape[1]):
        joined |= numbers[:, position] << np.uint32(bits * position)
    return joined


def _most_opaque(gaussians: Gaussians, max_splats: int) -> Gaussians:
    if gaussians.num <= max_splats:
        return gaussians
    order = gaussians.opacities.argsort(descending=True, stable=True)
    return gaussians.select(order[:max_splats])


def _fill(parts: dict[str, str]) -> str:
    """The page: our template, split at its placeholders so that no part is searched for further ones."""
    folder = resources.files("lyra_ns.export")
    parts = {**parts, "script": "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)}
    first, *pieces = (folder / "viewer.html").read_text(encoding="utf-8").split("{{")
    page = [first]
    for piece in pieces:
        name, rest = piece.split("}}", 1)
        page += [parts[name], rest]
    return "".join(page)
