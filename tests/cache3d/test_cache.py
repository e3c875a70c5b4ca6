"""The 3D cache of a scene: what its buffers show under each policy, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lyra_ns.cache3d import cache as cache_module
from lyra_ns.cache3d.cache import ENOUGH_COVERAGE, CacheSettings, SceneCache, Warps
from lyra_ns.cache3d.reference import plain_warp
from lyra_ns.cache3d.splat import SplatSettings, moved_pixels, reliable_depth, sheet_depth
from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.metrics import psnr
from tests.helpers.cache_scenes import (
    BOX_COLUMNS,
    BOX_ROWS,
    HEIGHT,
    WIDTH,
    box_before_wall,
    cameras_at,
    hill,
    picture,
    two_colours,
)

OPEN = CacheSettings(reliability_threshold=1.0, foreground_masking=False)
"""Shows every pixel of known depth."""
HOME = cameras_at([(0.0, 0.0, 0.0)])
PATH = cameras_at([(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.2, -0.1, 0.1)], target=2.0)


def video(num: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Different pictures, each over its own depth."""
    depth = torch.stack([hill() + 0.05 * k for k in range(num)])
    return torch.stack([picture(seed) for seed in range(num)]), depth


def test_the_source_camera_sees_the_image_and_no_hole():
    for settings in (CacheSettings(), OPEN, CacheSettings(splat=SplatSettings("hard"))):
        cache = SceneCache.from_image(picture().float(), hill().float(), HOME[0], settings=settings)
        warps = cache.render(HOME)
        assert warps.rgb.shape == (1, 1, 3, HEIGHT, WIDTH)
        assert warps.mask.shape == (1, 1, 1, HEIGHT, WIDTH)
        assert warps.depth.shape == (1, 1, HEIGHT, WIDTH)
        assert warps.mask.all()
        assert psnr(warps.rgb[0].movedim(1, -1), picture().float()[None].movedim(1, -1)).item() > 90
        torch.testing.assert_close(warps.depth[0, 0], hill().float(), rtol=1e-5, atol=0)


def test_holes_are_black_and_minus_one_for_video_models():
    rgb, mask = (
        warps := SceneCache.from_image(picture(), box_before_wall(), HOME).render(PATH)
    ).in_video_range()
    hole = ~warps.mask.expand_as(rgb)
    assert hole.any()
    assert (rgb[hole] == -1).all()
    assert (warps.rgb[hole] == 0).all()
    torch.testing.assert_close(rgb[~hole], warps.rgb[~hole] * 2 - 1)
    assert mask.unique().tolist() == [0, 1]


def test_trajectories_chunks_and_the_plain_loop_agree(monkeypatch):
    settings = replace(OPEN, reliability_threshold=0.05)
    paths = stack_cameras([PATH, cameras_at([(0.0, 0.1, 0.0), (-0.2, 0.0, 0.3), (0.0, 0.3, -0.2)])])
    cache = SceneCache.from_image(picture(), box_before_wall(), HOME, settings=settings)
    warps = cache.render(paths)
    usable = reliable_depth(box_before_wall()[None], 0.05)[0]
    for v in range(2):
        for t in range(3):
            single = plain_warp(
                picture(), box_before_wall(), usable, HOME[0], paths[v, t], cache.farthest, SplatSettings()
            )
            assert torch.equal(warps.mask[v, t, 0], single.mask)
            torch.testing.assert_close(warps.rgb[v, t, 0], single.rgb[0], rtol=0, atol=1e-9)
    monkeypatch.setitem(cache_module.POINTS_AT_ONCE, "cpu", 2 * HEIGHT * WIDTH)
    chunked = cache.render(paths)
    torch.testing.assert_close(chunked.rgb, warps.rgb, rtol=0, atol=1e-12)
    torch.testing.assert_close(warps[1].rgb, cache.render(paths[1]).rgb, rtol=0, atol=1e-12)


