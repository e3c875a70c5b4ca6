"""Compares the kernel of LPIPS's feature distance with torch; run by a test in Triton's interpreter."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch

from lyra_ns.ops.lpips import LPIPS_EPSILON, compare_features
from lyra_ns.ops.lpips_triton import feature_distance


def check(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    """Values and gradients of random features, some pixels of which are zero as behind a ReLU."""
    generator = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(shape, generator=generator).relu() for _ in range(2))
    found[:, :, 0, :2] = 0
    wanted[:, :, 0, 1] = 0
    weights, upstream = torch.rand(shape[1], generator=generator), torch.tensor([0.5, 2.0])
    results = []
    for compare in (compare_features, feature_distance):
        leaf = found.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        distance = compare(leaf, wanted.to(dtype), weights, LPIPS_EPSILON)
        (distance * upstream).sum().backward()
        results.append((distance.detach(), leaf.grad))
    (expected, gradient), (value, kernel_gradient) = results
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    largest = float(gradient[:, :, 1:].abs().max())
    assert largest > 0
    torch.testing.assert_close(
        kernel_gradient[:, :, 1:], gradient[:, :, 1:], rtol=tolerance, atol=tolerance * largest
    )
    assert kernel_gradient.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(
            feature_distance(found.to(dtype), wanted.to(dtype), weights, LPIPS_EPSILON), expected
        )


# The zero pixel has the slope of its direction over eps, 1e10, in float32 alike and in bfloat16 alike.
check((2, 64, 3, 5), torch.float32, 1e-5)
check((2, 192, 5, 7), torch.float32, 1e-5)
check((2, 512, 3, 4), torch.bfloat16, 2e-2)
print("equal")
