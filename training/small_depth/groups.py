"""Things that training scenes of the small depth network are composed of, as one table of solids.

The furniture of the sample scenes, and what photographs hold besides: bushes, heaps of round shapes, wheels
and bars, buildings, fences, posts. Each stands on the floor (y = 0, up is -y) about the origin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lyra_ns.draws import Draws, generator_for
from lyra_ns.synthetic.scenes import INDOOR, OUTDOOR, Palette, Thing, ball, box, frustum
from lyra_ns.synthetic.solids import Material, Shape, Solid

MOST_SOLIDS = 12
"""Solids of a group at most; others are left out."""
MATERIALS_OF_GROUP = 4
"""Different surfaces of a group; further ones begin again."""


@dataclass(frozen=True)
class GroupLibrary:
    """Groups of solids of about unit size. Letters: G groups, S solids of each."""

    shape: Float[Tensor, "G S"]
    """Number of the unit shape (`Shape`)."""
    centre: Float[Tensor, "G S 3"]
    """Centres."""
    half_extents: Float[Tensor, "G S 3"]
    """Half sizes along own axes."""
    turn: Float[Tensor, "G S 2"]
    """Yaw and tilt in radians."""
    taper: Float[Tensor, "G S"]
    """Tapers of frustums."""
    material: Float[Tensor, "G S"]
    """Number of the surface within the group."""
    is_there: Bool[Tensor, "G S"]
    """Whether a place of the table holds a solid."""
    radius: Float[Tensor, " G"]
    """Distance from the vertical axis within which a group stays."""
    height: Float[Tensor, " G"]
    """Height of a group."""

    def to(self, device: torch.device | str) -> GroupLibrary:
        """The same on another device."""
        return GroupLibrary(**{key: value.to(device) for key, value in vars(self).items()})


class _NumberedPalette:
    """Gives every surface that a thing asks for a number, in place of a texture."""

    def __init__(self) -> None:
        self.count = 0

    def surface(self) -> Material:
        """The next number."""
        self.count += 1
        return Material(((self.count - 1) % MATERIALS_OF_GROUP,))

    quiet = surface
    picture = surface


def build_groups(count: int, seed: int) -> GroupLibrary:
    """`count` random groups, of all kinds alike."""
    groups = []
    for number in range(count):
        draws = Draws(generator_for("depth group", seed, number))
        groups.append(THINGS[number % len(THINGS)](draws, _NumberedPalette(), 1.0)[:MOST_SOLIDS])
    return _table(groups)


def _table(groups: list[list[Solid]]) -> GroupLibrary:
    """The groups as tensors, padded with solids that are not there."""
    nothing = Solid(Shape.BOX, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), Material((0,)))
    padded = [group + [nothing] * (MOST_SOLIDS - len(group)) for group in groups]

    def column(read) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.tensor([[read(solid) for solid in group] for group in padded], dtype=torch.float32)

    there = [[k < len(group) for k in range(MOST_SOLIDS)] for group in groups]
    extents = torch.tensor([_extent(group) for group in groups])
    return GroupLibrary(
        shape=column(lambda solid: float(solid.shape)),
        centre=column(lambda solid: solid.centre),
        half_extents=column(lambda solid: solid.half_extents),
        turn=column(lambda solid: (solid.yaw, solid.tilt)),
        taper=column(lambda solid: solid.taper),
        material=column(lambda solid: float(solid.material.textures[0])),
        is_there=torch.tensor(there),
        radius=extents[:, 0],
        height=extents[:, 1],
    )


def _extent(group: list[Solid]) -> tuple[float, float]:
    """Radius and height of a group, by the spheres about its solids where they are turned."""
    radius, height = 0.0, 0.0
    for solid in group:
        x, y, z = solid.half_extents
        reach = math.sqrt(x * x + y * y + z * z) if solid.tilt else math.hypot(x, z)
        radius = max(radius, math.hypot(solid.centre[0], solid.centre[2]) + reach)
        height = max(height, (reach if solid.tilt else y) - solid.centre[1])
    return radius, height


def bush(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """Balls and flattened balls that overlap."""
    leaves, solids = palette.surface(), []
    for _ in range(draws.integer(4, 8)):
        radius = size * draws.uniform(0.15, 0.35)
        at = (size * draws.uniform(-0.35, 0.35), size * draws.uniform(-0.35, 0.35))
        solids.append(ball(leaves, radius, size * draws.uniform(0.0, 0.4), at, draws.uniform(0.6, 1.2)))
    return solids


def heap(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """Round and angular bodies of any proportions and turns, as animals, bags or stones are at a distance."""
    skins, solids = [palette.surface(), palette.quiet()], []
    for _ in range(draws.integer(3, 7)):
        half = tuple(size * draws.uniform(0.06, 0.35) for _ in range(3))
        place = (
            size * draws.uniform(-0.4, 0.4),
            -size * draws.uniform(0.1, 0.8),
            size * draws.uniform(-0.4, 0.4),
        )
        shape = Shape.ELLIPSOID if draws.chance(0.7) else Shape.BOX
        solids.append(
            Solid(
                shape, place, (half[0], half[1], half[2]), draws.choice(skins),
                yaw=draws.uniform(0.0, 3.14), tilt=draws.uniform(-1.0, 1.0),
            )
        )  # fmt: skip
    return solids


def person(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """Legs, trunk, arms and head, about as a clothed person."""
    trousers, shirt, skin = palette.quiet(), palette.surface(), palette.quiet()
    height = size * draws.uniform(1.2, 1.7)
    wide, leg = 0.13 * height * draws.uniform(0.8, 1.4), 0.48 * height
    solids = [
        frustum(trousers, 0.055 * height, leg, at=(x * wide * 0.5, 0.0), taper=1.2) for x in (-1.0, 1.0)
    ]
    trunk = ball(shirt, wide, leg * 0.9, flatness=0.42 * height / (2 * wide))
    flat = (wide, trunk.half_extents[1], wide * 0.65)
    solids += [replace(trunk, half_extents=flat), ball(skin, 0.065 * height, 0.87 * height, flatness=1.25)]
    for side in (-1.0, 1.0):
        arm = frustum(shirt, 0.035 * height, 0.36 * height, 0.5 * height, (side * wide, 0.0))
        solids.append(replace(arm, tilt=draws.uniform(-0.9, 0.9)))
    return solids


def machine(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """Two wheels with bars and bodies between them, in one plane."""
    tyre, metal, paint = palette.quiet(), palette.quiet(), palette.surface()
    radius, length = size * draws.uniform(0.2, 0.32), size * draws.uniform(0.8, 1.1)
    solids = []
    for x in (-length / 2, length / 2):
        half = (radius, size * draws.uniform(0.03, 0.1), radius)
        solids.append(Solid(Shape.FRUSTUM, (x, -radius, 0.0), half, tyre, tilt=math.pi / 2))
    for _ in range(draws.integer(3, 6)):
        sides = [size * draws.uniform(*span) for span in ((0.06, 0.3), (0.04, 0.18), (0.04, 0.14))]
        place = (length * draws.uniform(-0.35, 0.35), -size * draws.uniform(0.3, 0.75), 0.0)
        shape = Shape.ELLIPSOID if draws.chance(0.5) else Shape.BOX
        solids.append(Solid(shape, place, (sides[0], sides[1], sides[2]), draws.choice([metal, paint])))
    for _ in range(3):
        bar = frustum(metal, size * 0.025, size * draws.uniform(0.4, 0.8), 0.2 * size)
        place = (length * draws.uniform(-0.5, 0.5), bar.centre[1], size * draws.uniform(-0.1, 0.1))
        solids.append(replace(bar, centre=place, yaw=math.pi / 2, tilt=draws.uniform(-0.8, 0.8)))
    return solids


def vehicle(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A long low body with a cabin and four wheels."""
    paint, glass, tyre = palette.quiet(), palette.quiet(), palette.quiet()
    length, width, wheel = size * draws.uniform(1.2, 1.8), size * draws.uniform(0.55, 0.75), size * 0.14
    solids = [box(paint, (length, size * 0.35, width), wheel)]
    cabin = length * draws.uniform(0.4, 0.9)
    solids.append(box(glass, (cabin, size * draws.uniform(0.25, 0.5), width * 0.9), wheel + size * 0.35))
    for x in (-0.33 * length, 0.33 * length):
        for z in (-width / 2, width / 2):
            solids.append(
                Solid(Shape.FRUSTUM, (x, -wheel, z), (wheel, size * 0.05, wheel), tyre, tilt=math.pi / 2)
            )
    return solids


