"""Scenes drawn from a seed: a room or an open ground, things clear of every camera, surfaces, light, fog.

World frame: the first camera of every path stands at the origin and looks along +z; y points down. Things are
groups of solids that are drawn standing on the floor (y = 0, up is -y) about the origin. The surfaces of a
scene remember how their textures are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.camera_paths import TRAJECTORIES, camera_offsets
from lyra_ns.draws import Draws, generator_for
from lyra_ns.synthetic.solids import Material, Motion, Shape, Solid
from lyra_ns.synthetic.textures import (
    TextureBank,
    TextureRecipe,
    cook_textures,
    draw_recipe,
    faded,
    fractal_noise,
)

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


@runtime_checkable
class Palette(Protocol):
    """Where things take their surfaces from."""

    def surface(self) -> Material:
        """A surface of any kind, repeated."""
        ...

    def quiet(self) -> Material:
        """A surface of small contrast."""
        ...

    def picture(self) -> Material:
        """A photograph, shown once on each face."""
        ...


Thing = Callable[[Draws, Palette, float], list[Solid]]
"""Makes a group of solids about `size` across."""


def box(
    material: Material, size: tuple[float, float, float], bottom: float = 0.0,
    at: tuple[float, float] = (0.0, 0.0), yaw: float = 0.0,
) -> Solid:  # fmt: skip
    """A box of full `size` (x, y, z) whose underside lies `bottom` above the floor."""
    half = (size[0] / 2, size[1] / 2, size[2] / 2)
    return Solid(Shape.BOX, (at[0], -bottom - half[1], at[1]), half, material, yaw=yaw)


def frustum(
    material: Material, radius: float, height: float, bottom: float = 0.0,
    at: tuple[float, float] = (0.0, 0.0), taper: float = 1.0,
) -> Solid:  # fmt: skip
    """An upright frustum of base `radius`."""
    centre = (at[0], -bottom - height / 2, at[1])
    return Solid(Shape.FRUSTUM, centre, (radius, height / 2, radius), material, taper=taper)


def ball(
    material: Material, radius: float, bottom: float = 0.0, at: tuple[float, float] = (0.0, 0.0),
    flatness: float = 1.0, yaw: float = 0.0, tilt: float = 0.0,
) -> Solid:  # fmt: skip
    """A ball, or an upright ellipsoid `flatness` times as high as wide (tilted balls must be round)."""
    half = (radius, radius * flatness, radius)
    return Solid(Shape.ELLIPSOID, (at[0], -bottom - half[1], at[1]), half, material, yaw=yaw, tilt=tilt)


def crates(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """One to three boxes on top of each other, each turned."""
    solids, bottom, side = [], 0.0, size * draws.uniform(0.7, 1.0)
    for _ in range(draws.integer(1, 3)):
        height = side * draws.uniform(0.5, 1.1)
        material = palette.picture() if draws.chance(0.3) else palette.surface()
        depth = side * draws.uniform(0.7, 1.0)
        solids.append(box(material, (side, height, depth), bottom, yaw=draws.uniform(0.0, math.pi)))
        bottom, side = bottom + height, side * draws.uniform(0.55, 0.75)
    return solids


def balls(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A large ball, and sometimes a small one beside it."""
    yaw, tilt = draws.uniform(0.0, 6.28), draws.uniform(-1.0, 1.0)
    solids = [ball(palette.surface(), size * draws.uniform(0.4, 0.5), yaw=yaw, tilt=tilt)]
    if draws.chance(0.5):
        radius = size * draws.uniform(0.15, 0.25)
        solids.append(
            ball(palette.surface(), radius, at=(size * 0.6 * draws.sign(), -size * 0.4), yaw=yaw, tilt=tilt)
        )
    return solids


