"""Splats: what one camera sees of each Gaussian, for both responses, differentiable.

Both responses are alpha = opacity * exp(-q / (2 d)), with q and d polynomials in a pixel's offset from the
splat's centre. For EWA, q is the inverse of the covariance projected by the local affine map and widened by
the dilation, and d is 1. Along the ray in 3D (3DGUT's eval3d) the exponent is |M r x M p|^2 / (2 |M r|^2)
with M = S^-1 R^T, the ray's direction r and the mean p, both in the camera. Since M r x M p = cof(M) (r x p)
and r x p is linear in the pixel's offset, its numerator is the EWA form without dilation and its denominator
d the quadratic polynomial |cof(S) R^T r|^2. Unlike the cross product itself, this neither divides by a scale
nor subtracts large numbers, so float32 is enough.

Shape letters: G Gaussians, N those that may be seen. Inside, components come first ([3, N]), so that every
operation runs over contiguous memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering.types import MIN_ALPHA, RenderSettings, Response

WIDEST_TANGENT = 1e4
"""Means farther to the side than this multiple of their depth are not drawn: float32 would overflow."""

THINNEST = 1e-5
"""Scales count as at least this fraction of the Gaussian's largest one, for the same reason."""

SMALLEST_FOOTPRINT = 1e-6
"""Gaussians below this size in pixels are not drawn along rays, which would have to hit them exactly."""

LARGEST_FOOTPRINT = 1e8
"""Gaussians above this size in pixels are not drawn: float32 would overflow."""


@dataclass(frozen=True)
class View:
    """One camera."""

    world_to_camera: Float[Tensor, "4 4"]
    """OpenCV pose."""
    intrinsics: Float[Tensor, "4"]
    """fx, fy, cx, cy in pixels."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""


@dataclass(frozen=True)
class Splats:
    """The Gaussians that a camera may see, in the order of the scene."""

    centres: Float[Tensor, "N 2"]
    """Projected means, x y in pixels."""
    whitenings: Float[Tensor, "N 3"]
    """(a, b, c) of q = (a x + b y)^2 + (c y)^2, in 1 / pixels."""
    perspectives: Float[Tensor, "N 5"] | None
    """(u, v, e, f, g) of d = 1 + u x + v y + e x^2 + 2 f x y + g y^2; None: d is 1 (EWA)."""
    opacities: Float[Tensor, "N"]
    """Opacity at the centre."""
    colours: Float[Tensor, "N 4"]
    """Red, green, blue and z-depth."""
    depths: Float[Tensor, "N"]
    """Z-depth of the means, by which splats are sorted; no gradient."""
    boxes: Int[Tensor, "N 4"]
    """First and end column, first and end row of the pixels where alpha reaches its minimum (int32)."""


def drawable(gaussians: Gaussians) -> Bool[Tensor, "*batch G"]:
    """Which Gaussians are finite, with positive scales and a quaternion other than zero."""
    length = gaussians.quats.square().sum(-1)
    return (
        gaussians.means.isfinite().all(-1)
        & gaussians.rgb.isfinite().all(-1)
        & gaussians.opacities.isfinite()
        & (gaussians.scales.isfinite() & (gaussians.scales > 0)).all(-1)
        & (length.isfinite() & (length > 0))
    )


def project(gaussians: Gaussians, view: View, settings: RenderSettings, response: Response) -> Splats:
    """The splats of one scene's Gaussians in one view.

    Left out are Gaussians whose mean lies outside [near, far] in z-depth, whose opacity is below 1/255, or
    that are not `drawable`. Boxes are exact up to a margin of a hundredth of a pixel: they cut nothing.
    """
    seen, in_camera = _select_seen(gaussians, view, settings, response)
    fx, fy, cx, cy = view.intrinsics
    x, y, depth = in_camera
    tangent_x, tangent_y = x / depth, y / depth
    centres = torch.stack([fx * tangent_x + cx, fy * tangent_y + cy]).T
    if response == "ewa":
        tangent_x, tangent_y = _limit_tangents(tangent_x, tangent_y, view)
    footprint = _footprint(seen, view, tangent_x, tangent_y, depth)
    dilation = settings.dilation if response == "ewa" else 0.0
    reach = 2 * torch.log(seen.opacities.detach() / MIN_ALPHA).clamp(min=0)
    shown_depth = depth if settings.depth_gradient else depth.detach()
    return Splats(
        centres=centres,
        whitenings=footprint.whitenings(dilation),
        perspectives=footprint.perspectives(view) if response == "ray3d" else None,
        opacities=seen.opacities,
        colours=torch.cat([seen.rgb.T, shown_depth[None]]).T,
        depths=depth.detach(),
        boxes=_pixel_boxes(centres.detach(), footprint.bounds(reach, response, dilation), view),
    )


def _select_seen(
    gaussians: Gaussians, view: View, settings: RenderSettings, response: Response
) -> tuple[Gaussians, Float[Tensor, "3 N"]]:
    """The Gaussians that may be seen and their means in the camera; gradients of the others are zero."""
    rotation, translation = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3:]
    with torch.no_grad():
        x, y, z = rotation @ gaussians.means.T + translation
        seen = drawable(gaussians) & (z >= settings.near) & (z <= settings.far)
        seen &= (gaussians.opacities >= MIN_ALPHA) & (torch.maximum(x.abs(), y.abs()) < WIDEST_TANGENT * z)
        size = gaussians.scales.amax(-1) * view.intrinsics[:2].amax()
        seen &= size < LARGEST_FOOTPRINT * z
        if response == "ray3d":
            seen &= size > SMALLEST_FOOTPRINT * z
    index = seen.nonzero()[:, 0]
    fields = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.rgb)
    chosen = Gaussians(*(field.index_select(0, index) for field in fields))
    return chosen, rotation @ chosen.means.T + translation


def _limit_tangents(
    x: Float[Tensor, "N"], y: Float[Tensor, "N"], view: View
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Tangents at which the affine map is taken: gsplat keeps them within 1.3 fields of view."""
    fx, fy, cx, cy = view.intrinsics
    margin_x, margin_y = 0.15 * view.width / fx, 0.15 * view.height / fy
    return (
        x.clamp(-cx / fx - margin_x, (view.width - cx) / fx + margin_x),
        y.clamp(-cy / fy - margin_y, (view.height - cy) / fy + margin_y),
    )


