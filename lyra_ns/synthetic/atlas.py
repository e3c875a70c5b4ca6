"""All textures of a scene with their mipmaps in one image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TextureAtlas:
    """One image: a grid of tiles, each a texture beside the column of its smaller levels."""

    image: Float[Tensor, "1 3 rows columns"]
    """The packed textures."""
    size: int
    """Side of the largest level, in texels."""
    tiles_across: int
    """Tiles in a row."""
    num_levels: int
    """Mipmap levels, each half the size of the one before."""

    def sample(
        self, texture: Float[Tensor, "F h w"], u: Tensor, v: Tensor, level: Tensor
    ) -> Float[Tensor, "3 F h w"]:
        """Colours of textures at (u, v) in tiles, mirrored beyond 0..1, from the level nearest to `level`."""
        u, v = ((x - 2 * torch.round(0.5 * x)).abs_() for x in (u, v))
        row = torch.floor((texture + 0.5) / self.tiles_across)
        column = texture - row * self.tiles_across
        level = torch.round(level.clamp(0, self.num_levels - 1))
        side = self.size * torch.exp2(-level)
        below = level.clamp_(max=1)
        # Level 0 fills the left of a tile; level k stands to its right, from size - 2 side downwards.
        left = column * (1.5 * self.size) + below * self.size
        top = row * self.size + below * (self.size - 2 * side)
        last = side - 0.5
        x = left + torch.minimum((u * side).clamp_(min=0.5), last)
        y = top + torch.minimum((v * side).clamp_(min=0.5), last)
        rows, columns = self.image.shape[-2:]
        grid = torch.stack([x * (2 / columns) - 1, y * (2 / rows) - 1], -1)
        flat = grid.flatten(0, 1)[None]
        colours = functional.grid_sample(self.image, flat, align_corners=False, padding_mode="border")
        return colours[0].unflatten(1, u.shape[:2])


def level_dither(supersampling: int, level: Float[Tensor, "F h w"]) -> Float[Tensor, "h w"]:
    """Offsets to the level of each sample whose mean over a pixel is 0.

    The samples of a pixel so blend two levels between them, as trilinear filtering does for twice the price.
    """
    count = supersampling**2
    offsets = (torch.arange(count, device=level.device, dtype=level.dtype) + 0.5) / count - 0.5
    height, width = level.shape[-2:]
    return offsets.view(supersampling, supersampling).repeat(height // supersampling, width // supersampling)


def build_atlas(textures: Float[Tensor, "N 3 size size"]) -> TextureAtlas:
    """The atlas of textures whose side is a power of two."""
    count, _, size, _ = textures.shape
    tiles_across = max(1, round(math.sqrt(count / 1.5)))
    tiles_down = math.ceil(count / tiles_across)
    num_levels = int(math.log2(size))
    image = textures.new_zeros(tiles_down, tiles_across, 3, size, size * 3 // 2)
    tiles = image.flatten(0, 1)
    tiles[:count, :, :, :size] = textures
    level, top = textures, 0
    for _ in range(1, num_levels):
        level = functional.avg_pool2d(level, 2)
        side = level.shape[-1]
        tiles[:count, :, top : top + side, size : size + side] = level
        top += side
    packed = image.permute(2, 0, 3, 1, 4).reshape(1, 3, tiles_down * size, tiles_across * size * 3 // 2)
    return TextureAtlas(packed.contiguous(), size, tiles_across, num_levels)
