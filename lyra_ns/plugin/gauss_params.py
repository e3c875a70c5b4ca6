"""Our Gaussians in the spaces that nerfstudio's viewer and exporter read.

Source: docs/reference/nerfstudio.md, "The exporter's contract".
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import NERFSTUDIO_WORLD_FROM_OPENCV_WORLD
from lyra_ns.gaussians import Gaussians

SH_C0 = 0.28209479177387814
"""Value of the constant spherical harmonic."""
SMALLEST_SCALE = 1e-8
"""Scales are kept above it before their logarithm is taken."""
OPACITY_MARGIN = 1e-6
"""Opacities are kept this far from 0 and 1 before their logit is taken."""


def without_invalid(gaussians: Gaussians) -> Gaussians:
    """The Gaussians [G] without those that hold a NaN or an infinity.

    One of them would make ns-export drop the whole scene.
    """
    fields = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities[:, None], gaussians.rgb]
    valid = torch.cat(fields, -1).isfinite().all(-1)
    return gaussians if bool(valid.all()) else gaussians.select(valid.nonzero()[:, 0])


def nothing_to_show(device: torch.device) -> Gaussians:
    """One invisible Gaussian, for where there is no scene: neither renderer nor viewer takes an empty set."""
    zeros = torch.zeros(1, 3, device=device)
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device)
    return Gaussians(zeros, quats, zeros + SMALLEST_SCALE, zeros[:, 0], zeros)


def splatfacto_params(gaussians: Gaussians) -> dict[str, Float[Tensor, "G ..."]]:
    """means, scales (log), quats, features_dc (SH), features_rest and opacities (logit) in the z-up world."""
    world = torch.tensor(NERFSTUDIO_WORLD_FROM_OPENCV_WORLD)
    placed = gaussians.transform(world)
    opacities = placed.opacities.clamp(OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    return {
        "means": placed.means,
        "scales": placed.scales.clamp(min=SMALLEST_SCALE).log(),
        "quats": placed.quats,
        "features_dc": (placed.rgb - 0.5) / SH_C0,
        "features_rest": placed.rgb.new_zeros(placed.num, 0, 3),
        "opacities": opacities.logit()[:, None],
    }
