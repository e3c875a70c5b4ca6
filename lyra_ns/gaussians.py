"""Gaussians: the explicit scene, how the decoder's raw numbers become one, and what can be done to it.

Shape letters: B scenes, G Gaussians; `*batch` is empty or B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import RayGrid

NUM_RAW_CHANNELS = 12
"""Channels of the decoder's output: distance 1, rgb 3, scale 3, rotation 4, opacity 1."""
FILES_MODULE = "lyra_ns.export.files"
"""Writes and reads Gaussians; by name, because it needs this module."""


@dataclass(frozen=True)
class Gaussians:
    """A set of 3D Gaussians, all quantities activated, in the OpenCV frame of the reference camera."""

    means: Float[Tensor, "*batch G 3"]
    """Centres."""
    quats: Float[Tensor, "*batch G 4"]
    """Unit rotations, w x y z."""
    scales: Float[Tensor, "*batch G 3"]
    """Standard deviations along the rotated axes, world units."""
    opacities: Float[Tensor, "*batch G"]
    """Opacity in [0, 1]."""
    rgb: Float[Tensor, "*batch G 3"]
    """Colour in [0, 1]; no spherical harmonics."""

    @property
    def num(self) -> int:
        """How many Gaussians one scene has."""
        return self.means.shape[-2]

    def _map(self, function: Any) -> Gaussians:
        return Gaussians(**{field.name: function(getattr(self, field.name)) for field in fields(self)})

    def to(self, device: torch.device | str) -> Gaussians:
        """The same Gaussians on `device`."""
        return self._map(lambda tensor: tensor.to(device))

    def detach(self) -> Gaussians:
        """The same Gaussians outside the autograd graph."""
        return self._map(lambda tensor: tensor.detach())

    @staticmethod
    def load(path: str | Path) -> Gaussians:
        """The Gaussians [G] of a 3DGS PLY, ours or any trainer's, on the CPU; ValueError for other files."""
        gaussians: Gaussians = import_module(FILES_MODULE).load_gaussians(path)
        return gaussians

    def save(self, path: str | Path, **page: Any) -> Path:
        """The path of the file to which one scene [G] was written; its ending is .ply, .splat or .html.

        `camera`, `title` and `response` of a page are those of `lyra_ns.export.files.save_gaussians`.
        """
        written: Path = import_module(FILES_MODULE).save_gaussians(self, path, **page)
        return written

    def scene(self, index: int) -> Gaussians:
        """The Gaussians of one scene of a batch."""
        return self._map(lambda tensor: tensor[index])

    def select(self, index: Int[Tensor, "*batch K"]) -> Gaussians:
        """The Gaussians at `index`, which has the same leading axes."""
        picked = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            if field.name == "opacities":
                picked[field.name] = tensor.gather(-1, index)
            else:
                picked[field.name] = tensor.gather(
                    -2, index[..., None].expand(*index.shape, tensor.shape[-1])
                )
        return Gaussians(**picked)

    def transform(self, world_from_local: Float[Tensor, "4 4"]) -> Gaussians:
        """The Gaussians moved by a rotation and translation (no scaling)."""
        rotation = world_from_local[:3, :3].to(self.means)
        means = self.means @ rotation.T + world_from_local[:3, 3].to(self.means)
        quats = multiply_quaternions(quaternion_from_matrix(rotation), self.quats)
        return Gaussians(means, quats, self.scales, self.opacities, self.rgb)


def concatenate(parts: list[Gaussians]) -> Gaussians:
    """All parts as one set, in order."""
    axis = {"opacities": -1}
    return Gaussians(
        **{
            field.name: torch.cat([getattr(part, field.name) for part in parts], axis.get(field.name, -2))
            for field in fields(Gaussians)
        }
    )


@dataclass
class GaussianHeadConfig:
    """How raw decoder outputs become Gaussians. Defaults are the official ones.

    Source: docs/reference/decoder.md, "Gaussian head".
    """

    near: float = 0.1
    """Smallest distance along a ray."""
    far: float = 500.0
    """Largest distance along a ray."""
    distance_law: Literal["linear", "logarithmic"] = "linear"
    """How the sigmoid of the raw distance runs from near to far; small-scale stabiliser: logarithmic."""
    distance_shift: float = -1.65
    """Added to the raw distance before the sigmoid."""
    opacity_shift: float = -2.0
    """Added to the raw opacity before the sigmoid."""
    scale_law: Literal["capped", "footprint"] = "capped"
    """World-unit scales with a cap, or (small-scale stabiliser) multiples of the cell's footprint."""
    scale_cap: float = 0.3
    """Largest scale in world units (capped)."""
    footprint_gain: float = 0.6
    """Scale of a raw zero as a fraction of the cell's size at the Gaussian's distance (footprint)."""
    footprint_limit: float = 1.2
    """Largest raw scale (footprint): 1.2 is twice the cell's size, 0.4 nine tenths of it."""
    identity_rotation: bool = False
    """Add the identity to the raw quaternion, so that a raw zero is no rotation."""


def gaussians_from_raw(raw: Float[Tensor, "B G 12"], rays: RayGrid, config: GaussianHeadConfig) -> Gaussians:
    """Gaussians from the decoder's raw channels, each on the ray of its cell; `rays` in [B, V, L, h, w]."""
    return gaussians_on_cells(raw, rays.flatten_cells(), config)


