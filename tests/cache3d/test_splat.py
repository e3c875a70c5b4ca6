"""Splatted pixels: against the plain loop, and what must hold whatever the geometry."""

from __future__ import annotations

import math

import pytest
import torch

from lyra_ns.cache3d.reference import plain_warp
from lyra_ns.cache3d.splat import SplatSettings, moved_pixels, splat
from tests.helpers.cache_scenes import (
    BOX,
    BOX_COLUMNS,
    BOX_ROWS,
    HEIGHT,
    WALL,
    WIDTH,
    box_before_wall,
    cameras_at,
    hill,
    picture,
    two_colours,
)

SIZE = (HEIGHT, WIDTH)
FARTHEST = torch.tensor(10.0, dtype=torch.float64)
SOFT, HARD = SplatSettings("soft"), SplatSettings("hard")
EVERYWHERE = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
PLACES = [(0.0, 0.0, 0.0), (0.31, -0.12, 0.2), (-0.4, 0.2, -0.5), (0.1, 0.0, 1.2)]


def positions(*places: tuple[float, float, float]) -> torch.Tensor:
    """[1, 3, 1, n] homogeneous positions of points (column, row, depth)."""
    points = torch.tensor(places, dtype=torch.float64)
    return torch.cat([points[:, :2] * points[:, 2:], points[:, 2:]], 1).T[None, :, None]


def splat_points(colours: list[float], *places: tuple[float, float, float], settings: SplatSettings = SOFT):
    """Grey points on an image of 4 x 6 pixels."""
    rgb = torch.tensor(colours, dtype=torch.float64).expand(1, 3, 1, -1)
    usable = torch.ones(1, 1, len(colours), dtype=torch.bool)
    return splat(rgb, positions(*places), usable, (4, 6), FARTHEST, settings)


