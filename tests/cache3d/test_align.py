"""Depth brought into the scale of the cache: exact maps, outliers, flat depth, the sky, no overlap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lyra_ns.cache3d.align import InverseDepthFit, align_inverse_depth


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def scene() -> Tensor:
    """Depth [H, W] from 1 to 5."""
    return 1 + 4 * drawn(30, 40)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (2.5, 0.1), (0.5, -0.05)])
def test_scale_and_shift_are_found_among_outliers_and_holes(scale: float, shift: float) -> None:
    estimated = scene()
    known = 1 / (scale / estimated + shift)
    known[drawn(30, 40, seed=1) < 0.3] = 0
    wrong = drawn(30, 40, seed=2) < 0.25
    known = torch.where(wrong, 3 * known, known)
    estimated[:3] = 0
    fit = align_inverse_depth(estimated, known)
    assert fit.scale == pytest.approx(scale, rel=1e-3)
    assert fit.shift == pytest.approx(shift, abs=1e-3)
    assert fit.residual < 1e-3
    aligned = fit.applied(estimated)
    right = ~wrong & (known > 0) & (estimated > 0)
    torch.testing.assert_close(aligned[right], known[right], rtol=1e-2, atol=0)
    assert not aligned[:3].any()
    assert (aligned[3:] > 0).all()


def test_flat_depth_gets_a_scale_alone() -> None:
    fit = align_inverse_depth(torch.full((8, 8), 3.0), torch.full((8, 8), 2.0))
    assert (fit.scale, fit.shift) == (pytest.approx(1.5), 0.0)
    torch.testing.assert_close(fit.applied(torch.full((8, 8), 6.0)), torch.full((8, 8), 4.0))


def test_depth_that_runs_the_other_way_gets_a_scale_alone() -> None:
    estimated = scene()
    fit = align_inverse_depth(estimated, 6 - estimated)
    assert fit.scale > 0
    assert fit.shift == 0
    assert fit.residual > 0.05


def test_what_comes_out_beyond_the_farthest_lies_there() -> None:
    fit = InverseDepthFit(1.0, -0.1, 0.0)
    depth = torch.tensor([[0.0, 5.0, 10.0, 50.0, 9.9]])
    torch.testing.assert_close(fit.applied(depth, 100.0), torch.tensor([[0.0, 10.0, 100.0, 100.0, 100.0]]))
    torch.testing.assert_close(fit.applied(depth)[:, :4], torch.tensor([[0.0, 10.0, 0.0, 0.0]]))


def test_too_little_overlap_is_told() -> None:
    known = torch.zeros(30, 40)
    known[0, :10] = 1
    with pytest.raises(ValueError, match=r"expected depth of both on 1% of the image at least, found 0.83%"):
        align_inverse_depth(scene(), known)
