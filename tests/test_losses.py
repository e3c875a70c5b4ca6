"""Losses against closed forms, the official golden values and the ways in which data can be bad."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lyra_ns.cameras import CameraPath, RayGrid, look_at, ray_grid
from lyra_ns.gaussians import Gaussians
from lyra_ns.losses import (
    LossConfig,
    depth_loss,
    distance_along_rays,
    masked_median,
    opacity_loss,
    reconstruction_losses,
    warm_start_loss,
)
from lyra_ns.rendering.types import Rendered


def golden_numbers(key: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The deterministic uniform numbers of docs/reference/decoder.md, "Golden numbers"."""
    with np.errstate(over="ignore"):
        x = np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(key) * np.uint64(0xD1B54A32D192ED03)
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return torch.from_numpy((x >> np.uint64(11)).astype(np.float64) / 2**53).reshape(shape)


@pytest.fixture
def depths() -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and target depth [1, 2, 8, 8] of the golden values."""
    shape = (1, 2, 8, 8)
    return (1 + 9 * golden_numbers(2000, shape)).float(), (1 + 9 * golden_numbers(2001, shape)).float()


def test_official_depth_loss_has_the_golden_value(depths):
    assert depth_loss(*depths, parity=True).item() == pytest.approx(0.9004583, abs=2e-6)


def test_official_depth_loss_with_unknown_pixels_has_the_golden_value(depths):
    predicted, target = depths
    target[0, 0, :4] = 0
    assert depth_loss(predicted, target, parity=True).item() == pytest.approx(0.5283605, abs=2e-6)


def test_depth_loss_equals_the_official_one_where_everything_is_known(depths):
    assert depth_loss(*depths).item() == pytest.approx(0.9004583, abs=2e-6)


def test_depth_loss_counts_valid_pixels_only(depths):
    predicted, target = depths
    expected = []
    for image, wanted in zip(predicted[0, :, 4:], target[0, :, 4:], strict=True):
        normal = [(x - x.median()) / (x - x.median()).abs().mean() for x in (image, wanted)]
        expected.append(torch.nn.functional.smooth_l1_loss(*normal))
    target[0, :, :4] = 0
    assert depth_loss(predicted, target).item() == pytest.approx(
        torch.stack(expected).mean().item(), rel=1e-5
    )


def test_depth_loss_does_not_see_scale_and_shift(depths):
    _, target = depths
    assert depth_loss(3 * target + 2, target).item() < 1e-10


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan, torch.inf])
def test_depth_loss_and_its_gradient_stay_finite_without_known_pixels(depths, parity, bad):
    predicted, target = depths
    target[0, 0] = bad
    predicted.requires_grad_()
    loss = depth_loss(predicted, target, parity)
    loss.backward()
    assert loss.isfinite()
    assert predicted.grad.isfinite().all()
    assert predicted.grad[0, 0].abs().max() == 0
    assert predicted.grad[0, 1].abs().max() > 0


def test_depth_loss_is_zero_when_nothing_is_known(depths):
    predicted, target = depths
    assert depth_loss(predicted, torch.zeros_like(target)).item() == 0


def test_depth_loss_has_the_gradient_of_finite_differences(depths):
    predicted, target = (depth.double() for depth in depths)
    target[0, 0, :3] = 0
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda depth: depth_loss(depth, target), predicted, atol=1e-6)


def test_masked_median_is_the_lower_median_of_the_masked_values():
    values = torch.tensor([[9.0, 1.0, 4.0, 2.0, 7.0], [5.0, 3.0, 8.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert masked_median(values, mask).flatten().tolist() == [2.0, 5.0, 0.0]


def test_opacity_loss_is_the_mean_and_the_official_one_its_second_sigmoid():
    opacities = torch.tensor([[0.2, 0.4], [0.6, 1.0]])
    assert opacity_loss(opacities).item() == pytest.approx(0.55)
    assert opacity_loss(opacities, parity=True).item() == pytest.approx(
        torch.sigmoid(opacities).mean().item()
    )


@pytest.fixture
def rendered(depths) -> Rendered:
    rgb = golden_numbers(5, (1, 2, 8, 8, 3)).float()
    return Rendered(rgb=rgb, depth=depths[0], alpha=torch.ones(1, 2, 8, 8))


def brightness_distance(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A distance of images whose value is known."""
    assert predicted.shape == target.shape == (2, 3, 8, 8)
    return (predicted - target).mean((1, 2, 3)).abs()


def test_terms_are_weighted_and_named(rendered, depths):
    target, opacities = torch.zeros(1, 2, 8, 8, 3), torch.full((1, 10), 0.3)
    terms = reconstruction_losses(rendered, target, depths[1], opacities, LossConfig(), brightness_distance)
    expected = {
        "mse": rendered.rgb.square().mean().item(),
        "lpips": 0.5 * rendered.rgb.mean().item(),
        "depth": 0.05 * 0.9004583,
        "opacity": 0.1 * 0.3,
    }
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, rel=1e-5)


def test_parity_reaches_every_term_that_has_it(rendered, depths):
    depths[1][0, 0, :4] = 0
    config = LossConfig(lpips=0.0, parity=True)
    opacities = torch.full((1, 10), 0.3)
    terms = reconstruction_losses(rendered, rendered.rgb, depths[1], opacities, config)
    assert terms["mse"].item() == 0
    assert terms["depth"].item() == pytest.approx(0.05 * 0.5283605, rel=1e-5)
    assert terms["opacity"].item() == pytest.approx(0.1 * torch.sigmoid(torch.tensor(0.3)).item(), rel=1e-6)
    assert config.penalises_pruned_opacities


