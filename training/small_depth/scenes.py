"""Random scenes for training the small depth network, many at once and on any device without waiting for it.

A scene is a room, or an open ground under a sky with hills and buildings, with groups of solids on the floor,
walls, colours and patterns, light and a camera of any focal length and pitch. World frame: the camera stands
at the origin, y points down, z ahead, the floor lies at y = `floor`. Lengths are about metres.

Shape letters: B scenes, G groups, S solids of a group, P solids of a scene, n solids of one kind, M surfaces
of a scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lyra_ns.synthetic.solids import Shape
from training.small_depth.groups import MATERIALS_OF_GROUP, GroupLibrary


class BatchDraws:
    """Random tensors with one row for each scene."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count = count
        self._generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers [B, *shape] between `low` and `high`."""
        drawn = torch.rand(self.count, *shape, generator=self._generator, device=self._generator.device)
        return low + (high - low) * drawn

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers whose logarithms are uniform."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, mean: float, deviation: float, *shape: int) -> Tensor:
        """Normally distributed numbers."""
        drawn = torch.randn(self.count, *shape, generator=self._generator, device=self._generator.device)
        return mean + deviation * drawn

    def chance(self, probability: float, *shape: int) -> Tensor:
        """True with this probability."""
        return self.uniform(0.0, 1.0, *shape) < probability

    def integer(self, count: int, *shape: int) -> Tensor:
        """Whole numbers below `count`."""
        return self.uniform(0.0, count, *shape).long().clamp(max=count - 1)


def rotation_about(axis: int, angle: Tensor) -> Float[Tensor, "*batch 3 3"]:
    """Rotations about x (0), y (1) or z (2), as the solids and cameras of the sample scenes use them."""
    c, s, zero, one = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        0: [one, zero, zero, zero, c, -s, zero, s, c],
        1: [c, zero, s, zero, one, zero, -s, zero, c],
        2: [c, -s, zero, s, c, zero, zero, zero, one],
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


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


NUM_GROUPS = 12
"""Groups in a scene."""
SLOTS: dict[Shape, int] = {Shape.BOX: 28, Shape.ELLIPSOID: 16, Shape.FRUSTUM: 16}
"""Solids of each shape that the groups of a scene may have together; further ones are left out."""
ROOM, SKY = 0, 1
"""Places of the room and the sky among the solids; ground, extras, hills and groups follow."""
NUM_SURFACES = FIRST_GROUP_SURFACE + NUM_GROUPS * MATERIALS_OF_GROUP


@dataclass(frozen=True)
class SceneBatch:
    """All that decides the images of B scenes."""

    solids: Solids
    surfaces: Surfaces
    world_from_camera: Float[Tensor, "B 3 3"]
    focal: Float[Tensor, " B"]
    """Focal length in image widths."""
    floor: Float[Tensor, " B"]
    is_room: Bool[Tensor, " B"]
    discs: Float[Tensor, "B G 3"]
    """x, z and radius of the groups that darken the floor where they stand."""
    sun: Float[Tensor, "B 3"]
    """Unit vector towards the sun."""
    ambient: Float[Tensor, " B"]
    fog_density: Float[Tensor, " B"]
    sky_colours: Float[Tensor, "B 2 3"]
    """Horizon (also the fog's colour) and zenith."""


class SceneDrawer:
    """Draws scenes; everything that they are made of lies on one device."""

    def __init__(self, library: GroupLibrary, textures: list[int], device: torch.device | str) -> None:
        """`textures` are the numbers of the pictures that may be used."""
        self.library = library.to(device)
        self.sources = SurfaceSources(textures, device)

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator) -> SceneBatch:
        """`count` random scenes, by a generator of the same device."""
        return _draw_scenes(BatchDraws(count, generator), self)


def _draw_scenes(draws: BatchDraws, source: SceneDrawer) -> SceneBatch:
    """Scenes of their parts."""
    is_room = draws.chance(0.55)
    floor = draws.uniform(0.6, 2.0) * torch.where(draws.chance(0.1), 2.5, 1.0)
    focal = draws.log_uniform(0.5, 2.0)
    room = Room.draw(draws, floor)
    place = _GroupPlaces.draw(draws, source.library, focal, room, is_room)
    pitch = torch.where(draws.chance(0.75), _pitch_to_subject(draws, place, floor, focal), _free_pitch(draws))
    parts = [
        room.solid(is_room), sky(draws, is_room), ground(draws, floor, is_room),
        extras(draws, room, floor, is_room), hills(draws, floor, is_room),
        *_of_groups(source.library, place, floor),
    ]  # fmt: skip
    solids = Solids(**{key: torch.cat([vars(part)[key] for part in parts], 1) for key in vars(parts[0])})
    sun = torch.stack([draws.uniform(-1, 1), draws.uniform(-1.2, -0.3), draws.uniform(-1, 0.6)], -1)
    horizon = (draws.uniform(0.45, 0.95)[:, None] + draws.normal(0.0, 0.06, 3)).clamp(0, 1)
    zenith = horizon * torch.stack(
        [draws.uniform(0.2, 1), draws.uniform(0.4, 1), draws.uniform(0.8, 1.1)], -1
    )
    fog = torch.where(is_room, draws.uniform(0.0, 0.02), draws.log_uniform(0.0005, 0.03))
    return SceneBatch(
        solids, draw_surfaces(draws, source.sources, NUM_SURFACES), _camera_turn(draws, pitch), focal,
        floor, is_room,
        torch.stack([place.x, place.z, place.radius * place.is_there * (place.lift == 0)], -1),
        sun / sun.norm(dim=-1, keepdim=True), draws.uniform(0.35, 0.85), fog,
        torch.stack([horizon, zenith.clamp(0, 1)], 1),
    )  # fmt: skip


