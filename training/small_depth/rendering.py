"""Images and exact depth of many random scenes at once, one ray per pixel.

All scenes have solids of the same shapes in the same places, so one pass over the places meets every scene.
Rays are (x, y, 1) in camera axes, which makes the ray parameter the z-depth. Nothing waits for the device.

Shape letters: B scenes, P solids, M surfaces, s image side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lyra_ns.synthetic.render import TextureAtlas
from lyra_ns.synthetic.solids import Shape, Vector, hit_box, hit_ellipsoid, hit_frustum
from training.small_depth.scenes import NUM_EXTRAS, NUM_HILLS, ROOM, SKY, SLOTS, SceneBatch, rotation_about

SHAPES: tuple[Shape, ...] = (
    Shape.BOX, Shape.ELLIPSOID, Shape.BOX, *(Shape.BOX,) * NUM_EXTRAS, *(Shape.ELLIPSOID,) * NUM_HILLS,
    *(shape for shape, count in SLOTS.items() for _ in range(count)),
)  # fmt: skip
"""Shape of the solid in each place."""
NEAR, FAR = 0.05, 1e4
"""Depths between which solids are seen."""
STEEPEST, SLANT_SHARE = 0.06, 0.75
"""As in `lyra_ns.synthetic.render`: bounds of the texture filter at grazing rays."""
CAP_START = 1 - 1e-4
WRAP = 0.25
CONTACT_DEPTH = 0.6
"""Share of the light that is missing right below a thing."""


@dataclass(frozen=True)
class RenderedScenes:
    """What the cameras see."""

    rgb: Float[Tensor, "B 3 s s"]
    """Colours from 0 to 1."""
    depth: Float[Tensor, "B s s"]
    """z-depth."""
    is_sky: Bool[Tensor, "B s s"]
    """Where the sky is seen, whose depth means nothing."""


@torch.no_grad()
def render_scenes(scenes: SceneBatch, atlas: TextureAtlas, size: int) -> RenderedScenes:
    """Square images of the scenes; `atlas` holds the bank that the surfaces' textures are numbers of."""
    steps = (torch.arange(size, device=scenes.focal.device) + 0.5) / size - 0.5
    rays = steps / scenes.focal[:, None]
    x, y = rays[:, None, :], rays[:, :, None]
    linear, shift = _unit_from_camera(scenes)
    depth, nearest = _find_nearest(scenes, linear, shift, x, y)
    rgb = _shade(scenes, atlas, linear, shift, x, y, depth, nearest)
    return RenderedScenes(rgb.nan_to_num(0.5), depth, (nearest == SKY) | (depth >= FAR))


def _unit_from_camera(scenes: SceneBatch) -> tuple[Float[Tensor, "B P 3 3"], Float[Tensor, "B P 3"]]:
    """Affine maps from camera axes to the unit coordinates of each solid."""
    solids = scenes.solids
    yaw, tilt = solids.turn.unbind(-1)
    own_from_world = (rotation_about(1, yaw) @ rotation_about(0, tilt)).transpose(-1, -2)
    inverse_half = solids.half_extents.reciprocal()
    linear = inverse_half[..., None] * (own_from_world @ scenes.world_from_camera[:, None])
    return linear, -inverse_half * (own_from_world @ solids.centre[..., None])[..., 0]


def _find_nearest(
    scenes: SceneBatch, linear: Tensor, shift: Tensor, x: Tensor, y: Tensor
) -> tuple[Float[Tensor, "B s s"], Tensor]:
    """Depth along each ray and the place of the solid that is met there."""
    depth = torch.full((len(x), y.shape[1], x.shape[2]), FAR, device=x.device)
    nearest = torch.full_like(depth, SKY, dtype=torch.uint8)
    for number, shape in enumerate(SHAPES):
        m, o = linear[:, number, :, :, None, None], shift[:, number, :, None, None]
        direction = tuple(m[:, k, 0] * x + (m[:, k, 1] * y + m[:, k, 2]) for k in range(3))
        exits = number in (ROOM, SKY)
        taper = scenes.solids.taper[:, number, None, None]
        t = _hit(shape, (o[:, 0], o[:, 1], o[:, 2]), (direction[0], direction[1], direction[2]), exits, taper)
        closer = (t < depth) & (t > NEAR) & scenes.solids.is_there[:, number, None, None]
        depth = torch.where(closer, t, depth)
        nearest.masked_fill_(closer, number)
    return depth, nearest


