"""Baselines on frames whose content and geometry are known."""

from __future__ import annotations

import pytest
import torch

from lyra_ns.cache3d.inpaint import background_weights, fill_holes
from lyra_ns.cameras import CameraPath, project
from lyra_ns.evaluation.baselines import (
    mean_colour,
    nearest_frame,
    nearest_frames,
    pixel_gaussians,
    render_splats,
    warped_frame,
)
from lyra_ns.metrics import psnr

HEIGHT, WIDTH, FOCAL, PLANE_DEPTH = 40, 56, 50.0, 2.0


def cameras_at(x: torch.Tensor, yaw: torch.Tensor | None = None) -> CameraPath:
    """Cameras at positions x along the x axis, turned about the vertical axis by `yaw`."""
    yaw = torch.zeros_like(x) if yaw is None else yaw
    poses = torch.eye(4).repeat(*x.shape, 1, 1)
    poses[..., 0, 0], poses[..., 0, 2] = yaw.cos(), yaw.sin()
    poses[..., 2, 0], poses[..., 2, 2] = -yaw.sin(), yaw.cos()
    poses[..., 0, 3] = x
    intrinsics = torch.tensor([FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]).expand(*x.shape, 4)
    return CameraPath(poses, intrinsics, torch.zeros(x.shape), HEIGHT, WIDTH)


def plane_seen_from(x: torch.Tensor) -> torch.Tensor:
    """Images [..., H, W, 3] of a softly coloured plane z = 2, from cameras at x that look along z."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    world_x = x[..., None, None] + (columns - WIDTH / 2) / FOCAL * PLANE_DEPTH
    world_y = ((rows - HEIGHT / 2) / FOCAL * PLANE_DEPTH).expand_as(world_x)
    waves = [torch.sin(3 * world_x), torch.cos(4 * world_y), torch.sin(2 * world_x + 3 * world_y)]
    return torch.stack(waves, -1) * 0.4 + 0.5


@pytest.fixture
def inputs():
    """Frames [2, 3, 3, H, W], depth and cameras of two paths that look at the plane."""
    x = torch.tensor([[0.0, 0.1, 0.2], [0.0, -0.15, -0.3]])
    depth = torch.full((2, 3, HEIGHT, WIDTH), PLANE_DEPTH)
    return plane_seen_from(x).movedim(-1, 2), depth, cameras_at(x)


def test_mean_colour_is_that_of_all_frames(inputs):
    frames, _, _ = inputs
    image = mean_colour(frames, 4)
    assert image.shape == (4, HEIGHT, WIDTH, 3)
    torch.testing.assert_close(image[2, 5, 7], frames.movedim(2, -1).reshape(-1, 3).mean(0))


def test_nearest_frame_is_the_closest_by_centre(inputs):
    frames, _, cameras = inputs
    targets = cameras_at(torch.tensor([0.12, -0.29, -0.14]))
    assert nearest_frames(cameras, targets, PLANE_DEPTH).tolist() == [1, 5, 4]
    images = nearest_frame(frames, cameras, targets, PLANE_DEPTH)
    torch.testing.assert_close(images[1], frames[1, 2].movedim(0, -1), rtol=0, atol=0)


def test_nearest_frame_weighs_turning_against_moving_by_depth():
    sources = cameras_at(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.2, 0.0]]))
    target = cameras_at(torch.tensor([0.0]))
    assert nearest_frames(sources, target, typical_depth=2.0).item() == 0
    assert nearest_frames(sources, target, typical_depth=10.0).item() == 1


def test_pixel_gaussians_lie_on_their_pixels_at_their_depth(inputs):
    depth = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) + 1
    depth[0, :5] = torch.tensor([0.0, -1.0, torch.nan, torch.inf, 1.5])
    camera = cameras_at(torch.tensor([0.3]), torch.tensor([0.4]))
    splats = pixel_gaussians(torch.rand(HEIGHT, WIDTH, 3), depth, camera[0])
    pixels, z = project(splats.means[None], camera)
    assert splats.num == HEIGHT * WIDTH - 4
    torch.testing.assert_close(z[0], depth.flatten()[4:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pixels[0, 1], torch.tensor([5.5, 0.5]), rtol=1e-4, atol=1e-3)


def test_warping_by_true_depth_beats_the_nearest_frame(inputs):
    frames, depth, cameras = inputs
    x = torch.tensor([0.3, -0.5, 0.05])
    targets, truth = cameras_at(x), plane_seen_from(x)
    warped = warped_frame(frames, depth, cameras, targets, PLANE_DEPTH)
    nearest = nearest_frame(frames, cameras, targets, PLANE_DEPTH)
    assert psnr(warped.rgb, truth, warped.covered).min() > 35
    assert (psnr(warped.rgb, truth) > psnr(nearest, truth) + 5).all()


def test_warp_shows_the_nearest_frame_in_holes(inputs):
    frames, depth, cameras = inputs
    targets = cameras_at(torch.tensor([0.6]))
    warped = warped_frame(frames, depth, cameras, targets, PLANE_DEPTH)
    # Moved 0.4 to the right at depth 2: the last ten columns were not seen.
    assert warped.covered[0, 2:-2, 2:-11].all()
    assert not warped.covered[0, :, -8:].any()
    expected = frames[0, 2].movedim(0, -1)[:, -8:]
    torch.testing.assert_close(warped.rgb[0, :, -8:], expected, rtol=0, atol=0)


def test_splats_keep_their_colour_where_they_are_thin():
    camera = cameras_at(torch.zeros(1))
    depth = torch.zeros(HEIGHT, WIDTH)
    depth[:, ::3] = 2.0
    rendered = render_splats(pixel_gaussians(torch.full((HEIGHT, WIDTH, 3), 0.7), depth, camera[0]), camera)
    assert rendered.alpha.min() < 0.8
    assert (rendered.rgb - 0.7)[rendered.alpha > 0.05].abs().max() < 1e-3


def test_filling_keeps_what_is_known_and_continues_it():
    image = torch.linspace(0, 1, 48).expand(1, 2, 37, 48).clone()
    weights = torch.ones(1, 1, 37, 48)
    weights[..., 15:18, 20:24] = 0
    spoilt = torch.where(weights > 0, image, 99.0)
    filled = fill_holes(spoilt, weights)
    torch.testing.assert_close(filled[:, :, :15], image[:, :, :15], rtol=0, atol=0)
    assert (filled - image).abs().max() < 0.06


def test_filling_takes_the_background_at_an_edge():
    depth = torch.full((1, 1, 32, 32), 5.0)
    depth[..., :16] = 1.0
    colour = depth.clone()
    depth[..., 12:20] = 0
    filled = fill_holes(colour, background_weights(depth))
    assert filled[..., 15:20].min() > 4.5


def test_filling_an_image_without_any_weight_gives_black():
    assert fill_holes(torch.ones(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)).abs().max() == 0
