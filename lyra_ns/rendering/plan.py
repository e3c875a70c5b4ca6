"""How many views are drawn together, and whether they are drawn again in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from lyra_ns.rendering.types import RenderSettings

TILES_PER_GAUSSIAN = 6
"""Tiles of 16 x 16 pixels that a Gaussian touches in a view, generously."""
KEPT_BYTES_PER_GAUSSIAN = 52 + 4 * TILES_PER_GAUSSIAN
"""What the rasterizer keeps for each Gaussian of each view: colours, projection, entries of tile lists."""
PASSING_BYTES_PER_GAUSSIAN = 16 + 24 * TILES_PER_GAUSSIAN
"""What it needs beside that while it draws: gradients of colours, both buffers of the sort."""
KEPT_BYTES_PER_PIXEL = 64
"""Colour, depth, transmittance and what is made of them."""
PASSING_BYTES_PER_PIXEL = 48
"""Their gradients."""
SHARE_OF_FREE_MEMORY = 0.6
"""Part of the free memory that renders may take; losses on them need the rest."""


@dataclass(frozen=True)
class RenderPlan:
    """One way through all views."""

    views_at_once: int
    """Views in one call of the rasterizer."""
    redraws: bool
    """Whether each call is repeated in the backward pass in place of keeping what it needs."""


@dataclass(frozen=True)
class RenderSize:
    """What the memory of a render depends on."""

    num_gaussians: int
    """Gaussians of all scenes."""
    num_views: int
    """Views of one scene."""
    num_pixels: int
    """Pixels of one view of every scene."""

    def kept_bytes(self, needs_gradient: bool) -> int:
        """Estimate of what stays of one view until the backward pass, or of its images without one."""
        of_gaussians = KEPT_BYTES_PER_GAUSSIAN * self.num_gaussians if needs_gradient else 0
        return of_gaussians + KEPT_BYTES_PER_PIXEL * self.num_pixels

    def passing_bytes(self, needs_gradient: bool) -> int:
        """Estimate of what drawing one view takes beside that, for as long as it lasts."""
        per_gaussian = PASSING_BYTES_PER_GAUSSIAN + (0 if needs_gradient else KEPT_BYTES_PER_GAUSSIAN)
        return per_gaussian * self.num_gaussians + PASSING_BYTES_PER_PIXEL * self.num_pixels


def plan_render(
    settings: RenderSettings, size: RenderSize, needs_gradient: bool, free_bytes: int | None
) -> RenderPlan:
    """The plan that `settings` name; for auto the fastest that fits `free_bytes`.

    In falling order of speed: all views together, groups that are kept, groups that are drawn again. All
    together where `free_bytes` is not known.
    """
    num_views, asked = max(size.num_views, 1), settings.views_at_once
    if isinstance(asked, int):
        return RenderPlan(min(asked, num_views), needs_gradient and asked < num_views)
    if asked is None or free_bytes is None:
        return RenderPlan(num_views, False)
    budget = int(SHARE_OF_FREE_MEMORY * free_bytes)
    kept, passing = size.kept_bytes(needs_gradient), max(size.passing_bytes(needs_gradient), 1)
    group = (budget - kept * num_views) // passing
    if group >= 1:
        return RenderPlan(min(group, num_views), False)
    images = size.kept_bytes(needs_gradient=False) * num_views
    return RenderPlan(max(1, min((budget - images) // (kept + passing), num_views)), needs_gradient)