def _hit(shape: Shape, origin: Vector, direction: Vector, exits: bool, taper: Tensor) -> Tensor:
    """Ray parameters at which rays in unit coordinates meet one solid of each scene."""
    if shape is Shape.BOX:
        return hit_box(origin, direction, exits)
    if shape is Shape.ELLIPSOID:
        return hit_ellipsoid(origin, direction, exits)
    return hit_frustum(origin, direction, exits, taper)  # type: ignore[arg-type]


def _shade(
    scenes: SceneBatch, atlas: TextureAtlas, linear: Tensor, shift: Tensor,
    x: Tensor, y: Tensor, depth: Tensor, nearest: Tensor,
) -> Float[Tensor, "B 3 s s"]:  # fmt: skip
    """Colours of what the rays have met."""
    solids, number = scenes.solids, nearest.long()
    sun = (scenes.world_from_camera.transpose(-1, -2) @ scenes.sun[..., None])[..., 0]
    sun_in_unit = (linear @ sun[:, None, :, None])[..., 0]
    table = torch.cat(
        [
            linear.flatten(2), shift, sun_in_unit, solids.half_extents, solids.taper[..., None],
            solids.shape[..., None],
        ], -1,
    )  # fmt: skip
    columns = _gather(table, number)
    dx, dy, dz = (columns[k] * x + (columns[k + 1] * y + columns[k + 2]) for k in (0, 3, 6))
    point = (columns[9] + depth * dx, columns[10] + depth * dy, columns[11] + depth * dz)
    sun_there = (columns[12], columns[13], columns[14])
    half, taper, shape = (columns[15], columns[16], columns[17]), columns[18], columns[19]
    normal, face = _normals(point, (1 - taper) / 2, shape)
    u, v = _texture_places(point, half, shape, face)
    stretched = (normal[0] / half[0], normal[1] / half[1], normal[2] / half[2])
    length = _dot(stretched, stretched).sqrt()
    slope = _dot(normal, (dx, dy, dz))
    cosine = (slope.abs() / (length * (x * x + y * y + 1).sqrt())).clamp(STEEPEST, 1)
    surface = _surface_number(solids.surface, number, face)
    colour = _textured(scenes, atlas, surface, u, v, depth, cosine)
    lit = -torch.sign(slope) * _dot(normal, sun_there) / length
    colour = _lit(scenes, colour, lit, depth, x, y)
    return torch.where((number == SKY)[:, None], _sky_colours(scenes, colour, x, y), colour).clamp(0, 1)


def _gather(table: Float[Tensor, "B n c"], number: Tensor) -> list[Tensor]:
    """Columns of a table by scene and row, at every ray."""
    first = torch.arange(len(table), device=table.device)[:, None, None] * table.shape[1]
    index = (number + first).flatten()
    flat = table.flatten(0, 1).T.contiguous()
    return [torch.index_select(column, 0, index).view_as(number) for column in flat]


def _normals(point: Vector, growth: Tensor, shape: Tensor) -> tuple[Vector, Tensor]:
    """Normals in unit coordinates, of any length, and faces: 0 to 5 of boxes, 2 of caps, else 6."""
    px, py, pz = point
    ax, ay, az = px.abs(), py.abs(), pz.abs()
    is_box, is_frustum = shape == Shape.BOX, shape == Shape.FRUSTUM
    along_x = is_box & (ax >= torch.maximum(ay, az))
    along_y = (is_box & ~along_x & (ay >= az)) | (is_frustum & (ay > CAP_START))
    along_z = is_box & ~along_x & ~along_y
    is_flat = along_x | along_y | along_z
    side_y = torch.where(is_frustum, -growth * (1 - growth + growth * py), py)
    zero = torch.zeros_like(px)
    normal = (
        torch.where(is_flat & ~along_x, zero, px),
        torch.where(is_flat, torch.where(along_y, py, zero), side_y),
        torch.where(is_flat & ~along_z, zero, pz),
    )
    sides = torch.where(along_x, px > 0, torch.where(along_y, py > 0, pz > 0)).long()
    face = torch.where(is_flat, 2 * along_y.long() + 4 * along_z.long() + sides, 6)
    return normal, face


def _texture_places(point: Vector, half: Vector, shape: Tensor, face: Tensor) -> tuple[Tensor, Tensor]:
    """Places on surfaces in units of length; round solids are unrolled."""
    x, y, z = (p * h for p, h in zip(point, half, strict=True))
    around = torch.atan2(point[2], point[0]) * half[0]
    up = torch.where(shape == Shape.ELLIPSOID, torch.asin(point[1].clamp(-1, 1)) * half[1], y)
    u = torch.where(face < 2, z, torch.where(face < 6, x, around))
    v = torch.where((face == 2) | (face == 3), z, torch.where(face < 6, y, up))
    return u, v


