"""Colours of what rays have met: texture, light, the floor's shadows, fog."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.synthetic.atlas import build_atlas, level_dither
from lyra_ns.synthetic.scenes import ProceduralScene
from lyra_ns.synthetic.shadows import floor_light, sample_floor_light
from lyra_ns.synthetic.solids import Shape, Solid, Vector

STEEPEST = 0.06
"""Least cosine between ray and normal that the texture filter reckons with."""
SLANT_SHARE = 0.75
"""Exponent of 1 / cosine in the width of the (round) texture filter: 1 would blur floors needlessly."""
CAP_START = 1 - 1e-4
"""|y| in unit coordinates from which a hit on a frustum is on one of its caps."""
POLE = 0.08
"""Least distance from the axis that the texture filter of round solids reckons with."""
WRAP = 0.25
"""How far sunlight reaches round an edge: softens the border of light and shade."""
FLOOR_TOLERANCE = 0.03
"""Height over the floor up to which a surface lies in the floor's shadows."""


class Shader:
    """Shades the rays of one scene.

    The shading table holds for each frame and solid what a ray needs of it, as rows over (frame, solid):
    12 entries of the 3 x 4 matrix from camera axes to unit coordinates, the direction to the sun mapped by
    its linear part (3), inverse half extents (3), texture repeats along the unit axes or around, along and
    across the caps (3), texture offset (2), texels per unit of length, growth of a frustum, shape, emissive.
    """

    def __init__(self, scene: ProceduralScene, device: torch.device, dtype: torch.dtype) -> None:
        self._scene = scene
        self._device, self._dtype = device, dtype
        self._atlas = build_atlas(scene.textures.to(device, dtype))
        rows = [_material_row(solid, self._atlas.size) for solid in scene.solids]
        self._materials = torch.tensor(rows, dtype=dtype).T.contiguous().to(device)
        faces = [solid.material.textures * (6 // len(solid.material.textures)) for solid in scene.solids]
        self._faces = torch.tensor(faces, dtype=dtype).flatten().to(device)
        self._floor_lights: dict[float, Tensor] = {}

    def shade(
        self, cameras: CameraPath, x: Float[Tensor, "F 1 w"], y: Float[Tensor, "F h 1"],
        camera_to_unit: Float[Tensor, "P F 3 4"], depth: Float[Tensor, "F h w"],
        nearest: UInt8[Tensor, "F h w"], supersampling: int,
    ) -> Float[Tensor, "3 F h w"]:  # fmt: skip
        """Colours from 0 to 1 of the rays (x, y, 1) that met solid `nearest` at z-depth `depth`."""
        number = nearest.long()
        columns = self._gather(cameras, camera_to_unit, number)
        dx, dy, dz = (columns[k] * x + (columns[k + 1] * y + columns[k + 2]) for k in (0, 4, 8))
        direction = (dx, dy, dz)
        point = (columns[3] + depth * dx, columns[7] + depth * dy, columns[11] + depth * dz)
        sun, inverse_half, repeats = columns[12:15], columns[15:18], columns[18:21]
        offset_u, offset_v, texels, growth, shape, emissive = columns[21:27]
        u, v, normal, face, spread = _surface(point, repeats, growth, shape)
        length = _norm(
            (normal[0] * inverse_half[0], normal[1] * inverse_half[1], normal[2] * inverse_half[2])
        )
        view = (x * x + y * y + 1).sqrt()
        slope = _dot(normal, direction)
        cosine = (slope.abs() / (length * view)).clamp_(min=STEEPEST)
        focal = cameras.intrinsics[:, 0].to(self._dtype).to(self._device)[:, None, None]
        level = torch.log2(texels * depth / (focal * spread)) - SLANT_SHARE * torch.log2(cosine)
        level = level + level_dither(supersampling, level)
        texture = torch.index_select(self._faces, 0, (number * 6 + face.long()).flatten()).view_as(depth)
        colour = self._atlas.sample(texture, u + offset_u, v + offset_v, level)
        # The normal may point inwards: the side that is seen is the lit one.
        facing = -torch.sign(slope) * _dot(normal, sun) / length
        return self._light(colour, facing, emissive, depth, self._floor(cameras, x, y, depth))

    def _gather(self, cameras: CameraPath, camera_to_unit: Tensor, number: Tensor) -> list[Tensor]:
        """The shading table's columns for each ray."""
        count, frames = camera_to_unit.shape[:2]
        sun_in_world = torch.tensor(self._scene.lighting.sun_direction, dtype=torch.float64)
        sun = (cameras.camera_to_world[:, :3, :3].double().transpose(-1, -2) @ sun_in_world).to(self._dtype)
        sun_in_unit = camera_to_unit[..., :3] @ sun.to(self._device)[..., None]
        moving = torch.cat([camera_to_unit.flatten(2), sun_in_unit[..., 0]], -1).permute(2, 1, 0)
        fixed = self._materials[:, None].expand(-1, frames, -1)
        table = torch.cat([moving, fixed]).flatten(1)
        frame = torch.arange(frames, device=self._device)[:, None, None] * count
        index = (number + frame).flatten()
        return [torch.index_select(column, 0, index).view_as(number) for column in table]

    def _floor(self, cameras: CameraPath, x: Tensor, y: Tensor, depth: Tensor) -> Float[Tensor, "2 F h w"]:
        """Shares of sun and sky that reach each ray's hit: 1 everywhere but on the floor."""
        shares = depth.new_ones(2, *depth.shape)
        first = _first_row_below_horizon(cameras)
        if first == cameras.height:
            return shares
        y, depth = y[:, first:], depth[:, first:]
        pose = cameras.camera_to_world.to(self._dtype).to(self._device)[..., None, None]
        world = [
            (pose[:, k, 0] * x + (pose[:, k, 1] * y + pose[:, k, 2])) * depth + pose[:, k, 3]
            for k in range(3)
        ]
        on_floor = ((world[1] - self._scene.floor).abs_() < FLOOR_TOLERANCE).to(self._dtype)
        light = sample_floor_light(self._light_map(cameras), world[0], world[2], self._scene.centre_depth)
        shares[:, :, first:] += (light - 1) * on_floor
        return shares

    def _light_map(self, cameras: CameraPath) -> Float[Tensor, "T 2 m m"]:
        """The floor's light at the cameras' moments, each made once; T is 1 where nothing moves."""
        moments = cameras.times.tolist() if self._scene.is_dynamic else [0.0]
        new = sorted(set(moments) - self._floor_lights.keys())
        if new:
            times = torch.tensor(new, dtype=torch.float64)
            maps = floor_light(self._scene, times, self._device, self._dtype)
            self._floor_lights.update(zip(new, maps, strict=True))
        return torch.stack([self._floor_lights[moment] for moment in moments])

    def _light(
        self, colour: Tensor, facing: Tensor, emissive: Tensor, depth: Tensor, shares: Tensor
    ) -> Float[Tensor, "3 F h w"]:
        """Lit and fogged colours."""
        lighting = self._scene.lighting
        sun = (facing.clamp_(min=-WRAP) + WRAP) * ((1 - lighting.ambient) / (1 + WRAP))
        lit = sun * shares[0] + lighting.ambient * shares[1]
        lit = lit + (1 - lit) * emissive
        clear = torch.exp(depth * (emissive - 1) * lighting.fog_density)
        fog = torch.tensor(lighting.fog_colour, dtype=self._dtype).to(self._device)[:, None, None, None]
        return (colour * lit - fog) * clear + fog


def _surface(
    point: Vector, repeats: list[Tensor], growth: Tensor, shape: Tensor
) -> tuple[Tensor, Tensor, Vector, Tensor, Tensor]:
    """Texture coordinates, normal (in unit coordinates, any length), face number and radius at hits."""
    px, py, pz = point
    ax, ay, az = px.abs(), py.abs(), pz.abs()
    is_box, is_frustum = shape == Shape.BOX, shape == Shape.FRUSTUM
    is_cap = is_frustum & (ay > CAP_START)
    along_x = is_box & (ax >= torch.maximum(ay, az))
    along_y = (is_box & (ay > ax) & (ay >= az)) | is_cap
    is_flat = is_box | is_cap
    x_flat, y_flat = along_x.to(px.dtype), along_y.to(px.dtype)
    qx, qy, qz = px * repeats[0], py * repeats[1], pz * repeats[2]
    around = torch.atan2(pz, px) * (repeats[0] / math.pi)
    latitude = torch.asin(py.clamp(-1, 1)) * (repeats[1] * (2 / math.pi))
    u = torch.where(is_flat, torch.where(along_x, qz, torch.where(is_cap, px * repeats[2], qx)), around)
    v = torch.where(is_flat | is_frustum, torch.where(along_y, qz, qy), latitude)
    curved_y = torch.where(is_frustum, -growth * (1 - growth + growth * py), py)
    normal = (
        torch.where(is_flat, x_flat * px, px),
        torch.where(is_flat, y_flat * py, curved_y),
        torch.where(is_flat, (1 - x_flat - y_flat) * pz, pz),
    )
    face = is_box * (
        torch.where(along_x, px > 0, torch.where(along_y, py > 0, pz > 0)) + 2 * (2 - 2 * x_flat - y_flat)
    )
    radius = (px * px + pz * pz).sqrt().clamp_(min=POLE)
    return u, v, normal, face, torch.where(is_flat, torch.ones_like(radius), radius)


def _first_row_below_horizon(cameras: CameraPath) -> int:
    """First image row in which some ray of some camera points downwards."""
    fx, fy, cx, cy = cameras.intrinsics.double().unbind(-1)
    down = cameras.camera_to_world[:, 1, :3].double()
    across = (down[:, 0] / fx).abs() * torch.maximum(cx, cameras.width - cx)
    row = cy - fy * (down[:, 2] + across) / down[:, 1]
    return int(row.amin().clamp(0, cameras.height))


def _dot(first: Vector, second: Vector | list[Tensor]) -> Tensor:
    """Scalar products of component triples."""
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _norm(vector: Vector) -> Tensor:
    """Lengths of component triples."""
    return _dot(vector, vector).sqrt()


def _material_row(solid: Solid, texture_size: int) -> list[float]:
    """The entries of a solid's row in the shading table that no camera changes."""
    x, y, z = solid.half_extents
    material, (offset_u, offset_v) = solid.material, solid.material.offset
    tiles, repeats = material.tiles_per_unit, material.repeats
    if solid.shape is Shape.BOX and repeats:
        along = (repeats[0] / 2, repeats[1] / 2, repeats[0] / 2)
        offset_u, offset_v = offset_u + repeats[0] / 2, offset_v + repeats[1] / 2
        density = max(repeats) / (2 * sorted(solid.half_extents)[1])
    elif solid.shape is Shape.BOX:
        along, density = (x * tiles, y * tiles, z * tiles), tiles
    else:
        # Whole repeats around close the texture at the seam: it is mirrored, so its period is 2 tiles.
        around = repeats[0] if repeats else float(max(1, round(math.pi * x * tiles)))
        up = math.pi / 2 * y * tiles if solid.shape is Shape.ELLIPSOID else y * tiles
        along = (around, repeats[1] if repeats else up, x * tiles)
        density = max(around / (math.pi * x), tiles if not repeats else 0.0)
    growth = (1 - solid.taper) / 2
    return [
        1 / x, 1 / y, 1 / z, *along, offset_u, offset_v, density * texture_size, growth,
        float(solid.shape), float(material.emissive),
    ]  # fmt: skip
