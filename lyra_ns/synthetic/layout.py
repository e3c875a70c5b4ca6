"""Where things stand: the room or the open ground, and groups of solids that keep clear of every camera."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.synthetic.draws import Draws
from lyra_ns.synthetic.furniture import Thing
from lyra_ns.synthetic.palette import ScenePalette
from lyra_ns.synthetic.solids import Material, Motion, Shape, Solid
from lyra_ns.trajectories import TRAJECTORIES, camera_offsets

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
