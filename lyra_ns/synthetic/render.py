"""Images and exact depth of a scene by ray casting; the same code on the CPU and on CUDA.

Rays of a camera are (x, y, 1) in its own frame, so the ray parameter is the z-depth. Every solid is tried on
the rectangle of the image that its projection covers; rectangles come from the CPU's copy of the cameras, so
nothing ever waits for the device. The nearest solid is remembered by number, and shaded once at the end:
texture (all textures of a scene lie with their mipmaps in one image), light, soft shadows of the sun and of
the sky on the floor, kept as a small map, and fog.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, project
from lyra_ns.synthetic.scenes import ProceduralScene
from lyra_ns.synthetic.solids import MISS, Shape, Solid, Vector, hit, unit_to_world


@dataclass(frozen=True)
class TextureAtlas:
    """One image: a grid of tiles, each a texture beside the column of its smaller levels."""

    image: Float[Tensor, "1 3 rows columns"]
    """The packed textures."""
    size: int
    """Side of the largest level, in texels."""
    tiles_across: int
    """Tiles in a row."""
    num_levels: int
    """Mipmap levels, each half the size of the one before."""

    def sample(
        self, texture: Float[Tensor, "F h w"], u: Tensor, v: Tensor, level: Tensor
    ) -> Float[Tensor, "3 F h w"]:
        """Colours of textures at (u, v) in tiles, mirrored beyond 0..1, from the level nearest to `level`."""
        u, v = ((x - 2 * torch.round(0.5 * x)).abs_() for x in (u, v))
        row = torch.floor((texture + 0.5) / self.tiles_across)
        column = texture - row * self.tiles_across
        level = torch.round(level.clamp(0, self.num_levels - 1))
        side = self.size * torch.exp2(-level)
        below = level.clamp_(max=1)
        # Level 0 fills the left of a tile; level k stands to its right, from size - 2 side downwards.
        left = column * (1.5 * self.size) + below * self.size
        top = row * self.size + below * (self.size - 2 * side)
        last = side - 0.5
        x = left + torch.minimum((u * side).clamp_(min=0.5), last)
        y = top + torch.minimum((v * side).clamp_(min=0.5), last)
        rows, columns = self.image.shape[-2:]
        grid = torch.stack([x * (2 / columns) - 1, y * (2 / rows) - 1], -1)
        flat = grid.flatten(0, 1)[None]
        colours = functional.grid_sample(self.image, flat, align_corners=False, padding_mode="border")
        return colours[0].unflatten(1, u.shape[:2])


def level_dither(supersampling: int, level: Float[Tensor, "F h w"]) -> Float[Tensor, "h w"]:
    """Offsets to the level of each sample whose mean over a pixel is 0.

    The samples of a pixel so blend two levels between them, as trilinear filtering does for twice the price.
    """
    count = supersampling**2
    offsets = (torch.arange(count, device=level.device, dtype=level.dtype) + 0.5) / count - 0.5
    height, width = level.shape[-2:]
    return offsets.view(supersampling, supersampling).repeat(height // supersampling, width // supersampling)


def build_atlas(textures: Float[Tensor, "N 3 size size"]) -> TextureAtlas:
    """The atlas of textures whose side is a power of two."""
    count, _, size, _ = textures.shape
    tiles_across = max(1, round(math.sqrt(count / 1.5)))
    tiles_down = math.ceil(count / tiles_across)
    num_levels = int(math.log2(size))
    image = textures.new_zeros(tiles_down, tiles_across, 3, size, size * 3 // 2)
    tiles = image.flatten(0, 1)
    tiles[:count, :, :, :size] = textures
    level, top = textures, 0
    for _ in range(1, num_levels):
        level = functional.avg_pool2d(level, 2)
        side = level.shape[-1]
        tiles[:count, :, top : top + side, size : size + side] = level
        top += side
    packed = image.permute(2, 0, 3, 1, 4).reshape(1, 3, tiles_down * size, tiles_across * size * 3 // 2)
    return TextureAtlas(packed.contiguous(), size, tiles_across, num_levels)


SHADOW_REACH = 5.0
"""Half side of the map; it is centred on the floor below the scene's centre."""
SHADOW_TEXELS = 96
"""Texels along each side of the map."""
SUN_SAMPLES = 6
"""Directions within the sun's disc."""
SKY_SAMPLES = 10
"""Directions of the sky."""
SUN_RADIUS = 0.09
"""Radius of the sun's disc as a slope: decides how soft shadows are."""
LIFT = 0.01
"""Height over the floor at which light is gathered."""


