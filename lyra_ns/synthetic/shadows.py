"""How much light reaches the floor: soft shadows of the sun and of the sky, kept as a small map."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.synthetic.scenes import ProceduralScene
from lyra_ns.synthetic.solids import Solid, hit, unit_to_world

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