def gaussians_on_cells(raw: Float[Tensor, "B G 12"], cells: RayGrid, config: GaussianHeadConfig) -> Gaussians:
    """Gaussians from raw channels, one for each ray of `cells` [B, 1, G], which need not fill a grid."""
    distance, rgb, scale, rotation, opacity = raw.split([1, 3, 3, 4, 1], -1)
    along_ray = activate_distance(distance, config)
    return Gaussians(
        means=cells.origins[:, 0] + cells.directions[:, 0] * along_ray,
        quats=activate_rotation(rotation, config),
        scales=activate_scale(scale, along_ray * cells.cell_size[:, 0, :, None], config),
        opacities=activate_opacity(opacity[..., 0], config),
        rgb=0.5 * torch.tanh(rgb) + 0.5,
    )


def activate_distance(raw: Float[Tensor, "*any"], config: GaussianHeadConfig) -> Float[Tensor, "*any"]:
    """Distance along the unit ray, between near and far."""
    weight = torch.sigmoid(raw + config.distance_shift)
    if config.distance_law == "linear":
        return config.near * (1 - weight) + config.far * weight
    return torch.exp(math.log(config.near) * (1 - weight) + math.log(config.far) * weight)


def activate_opacity(raw: Float[Tensor, "*any"], config: GaussianHeadConfig) -> Float[Tensor, "*any"]:
    """Opacity between 0 and 1."""
    return torch.sigmoid(raw + config.opacity_shift)


def activate_scale(
    raw: Float[Tensor, "*any 3"], footprint: Float[Tensor, "*any 1"], config: GaussianHeadConfig
) -> Float[Tensor, "*any 3"]:
    """Standard deviations in world units."""
    if config.scale_law == "capped":
        return torch.exp(raw - (1.0 - math.log(config.scale_cap))).clamp(max=config.scale_cap)
    # A Gaussian much wider than its cell smears, a much narrower one cannot be seen: bound both.
    return config.footprint_gain * footprint * torch.exp(raw.clamp(-3.0, config.footprint_limit))


def activate_rotation(raw: Float[Tensor, "*any 4"], config: GaussianHeadConfig) -> Float[Tensor, "*any 4"]:
    """Unit quaternions, w x y z."""
    if config.identity_rotation:
        raw = raw + raw.new_tensor([1.0, 0.0, 0.0, 0.0])
    return functional.normalize(raw, dim=-1, eps=1e-12)


def num_kept(num: int, prune_ratio: float) -> int:
    """How many of `num` Gaussians stay: rounded down in float64 as the official code does.

    Source: docs/reference/decoder.md, "Pruning".
    """
    if not 0.0 <= prune_ratio < 1.0:
        raise ValueError(f"prune ratio must be in [0, 1), found {prune_ratio}: 0.8 keeps one in five")
    return int(num * (1.0 - prune_ratio))


def prune(gaussians: Gaussians, prune_ratio: float) -> Gaussians:
    """The Gaussians without the share `prune_ratio` of least opaque ones, most opaque first.

    Equal opacities are decided by position, so that every device keeps the same set.
    """
    kept = num_kept(gaussians.num, prune_ratio)
    if kept == gaussians.num:
        return gaussians
    return gaussians.select(most_opaque(gaussians.opacities, kept))


def most_opaque(opacities: Float[Tensor, "*batch G"], num: int) -> Int[Tensor, "*batch K"]:
    """Positions of the `num` largest opacities, most opaque first and equal ones by position.

    The first `num` entries of a stable descending argsort, without sorting what is left out.
    """
    positions = most_opaque_in_place(opacities, num)
    order = opacities.detach().gather(-1, positions).argsort(dim=-1, descending=True, stable=True)
    return positions.gather(-1, order)


def most_opaque_in_place(opacities: Float[Tensor, "*batch G"], num: int) -> Int[Tensor, "*batch K"]:
    """The positions of `most_opaque` in ascending order; a GPU is not waited for."""
    total = opacities.shape[-1]
    if num == 0:
        return opacities.new_zeros(*opacities.shape[:-1], 0, dtype=torch.int64)
    # An argsort holds NaN to be the largest number, and so must the comparisons below.
    keys = opacities.detach().nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    if keys.is_cuda:  # Each of the two is slow on the other device.
        least = keys.topk(num, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    else:
        least = keys.kthvalue(total - num + 1, dim=-1, keepdim=True).values
    above, tied = keys > least, keys == least
    num_tied = num - above.sum(-1, keepdim=True)
    kept = above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= num_tied))
    if not keys.is_cuda:
        return kept.nonzero()[:, -1].view(*opacities.shape[:-1], num)
    counts = torch.arange(1, num + 1, device=keys.device, dtype=torch.int32)
    counts = counts.expand(*opacities.shape[:-1], num).contiguous()
    return torch.searchsorted(kept.cumsum(-1, dtype=torch.int32), counts)


def quaternion_from_matrix(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "4"]:
    """Unit quaternion (w x y z, w >= 0) of a rotation matrix, by its dominant eigenvector."""
    m = rotation.double()
    xx, xy, xz, yx, yy, yz, zx, zy, zz = m.flatten().tolist()
    symmetric = torch.tensor(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ],
        dtype=torch.float64,
    )
    quaternion = torch.linalg.eigh(symmetric).eigenvectors[:, -1]
    return (quaternion * (1.0 if quaternion[0] >= 0 else -1.0)).to(rotation)


def multiply_quaternions(
    left: Float[Tensor, "*#batch 4"], right: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch 4"]:
    """Product of quaternions (w x y z): the rotation `right` followed by `left`."""
    lw, lx, ly, lz = left.unbind(-1)
    rw, rx, ry, rz = right.unbind(-1)
    return torch.stack(
        [
            lw * rw - lx * rx - ly * ry - lz * rz,
            lw * rx + lx * rw + ly * rz - lz * ry,
            lw * ry - lx * rz + ly * rw + lz * rx,
            lw * rz + lx * ry - ly * rx + lz * rw,
        ],
        -1,
    )
