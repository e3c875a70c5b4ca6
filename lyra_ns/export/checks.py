"""What every writer of Gaussians demands of them."""

from __future__ import annotations

from dataclasses import fields

import torch

from lyra_ns.gaussians import Gaussians


def require_exportable(gaussians: Gaussians) -> None:
    """ValueError unless this is one non-empty scene of finite numbers with positive scales."""
    if gaussians.means.ndim != 2:
        raise ValueError(
            f"one scene [G, 3] is exported at a time, found means of shape {tuple(gaussians.means.shape)}: "
            "pick one with gaussians.scene(index)"
        )
    if gaussians.num == 0:
        raise ValueError("expected at least one Gaussian to export, found none: lower the prune ratio")
    for field in fields(gaussians):
        values = getattr(gaussians, field.name)
        # The extremes are finite only if all is, and found in one pass.
        if all(bool(torch.isfinite(extreme)) for extreme in values.aminmax()):
            continue
        num_bad = int((~torch.isfinite(values)).reshape(gaussians.num, -1).any(-1).sum())
        raise ValueError(
            f"{num_bad} of {gaussians.num} Gaussians have non-finite {field.name}: "
            "the decoder or its checkpoint is broken, nothing was written"
        )
    if gaussians.scales.amin() <= 0:
        num_flat = int((gaussians.scales <= 0).any(-1).sum())
        raise ValueError(f"{num_flat} of {gaussians.num} Gaussians have a scale that is not positive")
