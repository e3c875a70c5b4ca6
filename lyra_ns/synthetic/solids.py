"""What scenes are made of: boxes, ellipsoids and frustums, each the affine image of a unit shape.

An affine map keeps the parameter along a ray, so each solid is met in its own unit coordinates, and the
parameter of a ray whose camera-space z is 1 is at once the z-depth. Axes are OpenCV's: y points down, so the
unit frustum has its base (radius 1) at y = 1 and its top (radius `taper`) at y = -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from jaxtyping import Float
from torch import Tensor

Vector = tuple[Tensor, Tensor, Tensor]
"""x, y and z components that broadcast with one another."""

MISS = 1e30
"""Ray parameter of a miss; on the far side (-MISS) where the exit is asked for."""

RIM = 1 + 1e-6
"""Tolerance that closes the rim between a frustum's side and its caps against rounding."""


class Shape(IntEnum):
    """The unit shapes."""

    BOX = 0
    ELLIPSOID = 1
    FRUSTUM = 2


@dataclass(frozen=True)
class Material:
    """The surface of a solid."""

    textures: tuple[int, ...]
    """Texture of each side: one for all, or six in the order left, right, top, bottom, front, back."""
    tiles_per_unit: float = 1.0
    """Texture repeats (mirrored) per unit of length."""
    offset: tuple[float, float] = (0.0, 0.0)
    """Where the texture starts, in tiles."""
    repeats: tuple[float, float] | None = None
    """Repeats across each face of a box, or around and from equator to pole of an ellipsoid, that take the
    place of `tiles_per_unit`."""
    emissive: bool = False
    """Whether light and fog leave the surface alone (sky)."""


@dataclass(frozen=True)
class Motion:
    """How a group of solids moves in the course of a clip: a swing about its place, and a spin."""

    swing: tuple[float, float, float]
    """Largest displacement along x, y and z."""
    cycles: float
    """Swings in a clip."""
    phase: float
    """Where the swing starts, in cycles."""
    spin: float
    """Turn about the vertical axis of the group in a clip, radians."""
    pivot: tuple[float, float]
    """x and z of that axis."""


@dataclass(frozen=True)
class Solid:
    """One solid, placed in the world."""

    shape: Shape
    """Which unit shape it is the image of."""
    centre: tuple[float, float, float]
    """World position of its centre."""
    half_extents: tuple[float, float, float]
    """Half of its size along its own axes."""
    material: Material
    """Its surface."""
    yaw: float = 0.0
    """Turn about the vertical axis, radians."""
    tilt: float = 0.0
    """Turn about its own x axis before the yaw, radians."""
    taper: float = 1.0
    """Frustums: radius of the top over that of the base; 1 is a cylinder, 0 a cone."""
    encloses: bool = False
    """Whether it is seen from within (room, sky)."""
    casts_shadow: bool = True
    """Whether the floor lies in its shadow."""
    motion: Motion | None = None
    """How it moves; None stands still."""

    def moved(self, place: tuple[float, float, float], yaw: float, motion: Motion | None) -> Solid:
        """The solid with its group turned by `yaw` about the origin and put at `place`."""
        x, y, z = self.centre
        turned = (math.cos(yaw) * x + math.sin(yaw) * z, y, -math.sin(yaw) * x + math.cos(yaw) * z)
        centre = (turned[0] + place[0], turned[1] + place[1], turned[2] + place[2])
        return replace(self, centre=centre, yaw=self.yaw + yaw, motion=motion)


