"""The gsplat backend: 3DGUT or classic EWA on CUDA, whatever the installed version can do."""

from __future__ import annotations

import functools
import inspect

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering.projection import drawable
from lyra_ns.rendering.types import RenderSettings, Response


@functools.cache
def has_ray3d() -> bool:
    """Whether the installed gsplat has 3DGUT's response along the ray."""
    from gsplat import rasterization

    return {"with_ut", "with_eval3d"} <= inspect.signature(rasterization).parameters.keys()


@functools.cache
def takes_batches() -> bool:
    """Whether the installed gsplat takes several scenes at once, which only its documented shapes tell."""
    from gsplat import rasterization

    return "[..., N, 3]" in (rasterization.__doc__ or "")


def rasterize(
    gaussians: Gaussians,
    world_to_camera: Float[Tensor, "B M 4 4"],
    intrinsic_matrix: Float[Tensor, "B M 3 3"],
    size: tuple[int, int],
    settings: RenderSettings,
    response: Response,
) -> tuple[Float[Tensor, "B M H W 4"], Float[Tensor, "B M H W"]]:
    """Blended colours with z-depth, and transmittance, of `size` = (height, width).

    Z-depth travels as a fourth colour of our own: 3DGUT's own depths have no gradient.
    """
    gaussians = _without_undrawable(gaussians)
    depth = _depth(gaussians.means, world_to_camera)
    depth = depth if settings.depth_gradient else depth.detach()
    rgb = gaussians.rgb[:, None].expand(-1, depth.shape[1], -1, -1)
    colours = torch.cat([rgb, depth[..., None]], -1)
    fields = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, colours)
    if gaussians.num == 0:  # gsplat divides by the number of Gaussians
        # The sum of all fields, so that each of them gets its empty gradient.
        nothing = torch.stack([field.sum() for field in fields]).sum().expand(*depth.shape[:2], *size, 4)
        return nothing, 1 - nothing[..., 0]
    scenes = (*fields, world_to_camera, intrinsic_matrix)
    if takes_batches():
        image, alpha = _call_gsplat(scenes, size, settings, response)
    else:
        parts = [_call_gsplat(scene, size, settings, response) for scene in zip(*scenes, strict=True)]
        image, alpha = (torch.stack(part) for part in zip(*parts, strict=True))
    return image, 1 - alpha[..., 0]


def _depth(
    means: Float[Tensor, "B G 3"], world_to_camera: Float[Tensor, "B M 4 4"]
) -> Float[Tensor, "B M G"]:
    """z-depth of every Gaussian in every view.

    No matrix product, which TF32 would round, and one axis at a time, since the products of all three would
    take three times the memory of the result.
    """
    row = world_to_camera[:, :, 2, :, None]  # [B, M, 4, 1]
    x, y, z = means[:, None].unbind(-1)
    return torch.addcmul(
        torch.addcmul(torch.addcmul(row[:, :, 3], x, row[:, :, 0]), y, row[:, :, 1]), z, row[:, :, 2]
    )


def _without_undrawable(gaussians: Gaussians) -> Gaussians:
    """The Gaussians with those that cannot be drawn made transparent, so that they spoil nothing."""
    good = drawable(gaussians)
    return Gaussians(
        means=gaussians.means.where(good[..., None], 0.0),
        quats=gaussians.quats.where(good[..., None], 1.0),
        scales=gaussians.scales.where(good[..., None], 1.0),
        opacities=gaussians.opacities.where(good, 0.0),
        rgb=gaussians.rgb.where(good[..., None], 0.0),
    )


def _call_gsplat(
    scenes: tuple[Tensor, ...], size: tuple[int, int], settings: RenderSettings, response: Response
) -> tuple[Tensor, Tensor]:
    from gsplat import rasterization

    along_ray = {"with_ut": True, "with_eval3d": True} if response == "ray3d" else {}
    image, alpha, _ = rasterization(
        *(tensor.contiguous() for tensor in scenes),
        width=size[1],
        height=size[0],
        near_plane=settings.near,
        far_plane=settings.far,
        eps2d=settings.dilation,
        packed=False,
        render_mode="RGB",
        **along_ray,
    )
    return image, alpha