def _surface_number(first: Tensor, number: Tensor, face: Tensor) -> Tensor:
    """Number of the surface at each hit: the solid's, and in a room that of the face."""
    (surface,) = _gather(first[..., None].float(), number)
    return surface.long() + torch.where(number == ROOM, face.clamp(max=5), 0)


def _textured(
    scenes: SceneBatch,
    atlas: TextureAtlas,
    surface: Tensor,
    u: Tensor,
    v: Tensor,
    depth: Tensor,
    cosine: Tensor,
) -> Float[Tensor, "B 3 s s"]:
    """Unlit colours, from the texture level that fits a pixel's footprint."""
    s = scenes.surfaces
    table = torch.cat([s.texture[..., None].float(), s.mix, s.tint, s.tiles[..., None], s.offset], -1)
    texture, *columns = _gather(table, surface)
    mix, tint, tiles, offset = columns[:9], columns[9:12], columns[12], columns[13:15]
    pixel = depth / (scenes.focal[:, None, None] * depth.shape[-1])
    level = torch.log2(atlas.size * tiles * pixel) - SLANT_SHARE * torch.log2(cosine)
    sampled = atlas.sample(texture, u * tiles + offset[0], v * tiles + offset[1], level) - 0.5
    rows = [
        tint[k] + mix[3 * k] * sampled[0] + mix[3 * k + 1] * sampled[1] + mix[3 * k + 2] * sampled[2]
        for k in range(3)
    ]
    return torch.stack(rows, 1).clamp(0, 1)


def _lit(
    scenes: SceneBatch, colour: Tensor, facing: Tensor, depth: Tensor, x: Tensor, y: Tensor
) -> Float[Tensor, "B 3 s s"]:
    """Colours under sun, sky light, the shade at the feet of things, and fog."""
    ambient = scenes.ambient[:, None, None]
    light = ambient + (1 - ambient) * (facing.clamp(min=-WRAP) + WRAP) / (1 + WRAP)
    light = light * _contact_light(scenes, depth, x, y)
    clear = torch.exp(-scenes.fog_density[:, None, None] * depth)[:, None]
    fog = torch.where(scenes.is_room[:, None], 0.5, scenes.sky_colours[:, 0])[..., None, None]
    return fog + (colour * light[:, None] - fog) * clear


def _contact_light(scenes: SceneBatch, depth: Tensor, x: Tensor, y: Tensor) -> Float[Tensor, "B s s"]:
    """Less than 1 on and just above the floor near the things that stand on it."""
    m = scenes.world_from_camera[..., None, None]
    wx, wy, wz = ((m[:, k, 0] * x + (m[:, k, 1] * y + m[:, k, 2])) * depth for k in range(3))
    dark = torch.zeros_like(depth)
    for disc in scenes.discs.unbind(1):
        cx, cz, r = disc[..., None, None].unbind(1)
        # The shade falls away from the sun by a part of the thing's size.
        cx, cz = cx - 0.4 * r * scenes.sun[:, 0, None, None], cz - 0.4 * r * scenes.sun[:, 2, None, None]
        ratio = ((wx - cx).square() + (wz - cz).square()) / (r * r).clamp(min=1e-6)
        dark = torch.maximum(dark, torch.exp(-1.2 * ratio))
    height = ((scenes.floor[:, None, None] - wy).abs() * 8).clamp(max=1)
    return 1 - CONTACT_DEPTH * dark * (1 - height)


def _sky_colours(scenes: SceneBatch, textured: Tensor, x: Tensor, y: Tensor) -> Float[Tensor, "B 3 s s"]:
    """From the horizon's colour to the zenith's, with a little of the texture as clouds."""
    m = scenes.world_from_camera[:, 1, :, None, None]
    up = -(m[:, 0] * x + m[:, 1] * y + m[:, 2]) / (x * x + y * y + 1).sqrt()
    share = up.clamp(0, 1).sqrt()[:, None]
    horizon, zenith = (colour[..., None, None] for colour in scenes.sky_colours.unbind(1))
    clear = horizon + (zenith - horizon) * share
    cloud = (textured.mean(1, keepdim=True) * 2 - 0.9).clamp(0, 0.8) * (4 * share).clamp(max=1)
    return clear + (0.95 - clear) * cloud * 0.8


def _dot(first: Vector, second: Vector) -> Tensor:
    """Scalar products of component triples."""
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]
