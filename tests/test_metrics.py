"""Metrics against scikit-image and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lyra_ns.metrics import mean_and_spread, psnr, relative_depth_error, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two photographs [2, 60, 83, 3] and noisy copies that leave [0, 1]."""
    crops = np.stack([getattr(photographs, name)()[80:140, 90:173] for name in ("astronaut", "chelsea")])
    target = torch.from_numpy(crops).float() / 255
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    return target + torch.tensor([0.05, 0.2])[:, None, None, None] * noise, target


def test_psnr_is_that_of_scikit_image_on_clipped_images(pair):
    expected = [
        peak_signal_noise_ratio(true.numpy(), noisy.clamp(0, 1).numpy(), data_range=1)
        for noisy, true in zip(*pair, strict=True)
    ]
    assert psnr(*pair).tolist() == pytest.approx(expected, abs=1e-4)


def test_psnr_of_a_known_error_and_of_equal_images():
    target = torch.full((1, 4, 4, 3), 0.5)
    assert psnr(target + 0.1, target).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(target, target).item() == pytest.approx(100.0)


def test_psnr_under_a_mask_sees_nothing_else(pair):
    noisy, target = pair
    mask = torch.zeros(2, 60, 83, dtype=torch.bool)
    mask[:, 10:30, 5:50] = True
    spoilt = torch.where(mask[..., None], noisy, 0.0)
    expected = psnr(noisy[:, 10:30, 5:50], target[:, 10:30, 5:50])
    torch.testing.assert_close(psnr(spoilt, target, mask), expected)
    assert psnr(noisy, target, torch.zeros_like(mask)).isnan().all()


def test_ssim_is_that_of_scikit_image(pair):
    settings = {"gaussian_weights": True, "sigma": 1.5, "win_size": 11, "data_range": 1.0, "channel_axis": 2}
    expected = [
        structural_similarity(true.double().numpy(), noisy.double().clamp(0, 1).numpy(), **settings)
        for noisy, true in zip(*pair, strict=True)
    ]
    assert ssim(*pair).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[0] - expected[1] > 0.1


def test_ssim_of_equal_images_is_one(pair):
    assert ssim(pair[1], pair[1]).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_ssim_refuses_images_below_its_window():
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, found 8 x 20"):
        ssim(torch.zeros(1, 8, 20, 3), torch.zeros(1, 8, 20, 3))


def test_relative_depth_error_counts_known_pixels_only():
    target = torch.tensor([[[2.0, 4.0], [0.0, torch.inf]], [[1.0, 1.0], [torch.nan, 2.0]]])
    depth = torch.tensor([[[3.0, 4.0], [9.0, 9.0]], [[1.0, 2.0], [7.0, 1.0]]])
    assert relative_depth_error(depth, target).tolist() == pytest.approx([0.25, 0.5])


def test_aligned_depth_error_forgives_scale_only():
    target = 1 + torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(1))
    target[0, :3] = 0
    assert relative_depth_error(2.5 * target, target).mean() > 1
    assert relative_depth_error(2.5 * target, target, aligned=True).max() < 1e-6
    assert relative_depth_error(target + 1, target, aligned=True).min() > 0.01


def test_depth_error_without_known_pixels_is_not_a_number():
    assert relative_depth_error(torch.ones(1, 2, 2), torch.zeros(1, 2, 2)).isnan().all()
    assert relative_depth_error(torch.ones(1, 2, 2), torch.zeros(1, 2, 2), aligned=True).isnan().all()


def test_mean_and_spread_of_finite_values():
    summary = mean_and_spread(torch.tensor([1.0, 2.0, torch.nan, 6.0, torch.inf]))
    assert (summary.mean, summary.num) == (3.0, 3)
    assert summary.std == pytest.approx(((1 + 4 + 36) / 3 - 9) ** 0.5)
    assert mean_and_spread(torch.tensor([torch.nan])).num == 0
