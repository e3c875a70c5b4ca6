"""Scenes drawn from a seed: a room or an open ground, things on the floor, light and fog.

World frame: the first camera of every path stands at the origin and looks along +z; y points down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from lyra_ns.synthetic.draws import Draws, generator_for
from lyra_ns.synthetic.furniture import INDOOR, OUTDOOR
from lyra_ns.synthetic.layout import HEADROOM, build_open_ground, build_room, camera_reach, furnish
from lyra_ns.synthetic.palette import ScenePalette
from lyra_ns.synthetic.solids import Solid
from lyra_ns.synthetic.textures import TextureBank


@dataclass(frozen=True)
class Lighting:
    """Sun, sky light and fog."""

    sun_direction: tuple[float, float, float]
    """Unit vector towards the sun."""
    ambient: float
    """Share of the light that comes from everywhere, 0 to 1."""
    fog_density: float
    """Fog per unit of length: exp(-density depth) of a surface's colour is left."""
    fog_colour: tuple[float, float, float]
    """Colour of the fog."""


@dataclass(frozen=True)
class ProceduralScene:
    """Everything that decides a scene's images."""

    name: str
    """File stem of its clips."""
    centre_depth: float
    """Distance of the point that the paths look at; path lengths are fractions of it."""
    floor: float
    """y of the floor."""
    solids: list[Solid] = field(repr=False)
    """The scene's solids; the first encloses all."""
    textures: Float[Tensor, "N 3 size size"] = field(repr=False)
    """Textures that the materials name, 0 to 1."""
    lighting: Lighting
    """Light and fog."""
    is_dynamic: bool = False
    """Whether things move."""


def scene_name(index: int, dynamic: bool = False) -> str:
    """Name of scene number `index`."""
    return f"{'dynamic' if dynamic else 'scene'}_{index:06d}"


def make_scene(
    seed: int, index: int, bank: TextureBank, *, held_out: bool = False, dynamic: bool = False
) -> ProceduralScene:
    """Scene number `index` of a seed; held-out ones are papered with the bank's held-out pictures only."""
    name = scene_name(index, dynamic)
    draws = Draws(generator_for("scene", seed, name))
    palette = ScenePalette(draws, bank, held_out)
    centre_depth = draws.uniform(3.0, 5.0)
    cameras = camera_reach(centre_depth)
    floor = cameras[:, 1].max().item() + HEADROOM + draws.uniform(0.0, 0.5)
    indoors = draws.chance(0.6)
    lighting = _draw_lighting(draws, indoors)
    if indoors:
        solids = build_room(draws, palette, cameras, centre_depth, floor)
    else:
        solids = build_open_ground(draws, palette, floor, lighting.fog_colour)
    room, things = (solids[0], INDOOR) if indoors else (None, OUTDOOR)
    solids += furnish(draws, palette, things, cameras, centre_depth, floor, room, dynamic)
    return ProceduralScene(name, centre_depth, floor, solids, palette.textures(), lighting, dynamic)


def _draw_lighting(draws: Draws, indoors: bool) -> Lighting:
    """Light from above and more or less from behind the camera; fog in the colour of the horizon."""
    direction = (draws.uniform(-0.9, 0.9), -1.0, draws.uniform(-0.9, 0.3))
    length = math.sqrt(sum(part * part for part in direction))
    sun = (direction[0] / length, direction[1] / length, direction[2] / length)
    haze = draws.uniform(0.6, 0.85)
    colour = (haze * draws.uniform(0.9, 1.1), haze, haze * draws.uniform(0.95, 1.15))
    if indoors:
        return Lighting(sun, draws.uniform(0.65, 0.85), draws.uniform(0.0, 0.03), (0.6, 0.6, 0.6))
    return Lighting(sun, draws.uniform(0.4, 0.6), draws.uniform(0.03, 0.1), colour)