def unit_to_world(solids: list[Solid], times: Float[Tensor, " F"]) -> Float[Tensor, "F P 4 4"]:
    """Maps from unit coordinates to the world for each moment and solid, in the precision of `times`."""
    centre = _doubles([solid.centre for solid in solids])
    half = _doubles([solid.half_extents for solid in solids])
    yaw, tilt = _doubles([(solid.yaw, solid.tilt) for solid in solids]).unbind(-1)
    moment = times.double()[:, None]
    still = Motion((0.0, 0.0, 0.0), 0.0, 0.0, 0.0, (0.0, 0.0))
    motions = [solid.motion or still for solid in solids]
    swing = _doubles([motion.swing for motion in motions])
    cycles, phase, spin = _doubles([(m.cycles, m.phase, m.spin) for m in motions]).unbind(-1)
    pivot = _doubles([(motion.pivot[0], 0.0, motion.pivot[1]) for motion in motions])
    turn = _yaw_matrix(spin * moment)
    sway = torch.sin(2 * math.pi * (cycles * moment + phase)) - torch.sin(2 * math.pi * phase)
    position = pivot + (turn @ (centre - pivot)[..., None])[..., 0] + 0.5 * sway[..., None] * swing
    linear = turn @ _yaw_matrix(yaw) @ _tilt_matrix(tilt) * half[:, None, :]
    top = torch.cat([linear, position[..., None]], -1)
    bottom = _doubles([(0.0, 0.0, 0.0, 1.0)]).expand(*top.shape[:2], 1, 4)
    return torch.cat([top, bottom], -2).to(times.dtype)


def hit_box(origin: Vector, direction: Vector, exits: bool) -> Tensor:
    """Ray parameter at which rays enter (or exit) the cube from -1 to 1."""
    enters, leaves = [], []
    for o, d in zip(origin, direction, strict=True):
        inverse = d.reciprocal()
        low, high = (-1 - o) * inverse, (1 - o) * inverse
        enters.append(torch.minimum(low, high))
        leaves.append(torch.maximum(low, high))
    enter = torch.maximum(torch.maximum(enters[0], enters[1]), enters[2])
    leave = torch.minimum(torch.minimum(leaves[0], leaves[1]), leaves[2])
    # Arithmetic in place of torch.where, which is several times slower on the CPU.
    gap = (enter - leave).clamp_(min=0).mul_(MISS)
    return leave - gap if exits else enter + gap


def hit_ellipsoid(origin: Vector, direction: Vector, exits: bool) -> Tensor:
    """Ray parameter at which rays enter (or exit) the unit sphere."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt()
    gap = discriminant.clamp_(max=0).mul_(MISS)
    return (root - b) / a + gap if exits else -(b + root) / a - gap


def hit_frustum(origin: Vector, direction: Vector, exits: bool, taper: float) -> Tensor:
    """Ray parameter at which rays enter (or exit) the frustum of radius 1 at y = 1 and `taper` at y = -1."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    growth = (1 - taper) / 2
    radius = (1 + taper) / 2 + growth * oy
    a = dx * dx + dz * dz - (growth * growth) * (dy * dy)
    b = ox * dx + oz * dz - growth * radius * dy
    c = ox * ox + oz * oz - radius * radius
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt()
    side = 1.0 if exits else -1.0
    hits = []
    for t in ((-b - root) / a, (root - b) / a):
        outside = ((oy + t * dy).abs() - RIM).clamp_(min=0) - discriminant.clamp(max=0)
        hits.append(t - outside * (side * MISS))
    # The cap that faces the ray: its top (y = -1) where it goes down, its base where it goes up.
    facing = torch.sign(dy) * side
    t = (facing - oy) / dy
    x, z, rim = ox + t * dx, oz + t * dz, (1 + taper) / 2 + growth * facing
    outside = (x * x + z * z - rim * rim * RIM).clamp_(min=0)
    hits.append(t - outside * (side * MISS))
    nearest = torch.maximum if exits else torch.minimum
    return nearest(nearest(hits[0], hits[1]), hits[2])


def hit(solid: Solid, origin: Vector, direction: Vector, exits: bool) -> Tensor:
    """Ray parameter at which rays, in unit coordinates of `solid`, enter or exit it; about ±MISS if never."""
    if solid.shape is Shape.BOX:
        return hit_box(origin, direction, exits)
    if solid.shape is Shape.ELLIPSOID:
        return hit_ellipsoid(origin, direction, exits)
    return hit_frustum(origin, direction, exits, solid.taper)


def _doubles(rows: Sequence[tuple[float, ...]]) -> Tensor:
    """Rows of numbers in double precision."""
    return torch.tensor(rows, dtype=torch.float64)


def _yaw_matrix(angle: Tensor) -> Tensor:
    """Rotations about y."""
    c, s, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).unflatten(-1, (3, 3))


def _tilt_matrix(angle: Tensor) -> Tensor:
    """Rotations about x."""
    c, s, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).unflatten(-1, (3, 3))