def floor_light(
    scene: ProceduralScene, times: Float[Tensor, " T"], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "T 2 m m"]:
    """Shares of the sun and of the sky that the floor sees at each moment; rows along z, columns along x."""
    solids = [solid for solid in scene.solids if solid.casts_shadow]
    if not solids:
        return torch.ones(len(times), 2, SHADOW_TEXELS, SHADOW_TEXELS, device=device, dtype=dtype)
    world_to_unit = torch.linalg.inv(unit_to_world(solids, times.double())).to(dtype)
    directions = _directions(scene).to(dtype)
    steps = (torch.arange(SHADOW_TEXELS, device=device, dtype=dtype) + 0.5) / SHADOW_TEXELS * 2 - 1
    x, z = SHADOW_REACH * steps[None, :], scene.centre_depth + SHADOW_REACH * steps[:, None]
    maps = [_visibility(scene, solids, moment, directions, x, z) for moment in world_to_unit]
    return functional.avg_pool2d(torch.stack(maps), 3, stride=1, padding=1, count_include_pad=False)


def _visibility(
    scene: ProceduralScene,
    solids: list[Solid],
    world_to_unit: Tensor,
    directions: Tensor,
    x: Tensor,
    z: Tensor,
) -> Float[Tensor, "2 m m"]:
    """Shares of unblocked directions at one moment."""
    blocked = x.new_full((len(directions), SHADOW_TEXELS, SHADOW_TEXELS), -1.0)
    y = scene.floor - LIFT
    turned = (world_to_unit[:, None, :3, :3] @ directions[None, ..., None])[..., 0].to(x.device)
    matrices = world_to_unit.to(x.device)
    for number, solid in enumerate(solids):
        m = matrices[number]
        origin = tuple(m[k, 0] * x + (m[k, 2] * z + (m[k, 1] * y + m[k, 3])) for k in range(3))
        direction = tuple(turned[number, :, k, None, None] for k in range(3))
        # The exit lies ahead where the ray starts inside the solid or before it.
        leave = hit(
            solid, (origin[0], origin[1], origin[2]), (direction[0], direction[1], direction[2]), True
        )
        blocked = torch.maximum(blocked, leave)
    free = (blocked < 0).to(x.dtype)
    return torch.stack([free[:SUN_SAMPLES].mean(0), free[SUN_SAMPLES:].mean(0)])


def _directions(scene: ProceduralScene) -> Float[Tensor, "N 3"]:
    """Directions on the sun's disc, then cosine-distributed ones of the sky (up is -y)."""
    sun = torch.tensor(scene.lighting.sun_direction, dtype=torch.float64)
    spiral = torch.arange(SUN_SAMPLES, dtype=torch.float64)
    radius, angle = SUN_RADIUS * ((spiral + 0.5) / SUN_SAMPLES).sqrt(), 2.39996 * spiral
    offsets = torch.stack([radius * torch.cos(angle), torch.zeros_like(angle), radius * torch.sin(angle)], -1)
    spiral = torch.arange(SKY_SAMPLES, dtype=torch.float64)
    radius, angle = ((spiral + 0.5) / SKY_SAMPLES).sqrt(), 2.39996 * spiral
    sky = torch.stack(
        [radius * torch.cos(angle), -(1 - radius.square()).sqrt(), radius * torch.sin(angle)], -1
    )
    return torch.cat([functional.normalize(sun + offsets, dim=-1), sky])


def sample_floor_light(
    light: Float[Tensor, "T 2 m m"], x: Float[Tensor, "F h w"], z: Float[Tensor, "F h w"], centre_depth: float
) -> Float[Tensor, "2 F h w"]:
    """The map's shares at floor positions; T is 1 or F. Unshaded beyond the map's edge texels."""
    grid = torch.stack([x, z - centre_depth], -1) * (1 / SHADOW_REACH)
    if len(light) == 1:
        grid = grid.flatten(0, 1)[None]
    sampled = functional.grid_sample(light, grid, align_corners=False, padding_mode="border")
    return sampled.transpose(0, 1).reshape(2, *x.shape)


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


BEYOND = 1e4
"""Depth where a ray has met nothing yet."""
NEAR = 1e-2
"""Solids with a corner nearer than this in some camera are tried on the whole image."""


