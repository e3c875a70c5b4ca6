"""Compares LPIPS with its gradient written out, and its kernels, with autograd; run in Triton's interpreter.

In float32 and float16: the interpreter rounds to bfloat16 wrongly.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import lpips
import torch
from torch import Tensor, nn
from torch.nn import functional

from lyra_ns.ops import lpips_triton
from lyra_ns.ops.lpips import LPIPS_EPSILON, PerceptualDistance, compare_features

WIDTHS = (4, 8, 16, 8, 16)
"""Channels of the blocks of `NarrowVgg`."""
BLOCK_END_SIZES = ((4, 6), (5, 9), (1, 3))
"""Even, odd, and too small to be pooled."""


class NarrowVgg(nn.Module):
    """What `lpips.LPIPS` has, with few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer, self.net, self.lins = lpips.lpips.ScalingLayer(), nn.Sequential(), nn.ModuleList()
        before = 3
        for number, width in enumerate(WIDTHS):
            block = nn.Sequential(*([nn.MaxPool2d(2)] if number else []))
            for _ in range(3 if number > 1 else 2):
                block.extend([nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)])
                before = width
            self.net.append(block)
            self.lins.append(nn.Conv2d(width, 1, 1, bias=False))
        self.net.forward = self.features

    def features(self, images: Tensor) -> list[Tensor]:
        found = []
        for block in self.net:
            images = block(images)
            found.append(images)
        return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def levels(*shape: int, seed: int) -> Tensor:
    """A channels-last map of few values, many of them zero and equal in a window."""
    numbers = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()
    return numbers.contiguous(memory_format=torch.channels_last)


def check_rectifying(dtype: torch.dtype) -> None:
    """Bias, ReLU and pooling of odd and even sizes; what is not a number stays visible."""
    for size in BLOCK_END_SIZES:
        maps, bias = levels(2, 8, *size, seed=1).to(dtype), random(8)
        maps[0, 0, 0, 0] = torch.nan
        expected = (maps.float() + bias[:, None, None]).relu().to(dtype)
        assert torch.equal(lpips_triton.rectify(maps.clone(), bias).nan_to_num(-1), expected.nan_to_num(-1))
        if size[0] > 1:
            found, pooled = lpips_triton.rectify_and_pool(maps.clone(), bias)
            assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))
            assert torch.equal(pooled.nan_to_num(-1), functional.max_pool2d(expected, 2).nan_to_num(-1))
            assert pooled.isnan().any()


def check_block_end(dtype: torch.dtype, tolerance: float) -> None:
    """Distance and gradient of a feature that is pooled or the last, full of ties."""
    for size in BLOCK_END_SIZES:
        before, wanted = levels(2, 8, *size, seed=1), levels(2, 8, *size, seed=2).relu()
        before[:, 0, 0, :2] = 1.0  # no pixel of zeros alone: its gradient is 1e10 and hides the others
        before[:, 0] += 3.0
        weights, is_pooled = random(8), size[0] > 1
        leaf = before.clone().requires_grad_()
        feature = leaf.relu()
        distance = compare_features(feature, wanted, weights, LPIPS_EPSILON)
        total, from_above = distance.sum(), None
        if is_pooled:
            pooled = functional.max_pool2d(feature, 2)
            from_above = random(*pooled.shape, seed=3).contiguous(memory_format=torch.channels_last)
            total = total + (pooled * from_above.to(dtype).float()).sum()
            from_above = from_above.to(dtype)
        total.backward()
        found, gradient = lpips_triton.distance_and_gradient(
            feature.detach().to(dtype), wanted.to(dtype), weights, LPIPS_EPSILON, from_above
        )
        torch.testing.assert_close(found, distance.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient.float(), leaf.grad, rtol=tolerance, atol=tolerance)
        masked = lpips_triton.mask_gradient(torch.ones_like(before, dtype=dtype), feature.detach().to(dtype))
        assert torch.equal(masked.float(), (before > 0).float())


def check_trunk(network: nn.Module, size: tuple[int, int], num_images: int = 1) -> None:
    """Distances and image gradients in float32, also under the automatic mixed precision of a caller."""
    perceptual = PerceptualDistance(network, "", torch.float32, images_at_once=1)
    predicted, target = random(num_images, 3, *size, seed=4), random(num_images, 3, *size, seed=5)
    weights = torch.linspace(1, 3, num_images)
    results = []
    for perceptual._is_written_out in (lambda device: False, lambda device: True):
        leaf = predicted.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=perceptual._is_written_out(leaf.device)):
            distance = perceptual(leaf, target)
        (distance * weights).sum().backward()
        results.append((distance.detach(), leaf.grad))
    (expected, expected_gradient), (found, gradient) = results
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(perceptual(predicted, target), found, rtol=1e-5, atol=1e-6)
    error = ((gradient - expected_gradient).norm() / expected_gradient.norm()).item()
    assert error < 1e-4, f"relative error {error} of the gradient"


lpips_triton.TILE = 256  # many programs, those at the ends in part beside the map
for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
    check_rectifying(dtype)
    check_block_end(dtype, tolerance)
torch.manual_seed(0)
narrow = NarrowVgg()
lpips_triton.TILE = 2**14  # few programs: the interpreter is slow
check_trunk(narrow, (35, 50), num_images=2)
check_trunk(narrow, (32, 48))
print("equal")
