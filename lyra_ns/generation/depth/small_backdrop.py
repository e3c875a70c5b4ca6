"""What stands still behind the things of a training scene: a room, or ground, sky, hills and buildings.

Shape letters: B scenes, P solids, n solids of one kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lyra_ns.generation.depth.small_draws import BatchDraws, rotation_about
from lyra_ns.synthetic.solids import Shape

NUM_EXTRAS = 6
"""Boxes beside the groups: what hangs on the walls of a room, or buildings along an open ground."""
NUM_HILLS = 2
SKY_RADIUS = 250.0
ROOM_SURFACE, SKY_SURFACE, GROUND_SURFACE, EXTRA_SURFACE = 0, 6, 7, 8
"""Numbers of the first surface of each part; the room has one for each face."""
HILL_SURFACE = EXTRA_SURFACE + NUM_EXTRAS
FIRST_GROUP_SURFACE = HILL_SURFACE + NUM_HILLS
"""Number of the first surface of the things that stand before it all."""


@dataclass(frozen=True)
class Solids:
    """Solids of scenes, in the order of their places."""

    shape: Float[Tensor, "B P"]
    """Number of the unit shape, in each place the same for all scenes."""
    centre: Float[Tensor, "B P 3"]
    half_extents: Float[Tensor, "B P 3"]
    turn: Float[Tensor, "B P 2"]
    """Yaw and tilt."""
    taper: Float[Tensor, "B P"]
    surface: Int[Tensor, "B P"]
    """Number of the first surface; the room's six faces have one each."""
    is_there: Bool[Tensor, "B P"]