def _free_pitch(draws: BatchDraws) -> Float[Tensor, " B"]:
    """Downward pitch in radians, mostly small and sometimes steep."""
    level = draws.normal(6.0, 9.0).clamp(-22, 35)
    return torch.deg2rad(torch.where(draws.chance(0.15), draws.uniform(15, 60), level))


def _pitch_to_subject(
    draws: BatchDraws, place: _GroupPlaces, floor: Tensor, focal: Tensor
) -> Float[Tensor, " B"]:
    """Downward pitch that brings the first group about to the middle of the picture."""
    down = floor - place.lift[:, 0] - place.height[:, 0] * draws.uniform(0.1, 0.9)
    away = (place.x[:, 0].square() + place.z[:, 0].square()).sqrt()
    return (torch.atan2(down, away) + draws.normal(0.0, 0.12) / focal).clamp(-0.5, 1.2)


def _camera_turn(draws: BatchDraws, pitch: Tensor) -> Float[Tensor, "B 3 3"]:
    """The camera's axes in the world: pitch, and a slight roll."""
    roll = torch.deg2rad(draws.normal(0.0, 3.0))
    return rotation_about(0, -pitch) @ rotation_about(2, roll)


@dataclass(frozen=True)
class _GroupPlaces:
    """Which groups stand where."""

    kind: Int[Tensor, "B G"]
    x: Float[Tensor, "B G"]
    z: Float[Tensor, "B G"]
    yaw: Float[Tensor, "B G"]
    size: Float[Tensor, "B G"]
    lift: Float[Tensor, "B G"]
    """Height over the floor."""
    radius: Float[Tensor, "B G"]
    height: Float[Tensor, "B G"]
    is_there: Bool[Tensor, "B G"]

    @classmethod
    def draw(
        cls, draws: BatchDraws, library: GroupLibrary, focal: Tensor, room: Room, is_room: Tensor
    ) -> _GroupPlaces:
        """The first group is the subject, large and in the middle; the others are anywhere in sight."""
        n = NUM_GROUPS
        kind = draws.integer(len(library.radius), n)
        f = focal[:, None]
        z = draws.log_uniform(1.2, 5.0, n) * torch.where(
            is_room[:, None], 1.0, draws.log_uniform(1.0, 6.0, n)
        )
        # Half of the others stand about as far away as the subject.
        z[:, 1:] = torch.where(
            draws.chance(0.5, n - 1), z[:, :1] * draws.log_uniform(0.75, 2.2, n - 1), z[:, 1:]
        )
        x = draws.uniform(-0.65, 0.65, n) * z / f
        seen = z * draws.log_uniform(0.08, 0.7, n) / f
        size = torch.where(draws.chance(0.5, n), draws.uniform(0.25, 1.2, n), seen)
        has_subject = draws.chance(0.7)
        x[:, 0] = torch.where(has_subject, 0.25 * x[:, 0], x[:, 0])
        size[:, 0] = torch.where(has_subject, z[:, 0] * draws.uniform(0.3, 1.0) / focal, size[:, 0])
        radius = library.radius[kind] * size
        inside = room.kept_inside(x, z, 0.9 * radius)
        x, z = (torch.where(is_room[:, None], kept, free) for kept, free in zip(inside, (x, z), strict=True))
        quarter = draws.integer(4, n) * (math.pi / 2) + room.yaw[:, None]
        yaw = torch.where(draws.chance(0.5, n), quarter, draws.uniform(0.0, 2 * math.pi, n))
        lift = torch.where(draws.chance(0.08, n), draws.uniform(0.1, 1.5, n), 0.0)
        clear = (x.square() + z.square()).sqrt() > 1.05 * radius + 0.15
        wanted = torch.arange(n, device=x.device) < draws.integer(n - 2)[:, None] + 3
        return cls(kind, x, z, yaw, size, lift, radius, library.height[kind] * size, clear & wanted)


def _of_groups(library: GroupLibrary, place: _GroupPlaces, floor: Tensor) -> list[Solids]:
    """The solids of all groups, sorted into the places of their shapes."""
    kind, size = place.kind, place.size[..., None, None]
    turn = rotation_about(1, place.yaw)[:, :, None]
    centre = (turn @ (library.centre[kind] * size)[..., None])[..., 0]
    base = torch.stack([place.x, floor[:, None] - place.lift, place.z], -1)
    own_turn = library.turn[kind]
    own_turn = torch.stack([own_turn[..., 0] + place.yaw[..., None], own_turn[..., 1]], -1)
    first = torch.arange(NUM_GROUPS, device=kind.device)[:, None] * MATERIALS_OF_GROUP + FIRST_GROUP_SURFACE
    everything = Solids(
        library.shape[kind].flatten(1),
        (centre + base[:, :, None]).flatten(1, 2),
        (library.half_extents[kind] * size).flatten(1, 2),
        own_turn.flatten(1, 2),
        library.taper[kind].flatten(1),
        (library.material[kind].long() + first).flatten(1),
        (library.is_there[kind] & place.is_there[..., None]).flatten(1),
    )
    return [_chosen(everything, shape, count) for shape, count in SLOTS.items()]


def _chosen(solids: Solids, shape: Shape, count: int) -> Solids:
    """The first `count` solids of a shape in each scene, padded with ones that are not there."""
    there = solids.is_there & (solids.shape == float(shape))
    order = (~there).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    rows = torch.arange(len(order), device=order.device)[:, None]
    picked = {key: value[rows, order] for key, value in vars(solids).items()}
    picked["shape"] = torch.full_like(picked["shape"], float(shape))
    picked["is_there"] = there[rows, order]
    return Solids(**picked)