@dataclass(frozen=True)
class WorkSize:
    """Rays that one device takes at once."""

    cast: int
    """Rays cast at once: enough frames to hide what each call costs."""
    shade: int
    """Rays shaded at once: what caches or memory hold, with some thirty numbers for each ray."""


WORK_SIZES = {"cuda": WorkSize(1 << 23, 1 << 23), "cpu": WorkSize(1 << 19, 1 << 16)}
"""Work sizes by device type; on CUDA about 1.5 GB."""


@dataclass(frozen=True)
class RenderedFrames:
    """What a camera path sees of a scene."""

    rgb: UInt8[Tensor, "L 3 H W"]
    """Frames."""
    depth: Float[Tensor, "L H W"]
    """z-depth at the pixel centres."""


@dataclass(frozen=True)
class _Rays:
    """Rays of a regular grid over the images of F cameras, as components in camera axes."""

    x: Float[Tensor, "F 1 w"]
    y: Float[Tensor, "F h 1"]

    def within(self, matrix: Float[Tensor, "F 3 4"], area: tuple[slice, slice]) -> tuple[Vector, Vector]:
        """Origins and directions of the rays of a rectangle, mapped by an affine matrix from camera axes."""
        rows, columns = area
        x, y = self.x[:, :, columns], self.y[:, rows]
        m = matrix[..., None, None]
        origin = (m[:, 0, 3], m[:, 1, 3], m[:, 2, 3])
        direction = tuple(m[:, k, 0] * x + (m[:, k, 1] * y + m[:, k, 2]) for k in range(3))
        return origin, (direction[0], direction[1], direction[2])


