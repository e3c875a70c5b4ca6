"""The real photograph check: published numbers at full size, and clips that show the photograph."""

from __future__ import annotations

import pytest
import torch

from lyra_ns.camera_paths import trajectory_path
from lyra_ns.cameras import project, stack_cameras
from lyra_ns.evaluation.baselines import COVERED_ALPHA, pixel_gaussians
from lyra_ns.evaluation.photo_check import (
    StereoPhoto,
    clips_of_photo,
    cropped_and_resized,
    evaluate_stereo_photo,
    in_metres,
    left_warped,
    load_stereo_photo,
)
from lyra_ns.metrics import psnr
from lyra_ns.ops.lpips import load_lpips
from lyra_ns.rendering import RenderSettings, render


@pytest.fixture(scope="module")
def photo() -> StereoPhoto:
    return load_stereo_photo()


@pytest.fixture(scope="module")
def small(photo) -> StereoPhoto:
    return cropped_and_resized(photo, 64, 96)


def test_plain_warp_reproduces_the_published_numbers(photo):
    """24.65 dB over white on covered pixels, 12.87 dB of the left one there.

    Source: docs/reference/small_scale.md, "Stereo pair".
    """
    splats = pixel_gaussians(photo.left, photo.depth, photo.left_camera)
    rendered = render(splats, photo.right_camera.reshape(1), RenderSettings(response="ewa"))
    assert splats.num == 343_274
    covered = rendered.alpha > COVERED_ALPHA
    assert psnr(rendered.rgb, photo.right[None], covered).item() == pytest.approx(24.65, abs=0.02)
    copied = psnr(photo.left[None], photo.right[None], covered)
    assert copied.item() == pytest.approx(12.87, abs=0.01)


@pytest.mark.slow
def test_floor_and_reference_line_at_full_size(photo):
    scores = evaluate_stereo_photo({"same": photo.right[None]}, photo, load_lpips("alex"))
    assert scores["left_copied"].psnr_covered == pytest.approx(12.91, abs=0.02)
    assert scores["left_copied"].lpips == pytest.approx(0.419, abs=0.001)
    assert scores["left_warped"].psnr_covered == pytest.approx(27.72, abs=0.05)
    assert scores["left_warped"].lpips_covered < 0.05
    assert scores["same"].psnr == pytest.approx(100.0)
    assert scores["same"].lpips == 0


def test_colours_are_clipped_before_they_are_judged(small):
    distance = lambda a, b: (a - b).abs().mean((1, 2, 3))  # noqa: E731
    scores = evaluate_stereo_photo({"bright": small.left[None] + 2.0}, small, distance)
    white = torch.ones_like(small.right)[None]
    assert scores["bright"].psnr == pytest.approx(psnr(white, small.right[None]).item(), abs=1e-4)
    assert scores["bright"].lpips == pytest.approx(distance(white, small.right[None]).item(), abs=1e-6)


def test_depth_and_cameras_agree_with_the_disparity(photo, small):
    """A point of the left photograph lands in the right one where its disparity says, at every size."""
    for pair in (photo, small):
        splats = pixel_gaussians(pair.left, pair.depth, pair.left_camera)
        (left, z), (right, _) = (
            project(splats.means[None], camera.reshape(1)) for camera in (pair.left_camera, pair.right_camera)
        )
        found = (left - right)[0, :, 0] * 994.978 / pair.left_camera.intrinsics[0]
        torch.testing.assert_close(found, 0.193001 * 994.978 / z[0] - 31.086, rtol=1e-3, atol=0.02)


def test_resized_pair_shows_the_same_scene(photo, small):
    assert small.left.shape == small.right.shape == (64, 96, 3)
    assert (small.left_camera.height, small.left_camera.width) == (64, 96)
    assert small.centre_depth == pytest.approx(photo.centre_depth, rel=0.05)
    assert 2 < photo.centre_depth < 5


@pytest.fixture(scope="module")
def clips(photo, small):
    settings = {"centre_depth": photo.centre_depth, "num_frames": 3, "height": 64, "width": 96}
    paths = [trajectory_path(k, 0.3, intrinsics=small.left_camera.intrinsics, **settings) for k in (0, 1, 3)]
    return clips_of_photo(photo, stack_cameras(paths))


def test_clips_start_with_the_photograph(clips, small):
    assert clips.rgb.shape == (3, 3, 3, 64, 96)
    assert psnr(clips.rgb[:, 0].movedim(1, -1), small.left.expand(3, -1, -1, -1)).min() > 26


def test_clips_move_with_the_camera(photo, small):
    """Moved to the right camera, the photograph is closer to the real right one than where it was."""
    clip = clips_of_photo(photo, small.right_camera.reshape(1, 1))
    moved = psnr(clip.rgb[0].movedim(1, -1), small.right[None])
    assert moved > psnr(small.left[None], small.right[None]) + 8


def test_holes_of_clips_are_filled_and_marked(clips):
    assert (clips.depth[:, 0] > 0).float().mean() > 0.95
    zoomed_out = clips.depth[2, 2]
    assert (zoomed_out[:, 0] == 0).all()
    border = clips.rgb[2, 2, :, :, 0]
    assert border.min() >= 0
    assert border.mean() > 0.05


def test_depth_of_another_unit_is_brought_to_metres(small):
    """By its median where depth was measured, whatever it says elsewhere."""
    depth = torch.where(small.depth > 0, 7 * small.depth, 1e4)
    torch.testing.assert_close(in_metres(depth, small)[small.depth > 0], small.depth[small.depth > 0])


def test_a_flat_depth_moves_the_photograph_less_well_than_the_measured_one(small):
    flat = in_metres(torch.ones_like(small.depth), small)
    found = [psnr(left_warped(small, depth).rgb, small.right[None]).item() for depth in (flat, small.depth)]
    assert found[0] > psnr(small.left[None], small.right[None]).item() + 1
    assert found[1] > found[0] + 2