@dataclass(frozen=True)
class _Footprint:
    """Geometry of Gaussians in a camera. Vectors [3, N] run over the Gaussian's own axes."""

    along_x: Tensor
    """Pixel offset in x of one standard deviation along each axis."""
    along_y: Tensor
    """The same in y."""
    along_z: Tensor
    """The same in depth, relative to the mean's depth."""
    normal: Tensor
    """cof(S) R^T r for the ray r = (x, y, 1) of the mean, S relative to the largest scale."""
    normal_by_x: Tensor
    """Its derivative by the ray's x."""
    normal_by_y: Tensor
    """Its derivative by the ray's y."""
    size_x: Tensor
    """[N] Largest scale in pixels, in x."""
    size_y: Tensor
    """[N] The same in y."""

    def whitenings(self, dilation: float) -> Float[Tensor, "N 3"]:
        """Factors of the inverse of the dilated covariance."""
        variance_x = _dot(self.along_x, self.along_x)
        variance_y = _dot(self.along_y, self.along_y) + dilation
        # Variance of x at fixed y, i.e. the determinant (that of the undilated covariance is the squared
        # length of the normal, which is free of cancellation) over the variance of y.
        conditional = self.size_x.square() * _dot(self.normal, self.normal)
        conditional = conditional * (self.size_y.square() / variance_y)
        conditional = conditional + dilation * (variance_x + variance_y) / variance_y
        a, c = conditional.rsqrt(), variance_y.rsqrt()
        return torch.stack([a, -a * _dot(self.along_x, self.along_y) / variance_y, c]).T

    def perspectives(self, view: View) -> Float[Tensor, "N 5"]:
        """The quadratic polynomial d, which is 1 at the mean."""
        thickness = _dot(self.normal, self.normal)
        step_x, step_y = self.normal_by_x / view.intrinsics[0], self.normal_by_y / view.intrinsics[1]
        terms = [
            2 * _dot(step_x, self.normal),
            2 * _dot(step_y, self.normal),
            _dot(step_x, step_x),
            _dot(step_x, step_y),
            _dot(step_y, step_y),
        ]
        return (torch.stack(terms) / thickness).T

    @torch.no_grad()
    def bounds(self, reach: Float[Tensor, "N"], response: Response, dilation: float) -> Float[Tensor, "4 N"]:
        """Least and greatest offset in x and in y, in pixels, where q / d does not exceed `reach`."""
        variances = torch.stack([_dot(self.along_x, self.along_x), _dot(self.along_y, self.along_y)])
        if response == "ewa":
            extent = (reach * (variances + dilation)).sqrt()
            return torch.stack([-extent[0], extent[0], -extent[1], extent[1]])
        # The outline of an ellipsoid of `reach` is where its dual conic has roots. It has none if the
        # ellipsoid reaches the plane through the camera: then every pixel may see it.
        in_front = 1 - reach * _dot(self.along_z, self.along_z)
        skew = torch.stack([_dot(self.along_x, self.along_z), _dot(self.along_y, self.along_z)]) * reach
        root = (skew.square() + in_front * reach * variances).sqrt()
        bounds = torch.stack([-skew - root, -skew + root], 1).flatten(0, 1) / in_front
        everything = bounds.new_tensor([-torch.inf, torch.inf, -torch.inf, torch.inf])[:, None]
        return torch.where(in_front > 1e-4, bounds, everything)