def pillar(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A column on a plinth, with something on top."""
    height, stone = size * draws.uniform(1.1, 1.7), palette.surface()
    solids = [box(palette.quiet(), (size * 0.62, size * 0.14, size * 0.62))]
    solids.append(frustum(stone, size * 0.22, height, size * 0.14, taper=draws.uniform(0.75, 1.0)))
    top = size * 0.14 + height
    if draws.chance(0.5):
        solids.append(ball(palette.surface(), size * draws.uniform(0.2, 0.3), top))
    else:
        solids.append(box(palette.quiet(), (size * 0.55, size * 0.1, size * 0.55), top))
    return solids


def cone(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A cone on a slab."""
    height = size * draws.uniform(0.8, 1.4)
    slab = box(palette.quiet(), (size * 0.9, size * 0.08, size * 0.9))
    taper = draws.choice([0.0, 0.12, 0.5])
    return [slab, frustum(palette.surface(), size * 0.4, height, size * 0.08, taper=taper)]


def table(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A table with four legs and a thing or two on it."""
    width, depth, height = size * 1.3, size * draws.uniform(0.7, 1.0), size * draws.uniform(0.55, 0.75)
    legs, round_legs = palette.quiet(), draws.chance(0.5)
    solids = [box(palette.surface(), (width, size * 0.07, depth), height)]
    for x in (-0.45 * width, 0.45 * width):
        for z in (-0.42 * depth, 0.42 * depth):
            leg = frustum(legs, size * 0.04, height, at=(x, z))
            solids.append(leg if round_legs else box(legs, (size * 0.07, height, size * 0.07), at=(x, z)))
    top = height + size * 0.07
    solids.append(_trinket(draws, palette, size * 0.36, top, (-0.25 * width, 0.1 * depth)))
    if draws.chance(0.7):
        solids.append(_trinket(draws, palette, size * 0.28, top, (0.22 * width, -0.1 * depth)))
    return solids


def chair(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A chair: seat, back and four legs."""
    wood, side, seat = palette.quiet(), size * 0.7, size * 0.5
    solids = [box(palette.surface(), (side, size * 0.08, side), seat)]
    back_height = size * draws.uniform(0.5, 0.8)
    solids.append(
        box(palette.surface(), (side, back_height, size * 0.07), seat + size * 0.08, at=(0.0, side * 0.45))
    )
    for x in (-0.43 * side, 0.43 * side):
        for z in (-0.43 * side, 0.43 * side):
            solids.append(box(wood, (size * 0.07, seat, size * 0.07), at=(x, z)))
    return solids


def shelf(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A bookcase with a thing on most boards."""
    width, depth, height, wood = size * 1.1, size * 0.4, size * draws.uniform(1.3, 1.7), palette.quiet()
    solids = [box(wood, (size * 0.06, height, depth), at=(x, 0.0)) for x in (-width / 2, width / 2)]
    solids.append(box(palette.surface(), (width, height, size * 0.04), at=(0.0, depth / 2)))
    for level in range(3):
        bottom = height * level / 2.4 + size * 0.05
        solids.append(box(wood, (width, size * 0.05, depth), bottom))
        if draws.chance(0.8):
            at = (width * draws.uniform(-0.3, 0.3), -depth * 0.1)
            solids.append(_trinket(draws, palette, size * 0.32, bottom + size * 0.05, at))
    return solids


def lamp(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A standing lamp: foot, pole and shade."""
    height, metal = size * draws.uniform(1.2, 1.8), palette.quiet()
    shade = size * draws.uniform(0.28, 0.4)
    return [
        frustum(metal, size * 0.25, size * 0.06),
        frustum(metal, size * 0.035, height),
        frustum(palette.surface(), shade, size * 0.45, height - size * 0.1, taper=draws.uniform(0.35, 0.8)),
    ]


def tree(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A trunk with a crown of cones or of balls."""
    trunk = size * draws.uniform(0.4, 0.7)
    solids, leaves = [frustum(palette.quiet(), size * 0.1, trunk * 1.2, taper=0.8)], palette.surface()
    if draws.chance(0.5):
        for level in range(3):
            radius = size * (0.5 - 0.12 * level)
            solids.append(frustum(leaves, radius, size * 0.6, trunk + size * 0.33 * level, taper=0.0))
        return solids
    solids.append(ball(leaves, size * 0.48, trunk, flatness=draws.uniform(0.8, 1.2)))
    solids.append(ball(leaves, size * 0.32, trunk + size * 0.1, at=(size * 0.36, -size * 0.1)))
    solids.append(ball(leaves, size * 0.3, trunk + size * 0.35, at=(-size * 0.3, size * 0.1)))
    return solids


def arch(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """Two posts and a lintel."""
    width, height, stone = size * draws.uniform(0.9, 1.3), size * draws.uniform(0.9, 1.4), palette.surface()
    side = size * 0.24
    posts = [box(stone, (side, height, side), at=(x, 0.0)) for x in (-width / 2, width / 2)]
    return [*posts, box(palette.surface(), (width + side * 1.4, side, side * 1.2), height)]


def stairs(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """Three or four steps, with a ball or box on the highest."""
    count, step, width, stone = (
        draws.integer(3, 4),
        size * 0.24,
        size * draws.uniform(0.8, 1.2),
        palette.surface(),
    )
    solids = [
        box(stone, (width, step * (level + 1), step), at=(0.0, step * (level - count / 2)))
        for level in range(count)
    ]
    at = (width * draws.uniform(-0.2, 0.2), step * (count / 2 - 1))
    return [*solids, _trinket(draws, palette, step * 1.1, step * count, at)]


def figure(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """Balls on top of each other with a hat, as a snowman."""
    radius, bottom, solids = size * 0.36, 0.0, []
    for _ in range(3):
        solids.append(ball(palette.surface(), radius, bottom, yaw=draws.uniform(0.0, 6.28)))
        bottom, radius = bottom + 1.75 * radius, radius * 0.74
    hat, brim = palette.quiet(), bottom + 0.12 * radius
    solids.append(frustum(hat, radius * 1.3, size * 0.04, brim))
    solids.append(frustum(hat, radius * 0.85, size * draws.uniform(0.15, 0.3), brim, taper=0.9))
    return solids


def _trinket(draws: Draws, palette: Palette, size: float, bottom: float, at: tuple[float, float]) -> Solid:
    """A small box, ball, vase or framed picture."""
    kind = draws.integer(0, 3)
    if kind == 0:
        sides = (
            size * draws.uniform(0.5, 1.0),
            size * draws.uniform(0.4, 1.0),
            size * draws.uniform(0.5, 0.8),
        )
        return box(palette.surface(), sides, bottom, at, yaw=draws.uniform(0.0, math.pi))
    if kind == 1:
        return ball(palette.surface(), size * 0.42, bottom, at, yaw=draws.uniform(0.0, 6.28))
    if kind == 2:
        taper = draws.uniform(0.4, 1.0)
        return frustum(palette.surface(), size * 0.35, size * draws.uniform(0.7, 1.2), bottom, at, taper)
    return box(palette.picture(), (size, size, size * 0.1), bottom, at, yaw=draws.uniform(-0.5, 0.5))


INDOOR: tuple[Thing, ...] = (
    crates, balls, pillar, cone, table, table, chair, shelf, lamp, stairs, figure,
)  # fmt: skip
"""Things of rooms."""
OUTDOOR: tuple[Thing, ...] = (crates, balls, pillar, cone, tree, tree, tree, arch, stairs, figure, table)
"""Things of open grounds."""


CLEARANCE = 1.25
"""Least distance between a camera and any thing or wall."""
HEADROOM = 1.0
"""Least distance between a camera and the floor or the ceiling."""
SKY_DISTANCE = 12.0
"""Distance of the sky from the first camera."""
TRIES = 24
"""Places tried for a thing before it is left out."""
PICTURE_THICKNESS = 0.04
"""Thickness of pictures and rugs."""


def camera_reach(centre_depth: float) -> Float[Tensor, "N 3"]:
    """Camera positions that bound all paths: the longest of the six, and points between them."""
    longest = [
        camera_offsets(k, trajectory.distance_range[1], 17, centre_depth)[::2]
        for k, trajectory in enumerate(TRAJECTORIES)
    ]
    ends = torch.stack([path[-1] for path in longest[:5]])
    between = (ends[:, None] + ends[None]).flatten(0, 1) / 2
    return torch.cat([*longest, between]).float()


def build_room(
    draws: Draws, palette: ScenePalette, cameras: Float[Tensor, "N 3"], centre_depth: float, floor: float
) -> list[Solid]:
    """A room turned about the vertical axis, with pictures on its walls and sometimes a rug."""
    yaw = draws.uniform(-0.6, 0.6) if draws.chance(0.75) else 0.0
    cosine, sine = math.cos(yaw), math.sin(yaw)
    across = cosine * cameras[:, 0] - sine * cameras[:, 2]
    along = sine * cameras[:, 0] + cosine * cameras[:, 2]
    left = across.min().item() - CLEARANCE - draws.uniform(0.2, 2.0)
    right = across.max().item() + CLEARANCE + draws.uniform(0.2, 2.0)
    front = along.min().item() - CLEARANCE - 0.5
    back = cosine * centre_depth + draws.uniform(1.0, 3.5)
    top = cameras[:, 1].min().item() - HEADROOM - draws.uniform(0.0, 0.8)
    middle = ((left + right) / 2, (top + floor) / 2, (front + back) / 2)
    half = ((right - left) / 2, (floor - top) / 2, (back - front) / 2)
    side, far = palette.wide(), palette.wide()
    if draws.chance(0.5):
        far = side
    slots = (side, side, palette.wide(), palette.wide(), side, far)
    offset = (draws.uniform(0.0, 2.0), draws.uniform(0.0, 2.0))
    material = Material(slots, draws.uniform(0.25, 0.6), offset)
    room = Solid(Shape.BOX, middle, half, material, encloses=True, casts_shadow=False)
    flat = [_wall_picture(draws, palette, room, floor) for _ in range(draws.integer(1, 5))]
    if draws.chance(0.4):
        size = (draws.uniform(0.5, 1.2), PICTURE_THICKNESS / 4, draws.uniform(0.4, 1.0))
        rug = (draws.uniform(-0.8, 0.8), floor, 0.95 * cosine * centre_depth)
        flat.append(Solid(Shape.BOX, rug, size, palette.picture(), casts_shadow=False))
    return [solid.moved((0.0, 0.0, 0.0), yaw, None) for solid in (room, *flat)]


def build_open_ground(
    draws: Draws, palette: ScenePalette, floor: float, horizon: tuple[float, float, float]
) -> list[Solid]:
    """A ground that reaches to the foot of a painted sky."""
    sky = Material(
        (palette.sky(horizon),), repeats=(3.0, 2.5), offset=(draws.uniform(0.0, 2.0), 0.0), emissive=True
    )
    offset = (draws.uniform(0.0, 2.0), draws.uniform(0.0, 2.0))
    ground = Material((palette.wide(),), draws.uniform(0.2, 0.5), offset)
    half = (SKY_DISTANCE, 0.8 * SKY_DISTANCE, SKY_DISTANCE)
    slab = (1.1 * SKY_DISTANCE, 0.05, 1.1 * SKY_DISTANCE)
    yaw = draws.uniform(0.0, math.pi)
    return [
        Solid(Shape.ELLIPSOID, (0.0, floor, 0.0), half, sky, encloses=True, casts_shadow=False),
        Solid(Shape.BOX, (0.0, floor + 0.05, 0.0), slab, ground, yaw=yaw, casts_shadow=False),
    ]


def furnish(
    draws: Draws, palette: ScenePalette, things: tuple[Thing, ...], cameras: Float[Tensor, "N 3"],
    centre_depth: float, floor: float, room: Solid | None, dynamic: bool,
) -> list[Solid]:  # fmt: skip
    """Groups of solids on the floor, clear of cameras, walls and one another; the first near the centre."""
    placed: list[Solid] = []
    taken: list[tuple[float, float, float]] = []
    for number in range(draws.integer(5, 9)):
        size = centre_depth * draws.uniform(0.17, 0.4)
        group = draws.choice(things)(draws, palette, size)
        motion = _draw_motion(draws, size) if dynamic and (number == 0 or draws.chance(0.5)) else None
        radius, height = _extent(group)
        radius += max(motion.swing) if motion else 0.0
        spot = _find_spot(draws, cameras, centre_depth, floor, room, taken, radius, height, number == 0)
        if spot is None:
            continue
        taken.append((*spot, radius))
        if motion:
            motion = Motion(motion.swing, motion.cycles, motion.phase, motion.spin, spot)
        yaw = draws.uniform(0.0, 2.0 * math.pi)
        placed += [solid.moved((spot[0], floor, spot[1]), yaw, motion) for solid in group]
    return placed


def _find_spot(
    draws: Draws, cameras: Tensor, centre_depth: float, floor: float, room: Solid | None,
    taken: list[tuple[float, float, float]], radius: float, height: float, central: bool,
) -> tuple[float, float] | None:  # fmt: skip
    """X and z of a free place for an upright cylinder, or None after `TRIES` draws."""
    for _ in range(TRIES):
        z = centre_depth * (draws.uniform(0.9, 1.2) if central else draws.uniform(0.4, 1.9))
        x = draws.uniform(-0.12, 0.12) * centre_depth if central else draws.uniform(-0.6, 0.6) * z
        gap_across = ((cameras[:, 0] - x).square() + (cameras[:, 2] - z).square()).sqrt() - radius
        gap_above = floor - height - cameras[:, 1]
        gap = (gap_across.clamp(min=0).square() + gap_above.clamp(min=0).square()).sqrt()
        free = all(math.hypot(x - ox, z - oz) > 0.9 * (radius + other) for ox, oz, other in taken)
        if free and gap.min() >= CLEARANCE and _within(room, x, z, radius):
            return x, z
    return None


def _within(room: Solid | None, x: float, z: float, radius: float) -> bool:
    """Whether a disc on the floor lies inside the room, or short of the sky where there is none."""
    if room is None:
        return math.hypot(x, z) + radius < 0.9 * SKY_DISTANCE
    dx, dz = x - room.centre[0], z - room.centre[2]
    across = math.cos(room.yaw) * dx - math.sin(room.yaw) * dz
    along = math.sin(room.yaw) * dx + math.cos(room.yaw) * dz
    room_across, _, room_along = room.half_extents
    return abs(across) + radius < room_across and abs(along) + radius < room_along


def _extent(group: list[Solid]) -> tuple[float, float]:
    """Radius about the vertical axis and height of a group that stands about the origin."""
    radius = max(
        math.hypot(s.centre[0], s.centre[2])
        + (
            math.hypot(s.half_extents[0], s.half_extents[2])
            if s.shape is Shape.BOX
            else max(s.half_extents[::2])
        )
        for s in group
    )
    return radius, max(s.half_extents[1] - s.centre[1] for s in group)


def _draw_motion(draws: Draws, size: float) -> Motion:
    """A swing along the floor and a spin."""
    swing = (size * draws.uniform(0.2, 0.9), 0.0, size * draws.uniform(0.0, 0.5))
    spin = draws.uniform(-1.5, 1.5) if draws.chance(0.7) else 0.0
    return Motion(swing, draws.uniform(0.3, 1.0), draws.uniform(0.0, 1.0), spin, (0.0, 0.0))


def _wall_picture(draws: Draws, palette: ScenePalette, room: Solid, floor: float) -> Solid:
    """A flat box on the back wall or a side wall, in the room's own axes."""
    (x, _, z), (across, _, along) = room.centre, room.half_extents
    width, height = draws.uniform(0.35, 0.9), draws.uniform(0.3, 0.7)
    y = floor - draws.uniform(1.0, 2.0)
    wall = draws.integer(0, 3)
    if wall <= 1:
        centre = (x + draws.uniform(-0.7, 0.7) * across, y, z + along)
        half = (width, height, PICTURE_THICKNESS)
    else:
        side = across if wall == 2 else -across
        centre = (x + side, y, z + draws.uniform(0.1, 0.85) * along)
        half = (PICTURE_THICKNESS, height, width)
    return Solid(Shape.BOX, centre, half, palette.picture(), casts_shadow=False)


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
