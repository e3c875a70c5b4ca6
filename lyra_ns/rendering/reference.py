"""The truth that the backends are tested against: every Gaussian at every pixel, in float64, by autograd.

Written from the definitions (docs/reference/lyra_training.md, "Renderer"), with nothing shared with the fast
backends but constants.
Memory grows with Gaussians times pixels: for scenes of some hundred Gaussians.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, ray_grid
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering.types import MIN_ALPHA, MIN_TRANSMITTANCE, Rendered, RenderSettings


def render_reference(gaussians: Gaussians, cameras: CameraPath, settings: RenderSettings) -> Rendered:
    """Float64 images of one scene ([G] Gaussians) by cameras [M]; response `auto` is ray3d."""
    views = [_render_view(gaussians, cameras[index], settings) for index in range(cameras.shape[0])]
    rgb, depth, alpha = (torch.stack(images) for images in zip(*views, strict=True))
    return Rendered(rgb=rgb, depth=depth, alpha=alpha)


def _render_view(gaussians: Gaussians, camera: CameraPath, settings: RenderSettings) -> tuple[Tensor, ...]:
    """Colour over the background, depth and alpha of one view."""
    world_to_camera = torch.linalg.inv(camera.camera_to_world.double())
    in_camera = gaussians.means.double() @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    depth = in_camera[:, 2]
    drawn = (depth >= settings.near) & (depth <= settings.far) & (gaussians.opacities >= MIN_ALPHA)
    order = drawn.nonzero()[:, 0]
    order = order[depth[order].argsort(stable=True)]
    exponents = _exponents_ewa if settings.response == "ewa" else _exponents_ray3d
    exponent = exponents(gaussians.select(order), camera, settings.dilation)
    alpha = gaussians.opacities.double()[order, None, None] * torch.exp(-exponent)
    alpha = alpha.clamp(max=settings.max_alpha)
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0.0)
    alpha = torch.where((1 - alpha).cumprod(0) > MIN_TRANSMITTANCE, alpha, 0.0)
    after = (1 - alpha).cumprod(0)
    before = torch.cat([torch.ones_like(alpha[:1]), after[:-1]])
    weights = alpha * before
    shown_depth = depth if settings.depth_gradient else depth.detach()
    total = weights.sum(0)
    background = torch.tensor(settings.background, dtype=torch.float64)
    rgb = torch.einsum("ghw,gc->hwc", weights, gaussians.rgb.double()[order])
    depth = torch.einsum("ghw,g->hw", weights, shown_depth[order]) / total.clamp(min=1e-10)
    return rgb + (1 - total)[..., None] * background, depth, total


def _rotations(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3 3"]:
    """Rotation matrices: I + 2 w [v] + 2 [v]^2 with the cross-product matrix [v] of the vector part."""
    w, x, y, z = functional.normalize(quats.double(), dim=-1).unbind(-1)
    zero = torch.zeros_like(w)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=torch.float64) + 2 * w[:, None, None] * cross + 2 * cross @ cross


def _exponents_ray3d(gaussians: Gaussians, camera: CameraPath, dilation: float) -> Float[Tensor, "N H W"]:
    """Half the squared distance between ray and mean in the Gaussian's own space; dilation plays no part."""
    exact = CameraPath(
        camera.camera_to_world.double(), camera.intrinsics.double(), camera.times, camera.height, camera.width
    )
    rays = ray_grid(exact, camera.height, camera.width)
    whitened = _rotations(gaussians.quats).transpose(-1, -2) / gaussians.scales.double()[..., None]
    to_origin = rays.origins[None] - gaussians.means.double()[:, None, None]
    origin = torch.einsum("gij,ghwj->ghwi", whitened, to_origin)
    direction = functional.normalize(torch.einsum("gij,hwj->ghwi", whitened, rays.directions), dim=-1)
    return 0.5 * torch.linalg.cross(direction, origin).square().sum(-1)


def _exponents_ewa(gaussians: Gaussians, camera: CameraPath, dilation: float) -> Float[Tensor, "N H W"]:
    """Half the squared distance between pixel and projected mean under the dilated 2D covariance."""
    world_to_camera = torch.linalg.inv(camera.camera_to_world.double())
    in_camera = gaussians.means.double() @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    fx, fy, cx, cy = camera.intrinsics.double()
    x, y, z = in_camera.unbind(-1)
    mean = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    margin_x, margin_y = 0.15 * camera.width / fx, 0.15 * camera.height / fy
    x = z * (x / z).clamp(-cx / fx - margin_x, (camera.width - cx) / fx + margin_x)
    y = z * (y / z).clamp(-cy / fy - margin_y, (camera.height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    slopes = [fx / z, zero, -fx * x / z**2, zero, fy / z, -fy * y / z**2]
    jacobian = torch.stack(slopes, -1).unflatten(-1, (2, 3))
    spread = (
        jacobian @ world_to_camera[:3, :3] @ _rotations(gaussians.quats) * gaussians.scales.double()[:, None]
    )
    covariance = spread @ spread.transpose(-1, -2) + dilation * torch.eye(2, dtype=torch.float64)
    rows, columns = torch.meshgrid(
        torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij"
    )
    offset = torch.stack([columns, rows], -1) - mean[:, None, None]
    return 0.5 * torch.einsum("ghwi,gij,ghwj->ghw", offset, torch.linalg.inv(covariance), offset)
