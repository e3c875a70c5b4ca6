"""Pixels moved between cameras, and which depths are trusted."""

from __future__ import annotations

import pytest
import torch

from lyra_ns.cache3d.splat import (
    bounded_depth,
    known_depth,
    moved_pixels,
    reliable_depth,
    unproject,
    with_pixel_centre,
)
from lyra_ns.cameras import project
from tests.helpers.cache_scenes import (
    BOX_COLUMNS,
    BOX_ROWS,
    FOCAL,
    HEIGHT,
    WALL,
    WIDTH,
    box_before_wall,
    cameras_at,
    hill,
)


def test_unprojected_pixels_lie_on_their_rays_at_their_z_depth():
    points = unproject(hill(), cameras_at([(0.5, -0.25, 1.0)])[0])
    expected = torch.tensor([(10.5 - WIDTH / 2) / FOCAL, (3.5 - HEIGHT / 2) / FOCAL, 1.0]) * hill()[3, 10]
    torch.testing.assert_close(points[3, 10], expected + torch.tensor([0.5, -0.25, 1.0]).double())


def test_moved_pixels_are_the_projected_points():
    sources = cameras_at([(0.0, 0.0, 0.0), (0.3, 0.1, -0.2)], target=WALL)
    targets = cameras_at([(0.4, -0.2, 0.3), (-0.5, 0.0, 0.6)], target=1.5)
    depth = torch.stack([hill(), box_before_wall()])
    positions = moved_pixels(depth, sources, targets)
    pixels, z = project(unproject(depth, sources).flatten(1, 2), targets)
    torch.testing.assert_close(positions[:, 2].flatten(1), z)
    torch.testing.assert_close((positions[:, :2] / positions[:, 2:]).flatten(2).mT, pixels)


def test_pixels_stay_where_they_are_in_float32_at_full_size():
    camera = cameras_at([(0.2, 0.1, -0.3)], target=WALL).resized(704, 1280)
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(1, 704, 1280, generator=generator) + 0.5
    positions = moved_pixels(depth, camera, camera)
    rows, columns = (positions[0, k] / positions[0, 2] for k in (1, 0))
    assert (rows - torch.arange(704)[:, None] - 0.5).abs().max() < 5e-4
    assert (columns - torch.arange(1280) - 0.5).abs().max() < 5e-4


def test_official_pixel_centres_put_the_first_pixel_on_the_principal_point():
    camera = with_pixel_centre(cameras_at([(0.0, 0.0, 0.0)]), 0.0)
    depth = torch.full((1, HEIGHT, WIDTH), 2.0, dtype=torch.float64)
    # GEN3C: X = d K^-1 [u, v, 1] with whole u and v.
    point = unproject(depth, camera)[0, 5, 7]
    expected = [2 * (7 - WIDTH / 2) / FOCAL, 2 * (5 - HEIGHT / 2) / FOCAL, 2.0]
    torch.testing.assert_close(point, torch.tensor(expected, dtype=torch.float64))


def test_unknown_depth_is_nan_zero_negative_and_infinite():
    depth = torch.tensor([torch.nan, 0.0, -1.0, torch.inf, 5.0, 500.0])
    assert known_depth(depth).tolist() == [False] * 3 + [False, True, True]
    assert bounded_depth(depth, None).tolist() == [0, 0, 0, 0, 5, 500]


def test_the_sky_lies_at_the_farthest_depth():
    depth = torch.tensor([torch.nan, 0.0, -1.0, torch.inf, 5.0, 500.0])
    assert bounded_depth(depth, 100.0).tolist() == [0, 0, 0, 100, 5, 100]


def test_depth_is_unreliable_within_two_pixels_of_a_jump():
    reliable = reliable_depth(box_before_wall()[None], 0.05)[0]
    rows, columns = (
        slice(BOX_ROWS.start - 2, BOX_ROWS.stop + 2),
        slice(BOX_COLUMNS.start - 2, BOX_COLUMNS.stop + 2),
    )
    expected = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    expected[rows, columns] = False
    expected[BOX_ROWS.start + 2 : BOX_ROWS.stop - 2, BOX_COLUMNS.start + 2 : BOX_COLUMNS.stop - 2] = True
    assert torch.equal(reliable, expected)


@pytest.mark.parametrize(("step", "passes"), [(0.049, True), (0.051, False)])
def test_reliability_is_the_range_over_the_mean(step, passes):
    depth = torch.ones(1, 9, 9, dtype=torch.float64)
    # In the square around the centre one of 25 is farther: range step, mean 1 + step / 25.
    depth[0, 4, 4] += step
    assert reliable_depth(depth, 0.05)[0, 4, 4].item() is passes


def test_neighbours_of_unknown_depth_are_unreliable_and_it_never_passes():
    depth = torch.ones(1, 9, 9)
    depth[0, 4, 4] = 0
    reliable = reliable_depth(depth, 0.05)[0]
    assert reliable.sum() == 81 - 25
    everything = reliable_depth(depth, 1.0)[0]
    assert everything.sum() == 80
    assert not everything[4, 4]
