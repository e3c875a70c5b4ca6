"""The 32-byte .splat layout that light web viewers read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.nn import functional

from lyra_ns.data.files import write_whole
from lyra_ns.export.checks import require_exportable
from lyra_ns.gaussians import Gaussians

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
