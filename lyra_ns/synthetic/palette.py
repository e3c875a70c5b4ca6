"""The surfaces of one scene: draws materials and remembers how their textures are made."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.synthetic.draws import Draws
from lyra_ns.synthetic.patterns import fractal_noise
from lyra_ns.synthetic.solids import Material
from lyra_ns.synthetic.textures import TextureBank, TextureRecipe, cook_textures, draw_recipe, faded

TEXTURE_SIZE = 128
"""Side of a scene's textures, in texels."""


class ScenePalette:
    """Draws surfaces from one split of a bank; `textures` are what the materials' numbers mean."""

    def __init__(self, draws: Draws, bank: TextureBank, held_out: bool) -> None:
        self.draws = draws
        self._bank = bank
        self._photographs = bank.indices(held_out, photographs=True)
        self._patterns = bank.indices(held_out, photographs=False)
        self._recipes: list[TextureRecipe] = []
        self._painted: dict[int, Tensor] = {}
        self._quiet: list[int] = []

    def surface(self) -> Material:
        """A photograph or a pattern, repeated; toned down, as surfaces of the real world mostly are."""
        source = self.draws.choice(self._photographs if self.draws.chance(0.5) else self._patterns)
        slot = self._slot(faded(draw_recipe(self.draws, source), self.draws.uniform(0.45, 0.9)))
        offset = (self.draws.uniform(0.0, 2.0), self.draws.uniform(0.0, 2.0))
        return Material((slot,), self.draws.uniform(0.5, 1.1), offset)

    def quiet(self) -> Material:
        """A surface of small contrast; few textures, used again."""
        if not self._quiet or (len(self._quiet) < 3 and self.draws.chance(0.5)):
            recipe = draw_recipe(self.draws, self.draws.choice(self._patterns))
            self._quiet.append(self._slot(faded(recipe, 0.35)))
        return Material((self.draws.choice(self._quiet),), self.draws.uniform(0.8, 1.6))

    def picture(self) -> Material:
        """A photograph, shown once on each face."""
        source = self.draws.choice(self._photographs)
        return Material((self._slot(draw_recipe(self.draws, source, natural=True)),), repeats=(1.0, 1.0))

    def wide(self) -> int:
        """Texture of a floor or a wall: mostly patterns, always of small contrast."""
        photograph = self.draws.chance(0.25)
        recipe = draw_recipe(
            self.draws, self.draws.choice(self._photographs if photograph else self._patterns),
            natural=self.draws.chance(0.6),
        )  # fmt: skip
        return self._slot(faded(recipe, self.draws.uniform(0.2, 0.55)))

    def sky(self, horizon: tuple[float, float, float]) -> int:
        """Texture of a sky: from `horizon` at the bottom to a zenith colour, with clouds and hills."""
        image = paint_sky(self.draws, horizon, TEXTURE_SIZE)
        slot = self._slot(TextureRecipe(self._photographs[0], (0.0, 0.0, 1.0), ((1.0, 0.0, 0.0),) * 3))
        self._painted[slot] = image
        return slot

    def textures(self) -> Float[Tensor, "N 3 size size"]:
        """All textures drawn so far, 0 to 1."""
        cooked = cook_textures(self._bank, self._recipes, TEXTURE_SIZE)
        for slot, image in self._painted.items():
            cooked[slot] = image
        return cooked

    def _slot(self, recipe: TextureRecipe) -> int:
        """Number of the recipe's texture."""
        self._recipes.append(recipe)
        return len(self._recipes) - 1


def paint_sky(draws: Draws, horizon: tuple[float, float, float], size: int) -> Float[Tensor, "3 size size"]:
    """A sky whose first row is the horizon and whose last row is the zenith."""
    low = torch.tensor(horizon)[:, None, None]
    high = torch.tensor([draws.uniform(0.15, 0.5), draws.uniform(0.35, 0.6), draws.uniform(0.6, 0.95)])
    height = torch.linspace(0, 1, size)[:, None].expand(size, size)
    sky = low + (high[:, None, None] - low) * height.sqrt()
    cover = fractal_noise(draws, size, coarsest=draws.integer(3, 6), persistence=0.6)
    clouds = ((cover - draws.uniform(0.45, 0.7)) * 3).clamp(0, 0.9) * (height * 4).clamp(max=1)
    sky = sky + (0.95 - sky) * clouds
    ridge = draws.uniform(0.0, 0.3) * fractal_noise(draws, size, coarsest=4)[0]
    hills = ((ridge - height) * size / 2).clamp(0, 1) * (height * 12).clamp(max=1)
    shade = 0.55 * low + 0.45 * torch.tensor([draws.uniform(0.05, 0.5) for _ in range(3)])[:, None, None]
    return sky + (shade - sky) * hills
