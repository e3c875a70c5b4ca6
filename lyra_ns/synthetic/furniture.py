"""Things to put into a scene: groups of solids that stand on the floor (y = 0, up is -y) about the origin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from lyra_ns.synthetic.draws import Draws
from lyra_ns.synthetic.solids import Material, Shape, Solid


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