def _footprint(
    seen: Gaussians,
    view: View,
    tangent_x: Float[Tensor, "N"],
    tangent_y: Float[Tensor, "N"],
    depth: Float[Tensor, "N"],
) -> _Footprint:
    """The Gaussians' geometry under the affine map at the given tangents."""
    camera_from_world = view.world_to_camera[:3, :3]
    # Taken apart as a whole, here and below: the gradient of each index would be a tensor of zeros.
    axes_x, axes_y, axes_z = (camera_from_world @ _rotation_rows(seen.quats).flatten(1)).unflatten(1, (3, -1))
    # Products of three scales would overflow; nothing depends on the unit, so it needs no gradient.
    largest = seen.scales.detach().amax(-1)
    scales = (seen.scales.T / largest).clamp(min=THINNEST)
    first, second, third = scales
    faces = torch.stack([second * third, first * third, first * second])
    relative_size = largest / depth
    size_x, size_y = view.intrinsics[:2, None] * relative_size
    return _Footprint(
        along_x=scales * (axes_x - tangent_x * axes_z) * size_x,
        along_y=scales * (axes_y - tangent_y * axes_z) * size_y,
        along_z=scales * axes_z * relative_size,
        normal=faces * (tangent_x * axes_x + tangent_y * axes_y + axes_z),
        normal_by_x=faces * axes_x,
        normal_by_y=faces * axes_y,
        size_x=size_x,
        size_y=size_y,
    )


def _rotation_rows(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "3 3 N"]:
    """Rotation matrices of quaternions of any length, the Gaussians last."""
    w, x, y, z = quats.T / quats.norm(dim=-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows).unflatten(0, (3, 3))


def _dot(left: Float[Tensor, "3 N"], right: Float[Tensor, "3 N"]) -> Float[Tensor, "N"]:
    return (left * right).sum(0)


def _pixel_boxes(
    centres: Float[Tensor, "N 2"], bounds: Float[Tensor, "4 N"], view: View
) -> Int[Tensor, "N 4"]:
    """Columns and rows whose pixel centres lie within the bounds, cut to the image."""
    margin = 0.01 + 1e-3 * bounds.abs()
    sizes = (view.width, view.width, view.height, view.height)
    edges = []
    for index, size in enumerate(sizes):
        position = centres[:, index // 2] + bounds[index] - 0.5
        is_end = index % 2 == 1
        edge = (position + margin[index]).floor() + 1 if is_end else (position - margin[index]).ceil()
        edges.append(edge.nan_to_num(0.0).clamp(0, size))
    return torch.stack(edges).int().T
