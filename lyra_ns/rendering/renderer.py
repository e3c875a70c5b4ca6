"""One call from Gaussians and cameras to images, on whatever machine this is.

A plan says how many views are drawn together, and whether they are drawn again in the backward pass.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lyra_ns.cameras import CameraPath, invert_rigid
from lyra_ns.device import free_bytes
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering import cpu, gsplat_cuda, plain
from lyra_ns.rendering.cpu import CompilerMissing, load_kernel
from lyra_ns.rendering.projection import View, project
from lyra_ns.rendering.types import Rendered, RenderSettings, Response

TILES_PER_GAUSSIAN = 6
"""Tiles of 16 x 16 pixels that a Gaussian touches in a view, generously."""
KEPT_BYTES_PER_GAUSSIAN = 52 + 4 * TILES_PER_GAUSSIAN
"""What the rasterizer keeps for each Gaussian of each view: colours, projection, entries of tile lists."""
PASSING_BYTES_PER_GAUSSIAN = 16 + 24 * TILES_PER_GAUSSIAN
"""What it needs beside that while it draws: gradients of colours, both buffers of the sort."""
KEPT_BYTES_PER_PIXEL = 64
"""Colour, depth, transmittance and what is made of them."""
PASSING_BYTES_PER_PIXEL = 48
"""Their gradients."""
SHARE_OF_FREE_MEMORY = 0.6
"""Part of the free memory that renders may take; losses on them need the rest."""


@dataclass(frozen=True)
class RenderPlan:
    """One way through all views."""

    views_at_once: int
    """Views in one call of the rasterizer."""
    redraws: bool
    """Whether each call is repeated in the backward pass in place of keeping what it needs."""


@dataclass(frozen=True)
class RenderSize:
    """What the memory of a render depends on."""

    num_gaussians: int
    """Gaussians of all scenes."""
    num_views: int
    """Views of one scene."""
    num_pixels: int
    """Pixels of one view of every scene."""

    def kept_bytes(self, needs_gradient: bool) -> int:
        """Estimate of what stays of one view until the backward pass, or of its images without one."""
        of_gaussians = KEPT_BYTES_PER_GAUSSIAN * self.num_gaussians if needs_gradient else 0
        return of_gaussians + KEPT_BYTES_PER_PIXEL * self.num_pixels

    def passing_bytes(self, needs_gradient: bool) -> int:
        """Estimate of what drawing one view takes beside that, for as long as it lasts."""
        per_gaussian = PASSING_BYTES_PER_GAUSSIAN + (0 if needs_gradient else KEPT_BYTES_PER_GAUSSIAN)
        return per_gaussian * self.num_gaussians + PASSING_BYTES_PER_PIXEL * self.num_pixels


def plan_render(
    settings: RenderSettings, size: RenderSize, needs_gradient: bool, free_bytes: int | None
) -> RenderPlan:
    """The plan that `settings` name; for auto the fastest that fits `free_bytes`.

    In falling order of speed: all views together, groups that are kept, groups that are drawn again. All
    together where `free_bytes` is not known.
    """
    num_views, asked = max(size.num_views, 1), settings.views_at_once
    if isinstance(asked, int):
        return RenderPlan(min(asked, num_views), needs_gradient and asked < num_views)
    if asked is None or free_bytes is None:
        return RenderPlan(num_views, False)
    budget = int(SHARE_OF_FREE_MEMORY * free_bytes)
    kept, passing = size.kept_bytes(needs_gradient), max(size.passing_bytes(needs_gradient), 1)
    group = (budget - kept * num_views) // passing
    if group >= 1:
        return RenderPlan(min(group, num_views), False)
    images = size.kept_bytes(needs_gradient=False) * num_views
    return RenderPlan(max(1, min((budget - images) // (kept + passing), num_views)), needs_gradient)


logger = logging.getLogger(__name__)

Backend = Literal["gsplat", "cpu", "torch"]

DEFAULT_SETTINGS = RenderSettings()


class Renderer(NamedTuple):
    """What draws."""

    backend: Backend
    """Implementation."""
    response: Response
    """How a Gaussian answers a pixel."""


def render(
    gaussians: Gaussians, cameras: CameraPath, settings: RenderSettings = DEFAULT_SETTINGS
) -> Rendered:
    """Colour, expected z-depth and opacity as the cameras see the Gaussians, differentiable in all of these.

    Gaussians [G] with cameras [M] give [M, ...]; [B, G] with [B, M] give [B, M, ...]. Cameras get no
    gradient. Computed in float32 (float64 Gaussians: float64, not by gsplat), also under autocast. Gaussians
    that are not finite, have no extent or no rotation are not drawn.

    Example:
        >>> images = render(decoder(latents, conditioning), cameras)
        >>> images.rgb.shape  # [B, M, H, W, 3]
    """
    _check_shapes(gaussians, cameras)
    device = gaussians.means.device
    renderer = choose_renderer(settings, device)
    with torch.autocast(device.type, enabled=False):
        scenes, batched_cameras = _as_batch(gaussians, cameras)
        image, transmittance = _rasterize_in_chunks(scenes, batched_cameras, settings, renderer)
        alpha = 1 - transmittance
        background = torch.tensor(settings.background, dtype=image.dtype, device=device)
        rgb = image[..., :3] + transmittance[..., None] * background
        depth = image[..., 3] / alpha.clamp(min=1e-10)
    if cameras.camera_to_world.ndim == 3:
        rgb, depth, alpha = rgb[0], depth[0], alpha[0]
    return Rendered(rgb=rgb, depth=depth, alpha=alpha)


def choose_renderer(settings: RenderSettings, device: torch.device | str) -> Renderer:
    """The backend and response that `settings` mean on `device`.

    Raises ValueError where they ask for what is not there, CompilerMissing for backend `cpu` without one.
    """
    device = torch.device(device)
    backend = settings.backend if settings.backend != "auto" else _best_backend(device.type)
    needed_device = {"gsplat": "cuda", "cpu": "cpu"}.get(backend, device.type)
    if device.type != needed_device:
        raise ValueError(
            f"renderer backend '{backend}' draws Gaussians on {needed_device}, found them on {device.type}: "
            "move them there or leave the backend at 'auto'"
        )
    if backend == "cpu":
        load_kernel()
    if backend == "gsplat" and settings.max_alpha != DEFAULT_SETTINGS.max_alpha:
        _warn_of_own_max_alpha(settings.max_alpha)
    has_ray3d = backend != "gsplat" or gsplat_cuda.has_ray3d()
    if settings.response == "ray3d" and not has_ray3d:
        raise ValueError(
            f"response 'ray3d' needs a gsplat with 3DGUT, found {importlib.metadata.version('gsplat')}: "
            "pip install 'gsplat>=1.5.3', or choose response 'ewa'"
        )
    response = settings.response if settings.response != "auto" else ("ray3d" if has_ray3d else "ewa")
    return Renderer(backend, response)


def describe_backend(settings: RenderSettings, device: torch.device | str) -> str:
    """One sentence for the log: what draws on `device`, and how."""
    backend, response = choose_renderer(settings, device)
    names = {
        "gsplat": lambda: f"gsplat {importlib.metadata.version('gsplat')} on CUDA",
        "cpu": lambda: f"the compiled CPU kernel ({load_kernel().description})",
        "torch": lambda: "plain PyTorch (slow)",
    }
    manner = {
        "ray3d": "each Gaussian answers along the ray in 3D (3DGUT, no blur)",
        "ewa": f"each Gaussian is a flat splat (EWA, widened by {settings.dilation} px^2)",
    }
    return f"Rendering with {names[backend]()}; {manner[response]}."


@functools.cache
def _best_backend(device_type: str) -> Backend:
    if device_type == "cuda" and importlib.util.find_spec("gsplat") is not None:
        return "gsplat"
    if device_type == "cpu":
        try:
            load_kernel()
        except CompilerMissing as problem:
            logger.warning("rendering falls back to plain PyTorch, which is slow: %s", problem)
            return "torch"
        return "cpu"
    logger.warning("rendering on %s uses plain PyTorch, which is slow: gsplat was not found", device_type)
    return "torch"


@functools.cache
def _warn_of_own_max_alpha(max_alpha: float) -> None:
    logger.warning("gsplat has its own max_alpha: the setting %s is not used", max_alpha)


def _check_shapes(gaussians: Gaussians, cameras: CameraPath) -> None:
    num_axes = gaussians.means.ndim - 2
    matching = num_axes in (0, 1) and len(cameras.shape) == num_axes + 1
    if not matching or cameras.shape[:num_axes] != gaussians.means.shape[:num_axes]:
        raise ValueError(
            f"expected Gaussians [G] with cameras [M], or [B, G] with [B, M]; found means "
            f"{tuple(gaussians.means.shape)} with cameras {tuple(cameras.shape)}"
        )


def _as_batch(gaussians: Gaussians, cameras: CameraPath) -> tuple[Gaussians, CameraPath]:
    """Both with a batch axis, in float32 (or float64, where the Gaussians are)."""
    dtype = torch.float64 if gaussians.means.dtype == torch.float64 else torch.float32
    axis = (None,) if gaussians.means.ndim == 2 else ()
    fields = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.rgb)
    scenes = Gaussians(*(field[axis].to(dtype) for field in fields))
    return scenes, cameras[axis].to(gaussians.means.device)


def _rasterize_in_chunks(
    scenes: Gaussians, cameras: CameraPath, settings: RenderSettings, renderer: Renderer
) -> tuple[Float[Tensor, "B M H W 4"], Float[Tensor, "B M H W"]]:
    """All views, in the groups of the render plan; those that it says are drawn again in backward."""
    num_views = cameras.shape[1]
    needs_gradient = torch.is_grad_enabled() and any(field.requires_grad for field in vars(scenes).values())
    num_pixels = len(scenes.means) * cameras.height * cameras.width
    size = RenderSize(scenes.opacities.numel(), num_views, num_pixels)
    plan = plan_render(settings, size, needs_gradient, free_bytes(scenes.means.device))
    draw: Any = _rasterize
    if plan.redraws:
        draw = partial(checkpoint, _rasterize, use_reentrant=False, preserve_rng_state=False)
    if plan.views_at_once >= num_views:
        return draw(scenes, cameras, settings, renderer)
    starts = range(0, num_views, plan.views_at_once)
    groups = [cameras[:, start : start + plan.views_at_once] for start in starts]
    images, transmittances = zip(*(draw(scenes, group, settings, renderer) for group in groups), strict=True)
    return torch.cat(images, 1), torch.cat(transmittances, 1)


def _rasterize(
    scenes: Gaussians, cameras: CameraPath, settings: RenderSettings, renderer: Renderer
) -> tuple[Float[Tensor, "B M H W 4"], Float[Tensor, "B M H W"]]:
    """Blended colours with z-depth, and transmittance."""
    dtype = scenes.means.dtype
    # Inverted in float64: a product in TF32 would move the camera.
    world_to_camera = invert_rigid(cameras.camera_to_world.detach().double()).to(dtype)
    if renderer.backend == "gsplat":
        size = (cameras.height, cameras.width)
        intrinsic_matrix = cameras.intrinsic_matrix.detach().to(dtype)
        return gsplat_cuda.rasterize(
            scenes, world_to_camera, intrinsic_matrix, size, settings, renderer.response
        )
    rasterize_splats = cpu.rasterize if renderer.backend == "cpu" else plain.rasterize
    intrinsics = cameras.intrinsics.detach().to(dtype)
    images, transmittances = [], []
    for scene_index, view_index in torch.cartesian_prod(*map(torch.arange, cameras.shape)).tolist():
        at = (scene_index, view_index)
        view = View(world_to_camera[at], intrinsics[at], cameras.height, cameras.width)
        splats = project(scenes.scene(scene_index), view, settings, renderer.response)
        image, transmittance = rasterize_splats(splats, view.height, view.width, settings.max_alpha)
        images.append(image)
        transmittances.append(transmittance)
    return (
        torch.stack(images).unflatten(0, tuple(cameras.shape)),
        torch.stack(transmittances).unflatten(0, tuple(cameras.shape)),
    )