def test_targets_may_have_another_size():
    cache = SceneCache.from_image(picture(), hill(), HOME, settings=OPEN)
    small = cache.render(HOME.resized(HEIGHT // 2, WIDTH // 2))
    assert small.rgb.shape[-2:] == (HEIGHT // 2, WIDTH // 2)
    # Every point lies a quarter pixel from the centre of its small pixel, so four blend evenly by depth.
    blocks = torch.nn.functional.avg_pool2d(hill()[None], 2)[0]
    inner = (slice(2, -2), slice(2, -2))
    torch.testing.assert_close(small.depth[0, 0][inner], blocks[inner], rtol=0.02, atol=0)


def test_unknown_depth_is_never_shown():
    depth = hill()
    depth[3, 4], depth[10, 20], depth[30, 40] = torch.nan, 0.0, -2.0
    mask = SceneCache.from_image(picture(), depth, HOME, settings=OPEN).render(HOME).mask[0, 0, 0]
    assert (~mask).nonzero().tolist() == [[3, 4], [10, 20], [30, 40]]


def test_the_sky_stays_where_it_is_while_the_camera_moves():
    depth = hill()
    depth[:10] = torch.inf
    cache = SceneCache.from_image(picture(), depth, HOME, settings=OPEN)
    seen = cache.render(cameras_at([(0.0, -0.1, 0.0)]))
    assert (seen.depth[0, 0, :9] > 99).all()
    assert cache.farthest == 100
    keeps_no_sky = replace(OPEN, farthest_depth=None)
    warps = SceneCache.from_image(picture(), depth, HOME, settings=keeps_no_sky).render(HOME)
    assert not warps.mask[0, 0, 0, :10].any()
    assert warps.mask[0, 0, 0, 10:].all()


def test_a_mask_hides_pixels():
    allowed = picture(5)[0] > 0.5
    warps = SceneCache.from_image(picture(), hill(), HOME, allowed, OPEN).render(HOME)
    assert torch.equal(warps.mask[0, 0, 0], allowed)


def test_appended_frames_come_first_and_the_original_stays_last():
    cache = SceneCache.from_image(picture(0), hill(), HOME[0], settings=OPEN)
    order = []
    for seed in (1, 2):
        cache = cache.append(picture(seed), hill(), HOME[0])
        order.append(cache.render(HOME).rgb[0])
    for buffers, seeds in zip(order, ((1, 0), (2, 0)), strict=True):
        torch.testing.assert_close(buffers, torch.stack([picture(seed) for seed in seeds]))


def test_more_buffers_keep_more_and_one_keeps_the_newest():
    for num_buffers, seeds in ((3, (3, 1, 0)), (1, (3,))):
        settings = replace(OPEN, max_buffers=num_buffers)
        cache = SceneCache.from_image(picture(0), hill(), HOME[0], settings=settings)
        for seed in (1, 2, 3):
            cache = cache.append(picture(seed), hill(), HOME[0])
        expected = torch.stack([picture(seed) for seed in seeds])
        torch.testing.assert_close(cache.render(HOME).rgb[0], expected)


def test_the_mask_of_an_appended_frame_counts():
    cache = SceneCache.from_image(two_colours(), box_before_wall(), HOME[0])
    added = cache.append(picture(), hill(), HOME[0])
    assert added.render(HOME).mask[0, 0].all()
    torch.testing.assert_close(added.render(PATH).mask[:, 1], cache.render(PATH).mask[:, 0])


def test_each_target_frame_sees_its_own_frame_of_a_video():
    rgb, depth = video()
    homes = cameras_at([(0.0, 0.0, 0.0)] * 4)
    cache = SceneCache.from_video(rgb, depth, homes, settings=OPEN)
    torch.testing.assert_close(cache.render(homes).rgb[:, 0], rgb)
    torch.testing.assert_close(cache.render(homes[:2], start=1).rgb[:, 0], rgb[1:3])
    two = cache.render(stack_cameras([PATH, homes[:3]]))
    assert two.rgb.shape[:3] == (2, 3, 1)
    torch.testing.assert_close(two.rgb[1, :, 0], rgb[:3])
    longer = cache.append(picture(8), hill(), HOME[0])
    torch.testing.assert_close(longer.render(HOME, start=4).rgb[0, 0], picture(8))


def test_a_moving_video_camera_is_undone():
    rgb, depth = video(3)
    cache = SceneCache.from_video(rgb, depth, PATH, settings=OPEN)
    torch.testing.assert_close(cache.render(PATH).rgb[:, 0], rgb, rtol=0, atol=1e-9)


def test_a_video_that_is_too_short_is_refused():
    cache = SceneCache.from_video(*video(), cameras_at([(0.0, 0.0, 0.0)] * 4))
    with pytest.raises(ValueError, match="expected 3 frames of video from frame 2 on, found 4"):
        cache.render(PATH, start=2)


def test_views_that_cover_most_are_chosen_per_trajectory():
    # Three views of a wall side by side; each path looks at another pair of them.
    places = [(-1.2, 0.0, 0.0), (0.0, 0.0, 0.0), (1.2, 0.0, 0.0)]
    depth = torch.full((3, HEIGHT, WIDTH), 2.0, dtype=torch.float64)
    rgb = torch.stack([torch.full_like(picture(), 0.2 + 0.3 * k) for k in range(3)])
    cache = SceneCache.from_views(rgb, depth, cameras_at(places), settings=OPEN)
    left = cameras_at([(-0.7, 0.0, 0.0), (-0.8, 0.0, 0.0)])
    right = cameras_at([(0.7, 0.0, 0.0), (0.8, 0.0, 0.0)])
    warps = cache.render(stack_cameras([left, right]))
    assert warps.rgb.shape[:3] == (2, 2, 2)
    shown = warps.rgb.amax((-3, -2, -1))
    torch.testing.assert_close(shown[:, 1], torch.tensor([[0.2, 0.5], [0.8, 0.5]], dtype=torch.float64))


def all_views_at_once(cache: SceneCache, path: CameraPath) -> Warps:
    """The rule written down plainly: everything is rendered, then chosen from."""
    every = replace(cache, policy="latest_and_first").render(path)
    coverage = every.mask.to(every.rgb.dtype).mean((-3, -2, -1))
    index = coverage.mean(0).topk(cache.settings.max_buffers).indices
    rgb, mask, depth = (getattr(every, name)[:, index].clone() for name in ("rgb", "mask", "depth"))
    for frame, shares in enumerate(coverage[:, index]):
        if shares.max() >= ENOUGH_COVERAGE:
            for buffer in set(range(len(index))) - {int(shares.argmax())}:
                rgb[frame, buffer], mask[frame, buffer], depth[frame, buffer] = 0, False, 0
    return Warps(rgb, mask, depth)


@pytest.mark.parametrize("max_buffers", [1, 2, 5])
def test_views_are_chosen_one_at_a_time(max_buffers: int, monkeypatch: pytest.MonkeyPatch):
    places = [(0.4 * k - 0.8, 0.0, 0.0) for k in range(5)]
    rgb, depth = video(5)
    settings = replace(OPEN, max_buffers=max_buffers)
    cache = SceneCache.from_views(rgb, depth, cameras_at(places), settings=settings)
    path = cameras_at([(0.0, 0.0, 0.0), (0.3, 0.1, 0.0), (0.9, 0.0, 0.0)])
    expected = all_views_at_once(cache, path)
    at_once: list[int] = []
    stock = cache_module.warp
    monkeypatch.setattr(cache_module, "warp", lambda *given: at_once.append(len(given[1])) or stock(*given))
    found = cache.render(path)
    for name in ("rgb", "mask", "depth"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert max(at_once) == 3 * max_buffers


def test_a_view_that_fills_a_frame_is_shown_alone():
    places = [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (1.2, 0.0, 0.0)]
    depth = torch.full((3, HEIGHT, WIDTH), 2.0, dtype=torch.float64)
    cache = SceneCache.from_views(
        torch.stack([picture(k) for k in range(3)]), depth, cameras_at(places), settings=OPEN
    )
    warps = cache.render(cameras_at([(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.65, 0.0, 0.0)]))
    # By the mean over the path view 1 comes first, but view 0 fills the first frame.
    assert warps.mask.any(-1).any(-1).flatten(1).tolist() == [[False, True], [True, False], [True, True]]
    torch.testing.assert_close(warps.rgb[0, 1], picture(0))
    torch.testing.assert_close(warps.rgb[1, 0], picture(1))
    assert (warps.rgb[0, 0] == 0).all()
    assert (warps.depth[0, 0] == 0).all()


def test_foreground_masking_hides_the_wall_behind_the_torn_silhouette():
    masked = SceneCache.from_image(two_colours(), box_before_wall(), HOME)
    bare = SceneCache.from_image(
        two_colours(), box_before_wall(), HOME, settings=CacheSettings(foreground_masking=False)
    )
    target = cameras_at([(0.6, 0.0, 0.0)])
    assert torch.equal(masked.frames.torn, ~reliable_depth(box_before_wall()[None], 0.05))
    with_sheet, without = masked.render(target), bare.render(target)
    # The box has moved 30 pixels to the left, the wall 15: what the wall shows between the two is hidden.
    gap = (
        0,
        0,
        0,
        slice(BOX_ROWS.start + 4, BOX_ROWS.stop - 4),
        slice(BOX_COLUMNS.start - 14, BOX_COLUMNS.start - 8),
    )
    assert without.mask[:, :, :, BOX_ROWS, : BOX_COLUMNS.start - 15].any()
    hidden = without.mask & ~with_sheet.mask
    sheet = sheet_depth(
        moved_pixels(masked.frames.depth, HOME, target),
        masked.frames.depth > 0,
        masked.frames.torn,
        (HEIGHT, WIDTH),
    )
    assert torch.equal(hidden[:, 0, 0], without.mask[:, 0, 0] & (sheet + 0.02 < without.depth[:, 0]))
    assert hidden.any()
    assert (with_sheet.rgb.masked_select(hidden) == 0).all()
    assert not with_sheet.mask[gap].any()


def test_a_relative_margin_makes_masks_independent_of_the_unit():
    settings = CacheSettings(sheet_margin=0.0, sheet_margin_share=0.02)
    target = cameras_at([(0.6, 0.1, 0.0)])
    metres = SceneCache.from_image(two_colours(), box_before_wall(), HOME, settings=settings).render(target)
    scaled = replace(target, camera_to_world=target.camera_to_world.clone())
    scaled.camera_to_world[..., :3, 3] *= 0.01
    small = SceneCache.from_image(two_colours(), box_before_wall() * 0.01, HOME, settings=settings).render(
        scaled
    )
    assert torch.equal(metres.mask, small.mask)
    absolute = SceneCache.from_image(two_colours(), box_before_wall() * 0.01, HOME).render(scaled)
    assert not torch.equal(absolute.mask, metres.mask)


def test_official_pixel_centres_shift_the_principal_point_of_both_cameras():
    turned = cameras_at([(0.0, 0.0, 1.0)])
    ours = SceneCache.from_image(picture(), hill(), HOME, settings=OPEN)
    official = SceneCache.from_image(picture(), hill(), HOME, settings=replace(OPEN, pixel_centre=0.0))
    torch.testing.assert_close(official.render(HOME).rgb, ours.render(HOME).rgb)
    shifted = [replace(c, intrinsics=c.intrinsics + torch.tensor([0, 0, 0.5, 0.5])) for c in (HOME, turned)]
    expected = SceneCache.from_image(picture(), hill(), shifted[0], settings=OPEN).render(shifted[1])
    torch.testing.assert_close(official.render(turned).rgb, expected.rgb)
    assert not torch.allclose(official.render(turned).rgb, ours.render(turned).rgb, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgb": picture()[:1]}, "give RGB, without alpha"),
        ({"rgb": picture()[None]}, "use from_video or from_views"),
        ({"rgb": picture() * 255}, r"colours from 0 to 1, found .* to 255"),
        ({"rgb": picture() * torch.nan}, "colours from 0 to 1, found nan"),
        ({"rgb": (picture() * 255).to(torch.uint8)}, "floating-point"),
        ({"depth": hill()[:-1]}, r"expected depth \[1, 40, 56\].*found \[1, 39, 56\]: resize"),
        ({"depth": torch.zeros_like(hill())}, "expected depth above 0 in every frame, found none in frame 0"),
        ({"depth": hill() * torch.nan}, "found none in frame 0"),
        ({"depth": hill().int()}, "floating-point"),
        ({"mask": torch.ones(HEIGHT, WIDTH)}, "expected a mask of torch.bool"),
        ({"camera": PATH}, "expected one camera for one frame"),
        ({"camera": HOME.resized(20, 28)}, "use|CameraPath.resized"),
        ({"camera": replace(HOME, intrinsics=HOME.intrinsics * 0)}, "focal lengths above 0"),
        ({"camera": replace(HOME, camera_to_world=HOME.camera_to_world * torch.nan)}, "finite poses"),
    ],
)
def test_a_bad_frame_is_refused_in_one_sentence(changes, message):
    arguments = {"rgb": picture(), "depth": hill(), "camera": HOME} | changes
    with pytest.raises(ValueError, match=message):
        SceneCache.from_image(**arguments)


def test_bad_targets_and_frames_of_another_size_are_refused():
    cache = SceneCache.from_image(picture(), hill(), HOME)
    with pytest.raises(ValueError, match="finite poses"):
        cache.render(replace(HOME, camera_to_world=HOME.camera_to_world * torch.inf))
    with pytest.raises(ValueError, match="at least one"):
        cache.render(HOME[0])
    with pytest.raises(ValueError, match=r"expected a frame of 40 x 56 pixels .* found 20 x 28"):
        cache.append(picture()[:, :20, :28], hill()[:20, :28], HOME.resized(20, 28))


@pytest.mark.parametrize(
    "wrong",
    [{"max_buffers": 0}, {"reliability_threshold": 0.0}, {"sheet_margin": -1.0}, {"pixel_centre": 0.25}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        CacheSettings(**wrong)


def test_small_sources_may_be_steeper_per_pixel():
    full = CacheSettings()
    assert CacheSettings.for_width(1280) == CacheSettings.for_width(1920) == full
    half, tiny = CacheSettings.for_width(640), CacheSettings.for_width(32)
    assert (half.reliability_threshold, half.torn_threshold) == (0.1, 0.1)
    assert tiny.reliability_threshold == tiny.torn_threshold == 0.99
    assert replace(half, reliability_threshold=0.05, torn_threshold=0.05) == full