@dataclass(frozen=True)
class Room:
    """Walls, floor and ceiling; in axes that are turned by `yaw` about the vertical."""

    low: Float[Tensor, "B 3"]
    high: Float[Tensor, "B 3"]
    yaw: Float[Tensor, " B"]

    @classmethod
    def draw(cls, draws: BatchDraws, floor: Tensor) -> Room:
        ceiling = (floor - draws.uniform(2.1, 3.8)).clamp(max=-0.4)
        low = torch.stack([-draws.log_uniform(0.7, 5.0), ceiling, -draws.uniform(0.5, 2.0)], -1)
        high = torch.stack([draws.log_uniform(0.7, 5.0), floor, draws.log_uniform(1.6, 10.0)], -1)
        return cls(low, high, torch.where(draws.chance(0.75), draws.uniform(-0.7, 0.7), 0.0))

    def solid(self, is_room: Tensor) -> Solids:
        """The room as a box, seen from within."""
        half, middle = (self.high - self.low) / 2, (self.high + self.low) / 2
        centre = (rotation_about(1, self.yaw) @ middle[..., None])[..., 0]
        return upright(
            Shape.BOX, centre[:, None], half[:, None], self.yaw[:, None], is_room[:, None], ROOM_SURFACE
        )

    def kept_inside(self, x: Tensor, z: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Places [B, n] moved as far into the room as discs about them need, as far as it is large enough."""
        c, s = torch.cos(self.yaw)[:, None], torch.sin(self.yaw)[:, None]
        across, along = c * x - s * z, s * x + c * z
        low, high = self.low[:, None], self.high[:, None]
        across = torch.minimum(torch.maximum(across, low[..., 0] + radius), high[..., 0] - radius)
        along = torch.minimum(torch.maximum(along, low[..., 2] + radius), high[..., 2] - radius)
        return c * across + s * along, -s * across + c * along


def upright(shape: Shape, centre: Tensor, half: Tensor, yaw: Tensor, there: Tensor, surface: int) -> Solids:
    """Upright solids [B, n] with surfaces in a row from `surface` on."""
    numbers = surface + torch.arange(centre.shape[1], device=centre.device).expand(centre.shape[:2])
    turn = torch.stack([yaw, torch.zeros_like(yaw)], -1)
    ones = torch.ones_like(yaw)
    return Solids(ones * float(shape), centre, half, turn, ones, numbers, there)


def sky(draws: BatchDraws, is_room: Tensor) -> Solids:
    centre = draws.uniform(0.0, 0.0, 1, 3)
    return upright(
        Shape.ELLIPSOID,
        centre,
        centre + SKY_RADIUS,
        draws.uniform(0, 6.28, 1),
        ~is_room[:, None],
        SKY_SURFACE,
    )


def ground(draws: BatchDraws, floor: Tensor, is_room: Tensor) -> Solids:
    zero = torch.zeros_like(floor)
    centre = torch.stack([zero, floor + 0.5, zero], -1)[:, None]
    wide = torch.full_like(floor, 2 * SKY_RADIUS)
    half = torch.stack([wide, zero + 0.5, wide], -1)[:, None]
    return upright(Shape.BOX, centre, half, draws.uniform(0, 6.28, 1), ~is_room[:, None], GROUND_SURFACE)


def extras(draws: BatchDraws, room: Room, floor: Tensor, is_room: Tensor) -> Solids:
    """Pictures, doors and cupboards on walls, or buildings on both sides of an open ground."""
    n = NUM_EXTRAS
    inner, outer = _on_walls(draws, room), _beside_road(draws, floor)
    yaw = torch.where(draws.chance(0.4), draws.uniform(-0.8, 0.8), 0.0)
    turn = torch.where(is_room, room.yaw, yaw)
    centre, half = (torch.where(is_room[:, None, None], a, b) for a, b in zip(inner, outer, strict=True))
    centre = (rotation_about(1, turn)[:, None] @ centre[..., None])[..., 0]
    town = draws.chance(0.45)[:, None] & draws.chance(0.75, n)
    there = torch.where(is_room[:, None], draws.chance(0.6, n), town)
    return upright(Shape.BOX, centre, half, turn[:, None].expand(-1, n), there, EXTRA_SURFACE)


def _on_walls(draws: BatchDraws, room: Room) -> tuple[Tensor, Tensor]:
    """Centres and half sizes of flat boxes on the back and side walls, in the room's axes."""
    n = NUM_EXTRAS
    low, high = room.low[:, None], room.high[:, None]
    share, up = draws.uniform(0.1, 0.9, n), draws.uniform(0.15, 0.9, n)
    wide, tall = draws.uniform(0.2, 1.1, n), draws.uniform(0.2, 1.1, n)
    thick = torch.where(draws.chance(0.6, n), 0.02, draws.uniform(0.05, 0.5, n))
    y = low[..., 1] + up * (high[..., 1] - low[..., 1])
    side = torch.where(draws.chance(0.5, n), low[..., 0], high[..., 0])
    on_back = draws.chance(0.5, n)
    x = torch.where(on_back, low[..., 0] + share * (high[..., 0] - low[..., 0]), side)
    z = torch.where(on_back, high[..., 2], share * high[..., 2])
    half = torch.where(
        on_back[..., None], torch.stack([wide, tall, thick], -1), torch.stack([thick, tall, wide], -1)
    )
    return torch.stack([x, y, z], -1), half


def _beside_road(draws: BatchDraws, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and half sizes of buildings, clear of the camera."""
    n = NUM_EXTRAS
    half = torch.stack(
        [draws.uniform(1.5, 6, n), draws.log_uniform(1.2, 10, n), draws.uniform(1.5, 8, n)], -1
    )
    side = torch.where(draws.chance(0.5, n), 1.0, -1.0)
    x = side * (half[..., 0] + draws.log_uniform(1.5, 12.0, n))
    centre = torch.stack([x, floor[:, None] - half[..., 1], draws.uniform(1.0, 45.0, n)], -1)
    return centre, half


def hills(draws: BatchDraws, floor: Tensor, is_room: Tensor) -> Solids:
    n = NUM_HILLS
    half = torch.stack([draws.uniform(15, 60, n), draws.uniform(2, 16, n), draws.uniform(10, 25, n)], -1)
    y = floor[:, None].expand(-1, n)
    centre = torch.stack([draws.uniform(-60, 60, n), y, draws.uniform(30, 100, n)], -1)
    there = ~is_room[:, None] & draws.chance(0.45, n)
    return upright(Shape.ELLIPSOID, centre, half, torch.zeros_like(y), there, HILL_SURFACE)