@pytest.mark.parametrize("settings", [SOFT, HARD], ids=["soft", "hard"])
def test_a_batch_is_what_the_plain_loop_makes(settings):
    sources = cameras_at([(0.0, 0.0, 0.0)] * 4)
    targets = cameras_at(PLACES, target=WALL)
    depth = torch.stack([hill(), box_before_wall(), hill(), box_before_wall()])
    rgb = torch.stack([picture(seed) for seed in range(4)])
    usable = picture(9)[0].expand(4, -1, -1) > 0.2
    batch = splat(rgb, moved_pixels(depth, sources, targets), usable, SIZE, FARTHEST, settings)
    for k in range(4):
        single = plain_warp(rgb[k], depth[k], usable[k], sources[k], targets[k], FARTHEST, settings)
        assert torch.equal(batch.mask[k], single.mask[0])
        torch.testing.assert_close(batch.rgb[k], single.rgb[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(batch.depth[k], single.depth[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", [SOFT, HARD], ids=["soft", "hard"])
def test_the_same_camera_sees_the_same_picture(settings):
    camera = cameras_at([(0.3, -0.2, 0.5)], target=WALL)
    depth = box_before_wall()[None]
    rgb = picture()[None]
    seen = splat(rgb, moved_pixels(depth, camera, camera), EVERYWHERE, SIZE, FARTHEST, settings)
    assert seen.mask.all()
    torch.testing.assert_close(seen.rgb, rgb, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen.depth, depth, rtol=0, atol=1e-12)


def test_a_point_spreads_bilinearly_over_four_pixels():
    # Its weight cancels where it is alone, so a second one of known share makes the shares visible.
    seen = splat_points([1.0, 0.0], (2.75, 1.5, 2.0), (2.5, 1.5, 2.0))
    assert seen.rgb[0, 0, 1].tolist() == pytest.approx([0, 0, 0.75 / 1.75, 1.0, 0, 0])
    assert seen.mask[0].nonzero().tolist() == [[1, 2], [1, 3]]


def test_soft_weights_follow_the_official_formula():
    seen = splat_points([1.0, 0.0], (2.5, 1.5, 2.0), (2.5, 1.5, 2.5))
    near, far = (math.exp(-50 * math.log1p(z) / math.log1p(10.0)) for z in (2.0, 2.5))
    assert seen.rgb[0, 0, 1, 2].item() == pytest.approx(near / (near + far), abs=1e-9)
    assert seen.depth[0, 1, 2].item() == pytest.approx((2 * near + 2.5 * far) / (near + far), abs=1e-9)


def test_with_a_sky_at_100_soft_occlusion_is_soft():
    # docs/reference/gen3c.md, "Warping": depths 1.0 and 1.1 differ by a factor of 1.7 only.
    rgb = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 3, 1, -1)
    both = positions((2.5, 1.5, 1.0), (2.5, 1.5, 1.1))
    scale = torch.tensor(100.0, dtype=torch.float64)
    seen = splat(rgb, both, torch.ones(1, 1, 2, dtype=torch.bool), (4, 6), scale, SOFT)
    near = seen.rgb[0, 0, 1, 2].item()
    assert near / (1 - near) == pytest.approx(1.7, abs=0.01)


def test_hard_occlusion_shows_the_nearest_alone():
    far_first = splat_points([0.0, 1.0], (2.5, 1.5, 2.5), (2.5, 1.5, 2.0), settings=HARD)
    assert far_first.rgb[0, 0, 1, 2] == 1
    assert far_first.depth[0, 1, 2] == 2


def test_hard_occlusion_blends_what_is_equally_near():
    seen = splat_points([0.0, 1.0], (2.5, 1.5, 2.01), (2.5, 1.5, 2.0), settings=HARD)
    assert seen.rgb[0, 0, 1, 2].item() == pytest.approx(0.5)


@pytest.mark.parametrize("settings", [SOFT, HARD], ids=["soft", "hard"])
def test_the_box_hides_the_wall(settings):
    depth, source = box_before_wall()[None], cameras_at([(0.0, 0.0, 0.0)])
    target = cameras_at([(0.2, 0.0, 0.0)])
    seen = splat(
        two_colours()[None], moved_pixels(depth, source, target), EVERYWHERE, SIZE, FARTHEST, settings
    )
    # The box moves 10 pixels to the left, the wall 5.
    box = (0, slice(None), BOX_ROWS, slice(BOX_COLUMNS.start - 10, BOX_COLUMNS.stop - 10))
    red = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)[:, None, None].expand_as(seen.rgb[box])
    torch.testing.assert_close(seen.rgb[box], red, rtol=0, atol=3e-4)
    torch.testing.assert_close(seen.depth[0][box[2:]], torch.full_like(red[0], BOX), rtol=0, atol=3e-4)


def test_what_was_hidden_is_a_hole_in_the_mask():
    depth, source = box_before_wall()[None], cameras_at([(0.0, 0.0, 0.0)])
    target = cameras_at([(0.2, 0.0, 0.0)])
    seen = splat(two_colours()[None], moved_pixels(depth, source, target), EVERYWHERE, SIZE, FARTHEST, SOFT)
    expected = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    # Beside the box, and where the wall has moved in from the right.
    expected[BOX_ROWS, BOX_COLUMNS.stop - 10 : BOX_COLUMNS.stop - 5] = False
    expected[:, WIDTH - 5 :] = False
    assert torch.equal(seen.mask[0], expected)
    assert (seen.rgb[0][:, ~expected] == 0).all()
    assert (seen.depth[0][~expected] == 0).all()


def test_nothing_behind_the_camera_is_seen():
    source, target = cameras_at([(0.0, 0.0, 0.0)]), cameras_at([(0.0, 0.0, 1.2)])
    depth = box_before_wall()[None]
    seen = splat(two_colours()[None], moved_pixels(depth, source, target), EVERYWHERE, SIZE, FARTHEST, SOFT)
    assert seen.mask.any()
    assert (seen.rgb[:, 0] == 0).all()
    beyond = cameras_at([(0.0, 0.0, 2.5)])
    assert not splat(
        picture()[None], moved_pixels(depth, source, beyond), EVERYWHERE, SIZE, FARTHEST, SOFT
    ).mask.any()


def test_points_at_the_camera_and_far_outside_do_no_harm():
    seen = splat_points([1.0] * 4, (2.5, 1.5, 0.0), (1e30, 1.5, 2.0), (-1e9, -1e9, 1e-3), (2.5, 1.5, 2.0))
    assert seen.mask.sum() == 1
    assert seen.rgb.isfinite().all()


def test_the_border_takes_its_part_of_points_just_outside():
    seen = splat_points([1.0, 1.0], (0.25, 1.5, 2.0), (6.25, 0.5, 2.0))
    assert seen.mask[0].nonzero().tolist() == [[0, 5], [1, 0]]


def test_unusable_pixels_are_not_shown():
    camera = cameras_at([(0.0, 0.0, 0.0)])
    usable = picture()[None, 0] > 0.5
    seen = splat(picture()[None], moved_pixels(hill()[None], camera, camera), usable, SIZE, FARTHEST, SOFT)
    assert torch.equal(seen.mask, usable)


def test_depths_far_beyond_the_scale_keep_a_weight_in_float32():
    rgb = torch.ones(1, 3, 1, 1)
    seen = splat(
        rgb,
        positions((2.7, 1.5, 1e6)).float(),
        torch.ones(1, 1, 1, dtype=torch.bool),
        (4, 6),
        torch.tensor(1.0),
        SOFT,
    )
    assert seen.mask.sum() == 2
    torch.testing.assert_close(seen.rgb[0, :, 1, 2], torch.ones(3))


@pytest.mark.parametrize("wrong", [{"sharpness": 0.0}, {"tolerance": -0.1}], ids=["sharpness", "tolerance"])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        SplatSettings(**wrong)
