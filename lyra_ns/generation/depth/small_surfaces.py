"""Colours and patterns of training scenes.

Shape letters: B scenes, M surfaces of a scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lyra_ns.generation.depth.small_backdrop import (
    FIRST_GROUP_SURFACE,
    GROUND_SURFACE,
    HILL_SURFACE,
    NUM_HILLS,
    ROOM_SURFACE,
    SKY_SURFACE,
)
from lyra_ns.generation.depth.small_draws import BatchDraws

NATURAL_GROUNDS = (
    (0.25, 0.36, 0.13), (0.42, 0.33, 0.24), (0.38, 0.38, 0.38), (0.72, 0.64, 0.5), (0.85, 0.87, 0.9),
)  # fmt: skip
"""Grass, soil, asphalt, sand and snow."""


@dataclass(frozen=True)
class Surfaces:
    """Surfaces of scenes: colour = tint + mix (texture - 1/2)."""

    texture: Int[Tensor, "B M"]
    """Number of the picture in the bank."""
    mix: Float[Tensor, "B M 9"]
    """Rows of the 3 x 3 matrix."""
    tint: Float[Tensor, "B M 3"]
    tiles: Float[Tensor, "B M"]
    """Repeats per unit of length."""
    offset: Float[Tensor, "B M 2"]


class SurfaceSources:
    """What surfaces are made of, on one device."""

    def __init__(self, textures: list[int], device: torch.device | str) -> None:
        """`textures` are the numbers of the pictures that may be used."""
        self.textures = torch.tensor(textures, device=device)
        self.grounds = torch.tensor(NATURAL_GROUNDS, device=device)


def draw_surfaces(draws: BatchDraws, source: SurfaceSources, count: int) -> Surfaces:
    """Plain, patterned and photographed surfaces of any colour."""
    m = count
    texture = source.textures[draws.integer(len(source.textures), m)]
    contrast = torch.where(draws.chance(0.35, m), draws.uniform(0.0, 0.15, m), draws.uniform(0.2, 1.0, m))
    spread = torch.where(draws.chance(0.5, m), 0.04, draws.uniform(0.08, 0.3, m))[..., None]
    tint = (draws.uniform(0.08, 0.95, m)[..., None] + spread * draws.normal(0.0, 1.0, m, 3)).clamp(0, 1)
    natural = draws.chance(0.25, m)
    contrast, tint = torch.where(natural, 1.0, contrast), torch.where(natural[..., None], 0.5, tint)
    saturation = draws.uniform(0.0, 1.1, m)[..., None, None]
    order = torch.where(natural[..., None], 0.0, draws.uniform(0.0, 1.0, m, 3)).argsort(dim=-1, stable=True)
    mix = saturation * torch.eye(3, device=order.device)[order] + (1 - saturation) / 3
    tiles = draws.log_uniform(0.3, 3.0, m)
    tiles[:, SKY_SURFACE].fill_(0.01)
    tiles[:, GROUND_SURFACE:FIRST_GROUP_SURFACE] *= 0.35
    ground = source.grounds[draws.integer(len(NATURAL_GROUNDS), 1 + NUM_HILLS)]
    for k, slot in enumerate((GROUND_SURFACE, *range(HILL_SURFACE, FIRST_GROUP_SURFACE))):
        is_natural = draws.chance(0.6)
        tint[:, slot] = torch.where(is_natural[:, None], ground[:, k], tint[:, slot])
        contrast[:, slot] *= torch.where(is_natural, 0.4, 1.0)
    # Floors, walls and ceilings are quieter than things.
    contrast[:, ROOM_SURFACE : ROOM_SURFACE + 6] *= draws.uniform(0.1, 0.8)[:, None]
    return Surfaces(
        texture, (contrast[..., None, None] * mix).flatten(-2), tint, tiles, draws.uniform(0.0, 2.0, m, 2)
    )
