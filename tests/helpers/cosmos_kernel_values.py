"""Compares the kernels of `cosmos_triton` with plain torch in Triton's interpreter, for test_cosmos_encoder.

The interpreter's products know float32 and float16, not bfloat16.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
from torch import Tensor

from lyra_ns.codec import cosmos_encoder, cosmos_triton
from lyra_ns.codec.cosmos_encoder import Norm, TemporalConvolution

TOLERANCES = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(name: str, found: Tensor, expected: Tensor) -> None:
    """Raises if the two are further apart than their type explains."""
    error = ((found.float() - expected).norm() / expected.norm()).item()
    assert error < TOLERANCES[found.dtype], f"{name}: relative error {error}"


def check_norm() -> None:
    """Means far from zero, frames of several spans, widths that are no power of two, one pixel."""
    cosmos_triton.STATISTICS_BLOCK, cosmos_triton.MAX_SPANS, cosmos_triton.NORM_TILE = 64, 5, 512
    cases = [
        (24, (37, 11), torch.float32),
        (16, (7, 5), torch.bfloat16),
        (32, (1, 1), torch.float16),
        (4, (5, 9), torch.float32),
    ]
    for channels, size, dtype in cases:
        x = (3 + random(2, 3, *size, channels)).to(dtype)
        x[:, 1] *= 10
        norm = Norm(1 + 0.2 * random(channels, seed=1), random(channels, seed=2), 1e-6)
        for silu in (True, False):
            expected = cosmos_encoder.normalise(x.float(), norm, silu, plain=True).flatten(2, 3)
            found = cosmos_triton.normalise_frames(x.flatten(2, 3), norm.gain, norm.bias, norm.eps, silu)
            check(f"norm of {channels} {size} {dtype}", found, expected)


def check_temporal_convolution() -> None:
    """Both strides, with and without residual, several tiles along every axis, one frame, one pixel."""
    cases = [
        (5, (15, 10), 32, 48, 1, True),
        (5, (3, 4), 48, 32, 2, True),
        (3, (3, 3), 16, 16, 1, False),
        (1, (1, 1), 16, 32, 2, False),
    ]
    for frames, size, channels_in, channels_out, stride, has_residual in cases:
        for dtype in (torch.float32, torch.float16):
            x, weight = (
                random(2, frames, *size, channels_in).to(dtype),
                random(3, channels_in, channels_out, seed=1),
            )
            weight, bias = (weight / channels_in**0.5).to(dtype), random(channels_out, seed=2)
            frames_out = (frames - 1) // stride + 1
            residual = random(2, frames_out, *size, channels_out, seed=3).to(dtype) if has_residual else None
            convolution = TemporalConvolution(weight.float(), bias, stride)
            wide = None if residual is None else residual.float()
            expected = cosmos_encoder.convolve_in_time(x.float(), convolution, wide, plain=True).flatten(2, 3)
            flat = None if residual is None else residual.flatten(2, 3)
            found = cosmos_triton.temporal_convolution(x.flatten(2, 3), weight, bias, stride, flat)
            check(f"convolution of {frames} {size} {stride} {dtype}", found, expected)


def check_softmax() -> None:
    """Large scores, and a length that is no power of two."""
    scores = 20 * random(2, 5, 77)
    expected = torch.softmax(scores * 0.3, -1)
    for dtype in (torch.float16, torch.bfloat16):
        check(f"softmax {dtype}", cosmos_triton.softmax_in_place(scores.clone(), 0.3, dtype), expected)


def check_causal_attention() -> None:
    """One frame, some, and more than the smallest tile."""
    for frames in (1, 3, 17):
        projected = 2 * random(2, frames, 2, 3, 3 * 32)
        assert cosmos_triton.can_attend_in_time(frames, 32)
        for dtype in (torch.float32, torch.float16):
            rounded = projected.to(dtype)
            expected = cosmos_encoder.attend_in_time(rounded.float(), plain=True).flatten(2, 3)
            found = cosmos_triton.causal_attention(rounded.flatten(2, 3))
            check(f"attention over {frames} frames {dtype}", found, expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_norm()
    check_temporal_convolution()
    check_softmax()
    check_causal_attention()
