"""Random scenes for training the small depth network, many at once and on any device without waiting for it.

A scene is a room or an open ground under a sky, with groups of solids on the floor, walls, hills, light and a
camera of any focal length and pitch. World frame: the camera stands at the origin, y points down, z ahead,
the floor lies at y = `floor`. Lengths are about metres.

Shape letters: B scenes, G groups, S solids of a group, P solids of a scene, M surfaces of a scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lyra_ns.generation.depth.small_backdrop import (
    FIRST_GROUP_SURFACE,
    Room,
    Solids,
    extras,
    ground,
    hills,
    sky,
)
from lyra_ns.generation.depth.small_draws import BatchDraws, rotation_about
from lyra_ns.generation.depth.small_groups import MATERIALS_OF_GROUP, GroupLibrary
from lyra_ns.generation.depth.small_surfaces import Surfaces, SurfaceSources, draw_surfaces
from lyra_ns.synthetic.solids import Shape

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
