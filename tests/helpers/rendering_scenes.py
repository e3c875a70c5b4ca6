"""Scenes, cameras and comparisons that the rendering tests share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch

from lyra_ns.cameras import CameraPath, look_at
from lyra_ns.gaussians import Gaussians
from lyra_ns.rendering import Rendered

FIELDS = [field.name for field in fields(Gaussians)]


def random_scene(num: int, size_in_pixels: float = 2.0, seed: int = 0) -> Gaussians:
    """Gaussians over and around the view of `cameras`, anisotropic, some of them opaque."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num, 6, generator=generator, dtype=torch.float64)
    normal = torch.randn(num, 8, generator=generator, dtype=torch.float64)
    depth = 1 + 4 * uniform[:, 0]
    return Gaussians(
        means=torch.stack(
            [(1.6 * uniform[:, 1] - 0.8) * depth, (1.6 * uniform[:, 2] - 0.8) * depth, depth], -1
        ),
        quats=normal[:, :4],
        scales=size_in_pixels / 40 * depth[:, None] * torch.exp(0.7 * normal[:, 4:7]),
        opacities=torch.sigmoid(2 * normal[:, 7]),
        rgb=uniform[:, 3:],
    )


def cameras(num: int = 2, height: int = 37, width: int = 45) -> CameraPath:
    """Cameras near the origin that look along +z, each with intrinsics of its own."""
    index = torch.arange(num, dtype=torch.float64)
    centre = torch.stack([0.2 * index, -0.1 * index, 0.1 * index], -1)
    target = torch.tensor([0.0, 0.1, 4.0], dtype=torch.float64).expand(num, 3)
    focal = 0.9 * width + index
    cx, cy = torch.full_like(index, width / 2 + 0.3), torch.full_like(index, height / 2 - 0.2)
    intrinsics = torch.stack([focal, 0.95 * focal, cx, cy], -1)
    return CameraPath(look_at(centre, target), intrinsics, torch.zeros_like(index), height, width)


def cast(gaussians: Gaussians, dtype: torch.dtype) -> Gaussians:
    """The Gaussians in another precision."""
    return Gaussians(*(getattr(gaussians, name).to(dtype) for name in FIELDS))


def weighted_sum(images: Rendered) -> torch.Tensor:
    """A loss that every pixel of every output enters with a weight of its own."""
    generator = torch.Generator().manual_seed(7)
    total = torch.zeros((), dtype=torch.float64)
    for image in (images.rgb, images.depth, images.alpha):
        weight = torch.randn(image.shape, generator=generator, dtype=torch.float64)
        total = total + (image * weight).sum()
    return total


def value_and_gradients(
    draw: Callable[[Gaussians], Rendered], gaussians: Gaussians
) -> tuple[Rendered, list[torch.Tensor]]:
    """Images, and the gradient of `weighted_sum` by each field."""
    leaves = [getattr(gaussians, name).clone().requires_grad_() for name in FIELDS]
    images = draw(Gaussians(*leaves))
    return images, list(torch.autograd.grad(weighted_sum(images), leaves))


def assert_same(found: Rendered, expected: Rendered, tolerance: float) -> None:
    """All images differ by no more than `tolerance`."""
    for name in ("rgb", "depth", "alpha"):
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(expected, name).double(), atol=tolerance, rtol=0
        )


def relative_errors(found: list[torch.Tensor], expected: list[torch.Tensor]) -> dict[str, float]:
    """Distance of each field's gradients over their length."""
    pairs = zip(FIELDS, found, expected, strict=True)
    return {name: float((left.double() - right).norm() / right.norm()) for name, left, right in pairs}