@pytest.mark.parametrize("term", ["mse", "lpips", "depth", "opacity"])
def test_a_zero_weight_switches_its_term_off(rendered, depths, term):
    config = LossConfig(**{term: 0.0})
    perceptual = None if term == "lpips" else brightness_distance
    depth = None if term == "depth" else depths[1]
    terms = reconstruction_losses(rendered, rendered.rgb, depth, torch.zeros(1, 3), config, perceptual)
    assert set(terms) == {"mse", "lpips", "depth", "opacity"} - {term}


def test_a_term_without_its_input_is_an_error(rendered, depths):
    with pytest.raises(ValueError, match="no perceptual distance"):
        reconstruction_losses(rendered, rendered.rgb, depths[1], torch.zeros(1, 3), LossConfig())
    with pytest.raises(ValueError, match="no depth"):
        reconstruction_losses(rendered, rendered.rgb, None, torch.zeros(1, 3), LossConfig(lpips=0.0))


@pytest.fixture
def pixels():
    """Rays, z-depth, colours and cameras of two scenes with two turned trajectories each."""
    centres = golden_numbers(7, (2, 2, 3, 3)).float()
    cameras = CameraPath(
        look_at(centres, centres + torch.tensor([0.3, -0.2, 1.0])),
        torch.tensor([50.0, 55.0, 30.0, 22.0]).expand(2, 2, 3, 4),
        torch.linspace(0, 1, 3).expand(2, 2, 3),
        height=40,
        width=64,
    )
    depth = 1 + 4 * golden_numbers(8, (2, 2, 3, 5, 8)).float()
    return ray_grid(cameras, 5, 8), depth, golden_numbers(9, (2, 2, 3, 5, 8, 3)).float(), cameras


def gaussians_at(rays, distance: torch.Tensor, rgb: torch.Tensor) -> Gaussians:
    means = (rays.origins + rays.directions * distance[..., None]).flatten(1, -2)
    batch, num = means.shape[:2]
    return Gaussians(
        means, torch.zeros(batch, num, 4), means * 0, torch.zeros(batch, num), rgb.reshape(batch, num, 3)
    )


def test_distance_along_rays_puts_points_at_their_depth(pixels):
    rays, depth, _, cameras = pixels
    distance = distance_along_rays(depth, rays, cameras)
    points = rays.origins + rays.directions * distance[..., None]
    in_camera = (cameras.world_to_camera[..., None, None, :, :3] @ points[..., None])[..., 0]
    z = (in_camera + cameras.world_to_camera[..., None, None, :, 3])[..., 2]
    torch.testing.assert_close(z, depth, rtol=1e-4, atol=1e-4)


def test_warm_start_is_zero_on_the_true_surface(pixels):
    rays, depth, rgb, cameras = pixels
    gaussians = gaussians_at(rays, distance_along_rays(depth, rays, cameras), rgb)
    assert warm_start_loss(gaussians, rays, depth, rgb, cameras).item() < 1e-5


def test_warm_start_weighs_log_distance_and_colour(pixels):
    rays, depth, rgb, cameras = pixels
    gaussians = gaussians_at(rays, 2 * distance_along_rays(depth, rays, cameras), rgb + 0.25)
    loss = warm_start_loss(gaussians, rays, depth, rgb, cameras, LossConfig(warm_start_rgb=4.0))
    assert loss.item() == pytest.approx(np.log(2) + 4 * 0.25, rel=1e-4)


def test_warm_start_ignores_unknown_depth(pixels):
    rays, depth, rgb, cameras = pixels
    gaussians = gaussians_at(rays, 2 * distance_along_rays(depth, rays, cameras), rgb)
    depth = depth.clone()
    depth[0, 1] = 0
    depth[1, 0, 0, 0] = torch.nan
    gaussians.means.requires_grad_()
    loss = warm_start_loss(gaussians, rays, depth, rgb, cameras)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2), rel=1e-4)
    gradient = gaussians.means.grad.view(2, 2, 3, 5, 8, 3)
    assert gradient.isfinite().all()
    assert gradient[0, 1].abs().max() == 0
    assert gradient[0, 0].abs().min(dim=-1).values.max() > 0


def test_warm_start_stays_finite_behind_the_camera_and_without_depth(pixels):
    rays, depth, rgb, cameras = pixels
    gaussians = gaussians_at(rays, -depth, rgb)
    assert warm_start_loss(gaussians, rays, depth, rgb, cameras).isfinite()
    assert warm_start_loss(gaussians, rays, torch.zeros_like(depth), rgb, cameras).item() == 0


def test_losses_of_a_batch_are_the_means_of_its_scenes(depths, pixels):
    """Whatever their depth leaves out, so that processes with one scene each find the loss of all."""
    predicted, target = (torch.cat([depth, depth.flip(1)]) for depth in depths)
    target[0, 0, :6] = 0
    alone = torch.stack([depth_loss(predicted[k : k + 1], target[k : k + 1]) for k in range(2)])
    assert alone[0] != alone[1]
    torch.testing.assert_close(depth_loss(predicted, target), alone.mean())
    rays, depth, rgb, cameras = pixels
    gaussians = gaussians_at(rays, 2 * distance_along_rays(depth, rays, cameras), rgb + 0.25)
    gaussians.means[0, :50] *= 3
    depth = depth.clone()
    depth[0, 1] = 0
    parts = []
    for k in range(2):
        here = slice(k, k + 1)
        one = RayGrid(rays.origins[here], rays.directions[here], rays.cell_size[here])
        fields = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.rgb)
        scene = Gaussians(*(field[here] for field in fields))
        parts.append(warm_start_loss(scene, one, depth[here], rgb[here], cameras[here]))
    torch.testing.assert_close(
        warm_start_loss(gaussians, rays, depth, rgb, cameras), torch.stack(parts).mean()
    )