class SceneRenderer:
    """Renders one scene on one device."""

    def __init__(
        self, scene: ProceduralScene, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.scene = scene
        self.device = torch.device(device)
        self.dtype = dtype
        self._work = WORK_SIZES["cuda" if self.device.type == "cuda" else "cpu"]
        self._shader = Shader(scene, self.device, dtype)

    def render(self, cameras: CameraPath, supersampling: int = 2) -> RenderedFrames:
        """Frames [L] of the cameras (on the CPU), each pixel the mean of `supersampling`^2 samples."""
        rays_per_frame = cameras.height * cameras.width * supersampling**2
        frames = max(1, self._work.cast // rays_per_frame)
        chunks = [
            self._render_chunk(cameras[start : start + frames], supersampling)
            for start in range(0, cameras.shape[0], frames)
        ]
        return RenderedFrames(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))

    @torch.inference_mode()
    def _render_chunk(self, cameras: CameraPath, supersampling: int) -> tuple[Tensor, Tensor]:
        """Frames and depth of a few cameras."""
        to_world = unit_to_world(self.scene.solids, cameras.times.double())
        boxes = _projected_boxes(to_world, cameras)
        # From camera axes to the unit coordinates of each solid: [P, F, 3, 4], made in double precision.
        camera_to_unit = torch.linalg.inv(to_world) @ cameras.camera_to_world.double()[:, None]
        camera_to_unit = self._on_device(camera_to_unit[..., :3, :].transpose(0, 1))
        fine = cameras.resized(cameras.height * supersampling, cameras.width * supersampling)
        depth, nearest = self._find_nearest(fine, camera_to_unit, boxes)
        rgb = self._shade(fine, camera_to_unit, depth, nearest, supersampling)
        if supersampling > 1:
            depth, _ = self._find_nearest(cameras, camera_to_unit, boxes)
        return rgb, depth

    def _shade(
        self, cameras: CameraPath, camera_to_unit: Tensor, depth: Tensor, nearest: Tensor, supersampling: int
    ) -> UInt8[Tensor, "L 3 H W"]:
        """Frames from what the rays met, band by band."""
        frames, height, width = depth.shape
        rows = max(1, self._work.shade // (frames * width * supersampling)) * supersampling
        bands = []
        for start in range(0, height, rows):
            band = slice(start, min(start + rows, height))
            part = _rows(cameras, band)
            rays = self._rays(part)
            colours = self._shader.shade(
                part, rays.x, rays.y, camera_to_unit, depth[:, band], nearest[:, band], supersampling
            )
            mean = functional.avg_pool2d(colours.transpose(0, 1), supersampling)
            bands.append((mean * 255).round_().clamp_(0, 255).to(torch.uint8))
        return torch.cat(bands, 2)

    def _find_nearest(
        self,
        cameras: CameraPath,
        camera_to_unit: Float[Tensor, "P F 3 4"],
        boxes: list[tuple[float, ...] | None],
    ) -> tuple[Float[Tensor, "F h w"], UInt8[Tensor, "F h w"]]:
        """Depth and number of the nearest solid along each ray."""
        rays = self._rays(cameras)
        shape = (*cameras.shape, cameras.height, cameras.width)
        depth = torch.full(shape, BEYOND, device=self.device, dtype=self.dtype)
        nearest = torch.zeros(shape, device=self.device, dtype=torch.uint8)
        for number, (solid, box) in enumerate(zip(self.scene.solids, boxes, strict=True)):
            if box is None:
                continue
            area = _area(box, cameras.height, cameras.width)
            t = hit(solid, *rays.within(camera_to_unit[number], area), exits=solid.encloses)
            t = t + t.clamp(max=0) * -MISS  # behind the camera
            depth_there, nearest_there = depth[:, area[0], area[1]], nearest[:, area[0], area[1]]
            closer = t < depth_there
            depth_there.copy_(torch.minimum(t, depth_there))
            nearest_there.masked_fill_(closer, number)
        return depth, nearest

    def _rays(self, cameras: CameraPath) -> _Rays:
        """Rays through the pixel centres."""
        fx, fy, cx, cy = cameras.intrinsics.double().unbind(-1)
        columns = torch.arange(cameras.width, dtype=torch.float64) + 0.5
        rows = torch.arange(cameras.height, dtype=torch.float64) + 0.5
        x = (columns - cx[:, None]) / fx[:, None]
        y = (rows - cy[:, None]) / fy[:, None]
        return _Rays(self._on_device(x[:, None, :]), self._on_device(y[:, :, None]))

    def _on_device(self, values: Tensor) -> Tensor:
        """Values in the working precision on the renderer's device."""
        return values.to(self.dtype).contiguous().to(self.device, non_blocking=True)


def _projected_boxes(
    to_world: Float[Tensor, "F P 4 4"], cameras: CameraPath
) -> list[tuple[float, ...] | None]:
    """For each solid the image rectangle (left, top, right, bottom; 0 to 1) that holds it in all frames.

    None where it is out of sight; everything where it reaches behind a camera.
    """
    signs = torch.tensor([-1.0, 1.0], dtype=to_world.dtype)
    corners = torch.cartesian_prod(signs, signs, signs)
    points = (to_world[..., :3, :3] @ corners.T + to_world[..., :3, 3:]).transpose(-1, -2)
    count = points.shape[1]
    double = replace(
        cameras,
        camera_to_world=cameras.camera_to_world.double(),
        intrinsics=cameras.intrinsics.double(),
    )
    pixels, depth = project(points.flatten(1, 2), double)
    pixels, depth = (values.unflatten(1, (count, 8)) for values in (pixels, depth))
    size = torch.tensor([cameras.width, cameras.height], dtype=pixels.dtype)
    low, high = (pixels / size).amin((0, 2)), (pixels / size).amax((0, 2))
    nearest, farthest = depth.amin((0, 2)).tolist(), depth.amax((0, 2)).tolist()
    boxes: list[tuple[float, ...] | None] = []
    for k, (start, end) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if nearest[k] < NEAR:
            boxes.append((0.0, 0.0, 1.0, 1.0) if farthest[k] > NEAR else None)
        else:
            outside = end[0] < 0 or end[1] < 0 or start[0] > 1 or start[1] > 1
            boxes.append(None if outside else (*start, *end))
    return boxes


def _rows(cameras: CameraPath, band: slice) -> CameraPath:
    """Cameras whose images are a band of rows of the given ones."""
    intrinsics = cameras.intrinsics - cameras.intrinsics.new_tensor([0.0, 0.0, 0.0, band.start])
    return replace(cameras, intrinsics=intrinsics, height=band.stop - band.start)


def _area(box: tuple[float, ...], height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a grid that cover a rectangle, with one to spare on each side."""
    left, top, right, bottom = box
    rows = slice(max(0, int(top * height) - 1), max(0, min(height, int(bottom * height) + 2)))
    columns = slice(max(0, int(left * width) - 1), max(0, min(width, int(right * width) + 2)))
    return rows, columns