def building(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A block, sometimes with a wing or a pointed roof."""
    wall, height = palette.surface(), size * draws.uniform(0.7, 2.5)
    solids = [box(wall, (size * draws.uniform(0.8, 1.4), height, size * draws.uniform(0.7, 1.2)))]
    if draws.chance(0.5):
        sides = (
            size * draws.uniform(0.5, 0.9),
            height * draws.uniform(0.3, 0.8),
            size * draws.uniform(0.5, 1.2),
        )
        solids.append(box(palette.surface(), sides, at=(size * draws.uniform(-0.9, 0.9), size * 0.2)))
    if draws.chance(0.4):
        solids.append(
            frustum(palette.quiet(), size * 0.75, size * 0.5, height, taper=draws.uniform(0.0, 0.5))
        )
    return solids


def fence(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """Posts in a row with rails, or a solid wall."""
    wood, height, count = palette.quiet(), size * draws.uniform(0.3, 0.7), draws.integer(4, 8)
    if draws.chance(0.4):
        return [box(palette.surface(), (size * 2.4, height, size * 0.12))]
    solids = [box(wood, (size * 2.4, size * 0.05, size * 0.04), height * share) for share in (0.35, 0.8)]
    places = [size * (2.4 * k / (count - 1) - 1.2) for k in range(count)]
    return solids + [box(wood, (size * 0.07, height, size * 0.07), at=(x, 0.0)) for x in places]


def post(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A pole, mostly with a sign or a light."""
    metal, height = palette.quiet(), size * draws.uniform(1.2, 2.5)
    solids = [frustum(metal, size * draws.uniform(0.02, 0.06), height)]
    if draws.chance(0.6):
        sides = (size * draws.uniform(0.2, 0.6), size * draws.uniform(0.2, 0.5), size * 0.03)
        solids.append(box(palette.picture(), sides, height * 0.8, yaw=draws.uniform(-1.0, 1.0)))
    return solids


def sofa(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A seat with back, arms and cushions; sometimes a bed."""
    cloth, cushion, width = palette.surface(), palette.surface(), size * draws.uniform(0.8, 1.6)
    depth, seat = size * draws.uniform(0.6, 1.4), size * draws.uniform(0.25, 0.4)
    solids = [box(cloth, (width, seat, depth))]
    solids.append(box(cloth, (width, size * draws.uniform(0.5, 0.8), size * 0.15), at=(0.0, depth / 2)))
    if draws.chance(0.7):
        solids += [box(cloth, (size * 0.14, seat * 1.5, depth), at=(x, 0.0)) for x in (-width / 2, width / 2)]
    for x in (-0.25 * width, 0.25 * width):
        solids.append(ball(cushion, size * 0.2, seat * 0.9, (x, depth * 0.25), 0.7))
    return solids


def tableware(draws: Draws, palette: Palette, size: float) -> list[Solid]:
    """A plate, a cup, a bottle or a few books close together."""
    china, ware = palette.quiet(), palette.surface()
    solids = [frustum(china, size * draws.uniform(0.3, 0.5), size * 0.05, taper=1.2)]
    solids.append(
        frustum(china, size * draws.uniform(0.12, 0.25), size * draws.uniform(0.2, 0.6), 0.05, taper=1.2)
    )
    if draws.chance(0.6):
        bottle = (size * draws.uniform(-0.6, 0.6), size * draws.uniform(0.2, 0.6))
        solids.append(frustum(ware, size * 0.12, size * draws.uniform(0.5, 1.0), at=bottle))
        solids.append(frustum(ware, size * 0.05, size * 0.4, size * 0.8, at=bottle))
    for level in range(draws.integer(0, 3)):
        sides = (size * draws.uniform(0.4, 0.7), size * 0.08, size * draws.uniform(0.3, 0.5))
        at = (size * 0.7, -size * 0.2)
        solids.append(box(palette.surface(), sides, size * 0.08 * level, at, draws.uniform(-0.4, 0.4)))
    return solids


THINGS: tuple[Thing, ...] = (
    *INDOOR, *OUTDOOR, bush, bush, heap, heap, heap, person, person, person, machine, machine, vehicle,
    vehicle, building, building, fence, fence, post, sofa, sofa, tableware,
)  # fmt: skip
"""All kinds of groups, those that stand twice twice as often."""
