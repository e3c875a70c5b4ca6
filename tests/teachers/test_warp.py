"""The warping teacher: the image itself first, what lies behind edges, several buffers, its clips."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lyra_ns.cache3d.cache import CacheSettings, SceneCache
from lyra_ns.cameras import CameraPath
from lyra_ns.codec import load_codec
from lyra_ns.synthetic.writer import encode_videos
from lyra_ns.teachers import warp
from lyra_ns.teachers.base import CameraVideoTeacher, TeacherRequest, frames_of_latents
from lyra_ns.teachers.warp import WarpTeacher, shown_whole, warped_frames
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

RIGHT = [(0.02 * k, 0.0, 0.0) for k in range(9)]
"""Positions of a camera that moves to the right."""


def single(cameras: CameraPath) -> CameraPath:
    """In float32, as outside of tests."""
    return replace(
        cameras,
        camera_to_world=cameras.camera_to_world.float(),
        intrinsics=cameras.intrinsics.float(),
        times=cameras.times.float(),
    )


def request(
    trajectory: int = 0, rgb: Tensor | None = None, depth: Tensor | None = None, **changes: object
) -> TeacherRequest:
    cameras = single(cameras_at([(x * (1 + trajectory), y, z) for x, y, z in RIGHT]))
    rgb = (two_colours() if rgb is None else rgb).float()
    depth = (box_before_wall() if depth is None else depth).float()
    cache = SceneCache.from_image(rgb, depth, cameras[0])
    return replace(TeacherRequest("box", trajectory, cameras, rgb, cache), **changes)


@pytest.fixture(scope="module")
def teacher() -> WarpTeacher:
    return WarpTeacher(load_codec("linear"))


def test_a_camera_that_stays_sees_the_image(teacher: WarpTeacher) -> None:
    asked = request(rgb=picture(), depth=hill())
    still = single(cameras_at([(0.0, 0.0, 0.0)] * 9))
    (clip,) = teacher.generate([replace(asked, cameras=still)])
    image = (asked.image * 255).round().to(torch.uint8)
    assert torch.equal(clip.video[0], image)
    assert ((clip.video.int() - image.int()).abs() <= 1).all()
    torch.testing.assert_close(clip.depth, hill().float().expand(9, -1, -1), rtol=1e-4, atol=1e-4)
    assert clip.notes["share_seen"] == 1.0


def test_the_first_frame_is_the_image_even_where_the_cache_differs(teacher: WarpTeacher) -> None:
    asked = request(image=picture().float())
    clip = teacher.generate([asked])[0]
    assert torch.equal(clip.video[0], (asked.image * 255).round().to(torch.uint8))
    assert (clip.video[1].float() - clip.video[0].float()).abs().mean() > 10


def test_the_box_moves_before_the_wall_and_the_wall_fills_what_it_uncovers(teacher: WarpTeacher) -> None:
    clip = teacher.generate([request()])[0]
    shift = round(50 * RIGHT[-1][0] / BOX)
    row, uncovered = (
        BOX_ROWS.start + 8,
        slice(BOX_COLUMNS.stop - shift + 1, BOX_COLUMNS.stop - shift // 2 - 1),
    )
    red, green = clip.video[-1, 0, row], clip.video[-1, 1, row]
    assert (red[BOX_COLUMNS.start - shift + 1 : BOX_COLUMNS.stop - shift - 1] == 255).all()
    assert (clip.depth[-1, row, uncovered] == 0).all()
    assert (green[uncovered] > 200).all()
    assert (red[uncovered] < 55).all()
    assert clip.depth[-1, row, BOX_COLUMNS.start - shift + 2] == pytest.approx(BOX, rel=1e-3)
    assert clip.depth[-1, row, 4] == pytest.approx(WALL, rel=1e-3)


def test_pixels_at_jumps_are_shown_unless_the_cache_has_a_mask(teacher: WarpTeacher) -> None:
    cameras, rgb, depth = cameras_at(RIGHT), two_colours(), box_before_wall()
    filtered = SceneCache.from_image(rgb, depth, cameras[0])
    whole = shown_whole(filtered)
    assert not filtered.frames.usable.all()
    assert whole.frames.usable.all()
    assert not whole.settings.foreground_masking
    allowed = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    allowed[2:5, 2:5] = False
    masked = SceneCache.from_image(rgb, depth, cameras[0], allowed)
    assert torch.equal(shown_whole(masked).frames.usable, masked.frames.usable)
    shown = WarpTeacher(teacher.codec).preview(request())
    as_it_is = WarpTeacher(teacher.codec, show_whole=False).preview(request())
    assert shown.mask[1:].sum() > as_it_is.mask[1:].sum()


def test_single_pixels_among_holes_are_holes() -> None:
    cameras = cameras_at([(0.0, 0.0, 0.0)])
    depth = torch.full((HEIGHT, WIDTH), WALL, dtype=torch.float64)
    depth[10:21, 10:21] = 0
    depth[15, 15] = WALL
    settings = CacheSettings(reliability_threshold=1.0, foreground_masking=False)
    seen = warped_frames(SceneCache.from_image(picture(), depth, cameras[0], settings=settings), cameras)
    assert not seen.mask[0, 0, 11:20, 11:20].any()
    assert seen.depth[0, 15, 15] == 0
    assert seen.mask[0, 0, 5, 5]
    assert (seen.video[0, :, 15, 15] > 0).all()


def test_the_near_side_of_an_edge_does_not_stain_the_hole_beside_it() -> None:
    cameras = cameras_at([(0.0, 0.0, 0.0)])
    depth, rgb = torch.full((HEIGHT, WIDTH), WALL, dtype=torch.float64), two_colours()
    depth[:, :20], depth[:, 20:32] = BOX, 0
    rgb[0], rgb[1] = 0, 1
    rgb[0, :, :20], rgb[1, :, :20] = 1, 0
    settings = CacheSettings(reliability_threshold=1.0, foreground_masking=False)
    seen = warped_frames(SceneCache.from_image(rgb, depth, cameras[0], settings=settings), cameras)
    red, green, _ = seen.video[0].unbind(0)
    assert not seen.mask[0, 0, :, 20:32].any()
    assert (red[:, :20] == 255).all()
    assert (red[:, 20:] < 60).all()
    assert (green[:, 20:] > 195).all()


def test_of_several_views_the_nearest_surface_of_the_closest_camera_is_shown() -> None:
    cameras = cameras_at([(0.0, 0.0, 0.0), (0.4, 0.0, 0.0)])
    red, green = (torch.eye(3, dtype=torch.float64)[k][:, None, None] for k in range(2))
    flat = torch.full((HEIGHT, WIDTH), WALL, dtype=torch.float64)
    rgb = torch.stack([red.expand(3, HEIGHT, WIDTH), green.expand(3, HEIGHT, WIDTH)])
    cache = SceneCache.from_views(rgb, torch.stack([flat, flat]), cameras)
    seen = warped_frames(cache, cameras)
    # What both see comes from the camera that looks, what one sees from that one.
    assert seen.video[0, 0, 5:-5, 5:-5].min() == 255
    assert seen.video[1, 1, 5:-5, 5:-5].min() == 255
    near = torch.stack([flat, flat / 2])
    middle = cameras_at([(0.0, 0.0, 0.0)])
    hidden = warped_frames(SceneCache.from_views(rgb, near, cameras), middle)
    in_front = hidden.depth[0] < WALL * 0.75
    assert 0.1 < in_front.float().mean() < 0.9
    assert (hidden.video[0, 1][in_front] == 255).all()


@pytest.mark.parametrize("at_once", [1, 2**21])
def test_a_video_is_shown_frame_by_frame_from_the_asked_one(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(warp.PIXELS_AT_ONCE, "cpu", at_once)
    cameras = cameras_at([(0.0, 0.0, 0.0)] * 4)
    rgb = torch.stack([picture(seed) for seed in range(4)])
    cache = SceneCache.from_video(rgb, hill().expand(4, -1, -1), cameras)
    seen = warped_frames(cache, cameras[:2], start=2)
    expected = (rgb[2:] * 255).round()
    inside = (..., slice(4, -4), slice(4, -4))
    assert ((seen.video.double() - expected)[inside].abs() <= 1).all()
    with pytest.raises(ValueError, match="expected 2 frames of video from frame 3 on, found 4"):
        warped_frames(cache, cameras[:2], start=3)


def test_how_many_frames_are_rendered_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request()
    together = warped_frames(asked.cache, asked.cameras)
    monkeypatch.setitem(warp.PIXELS_AT_ONCE, "cpu", 1)
    apart = warped_frames(asked.cache, asked.cameras)
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)


def test_clips_are_those_of_their_requests_alone(teacher: WarpTeacher) -> None:
    assert isinstance(teacher, CameraVideoTeacher)
    requests = [request(0), request(1)]
    steps: list[tuple[int, int]] = []
    clips = teacher.generate(requests, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    for asked, clip in zip(requests, clips, strict=True):
        (alone,) = teacher.generate([asked])
        assert torch.equal(alone.z, clip.z)
        assert torch.equal(alone.video, clip.video)
    assert not torch.equal(clips[0].z, clips[1].z)


def test_latents_are_those_of_the_frames(teacher: WarpTeacher) -> None:
    (clip,) = teacher.generate([request()])
    assert clip.z.shape == (16, 2, HEIGHT // 8, WIDTH // 8)
    assert clip.z.dtype == torch.float32
    assert torch.equal(clip.z, encode_videos(clip.video[None], teacher.codec)[0])
    # What decodes from them encodes to them again, but for the rounding to 8 bits.
    decoded = frames_of_latents(teacher.codec, 0.5 * clip.z, "cpu")
    again = encode_videos(decoded[None], teacher.codec)[0]
    torch.testing.assert_close(again, 0.5 * clip.z, rtol=0, atol=0.05)


def test_bad_requests_are_named_before_anything_is_made(teacher: WarpTeacher) -> None:
    good, steps = request(), []
    nan = replace(good.cameras, camera_to_world=good.cameras.camera_to_world * torch.nan)
    video = SceneCache.from_video(
        good.image.expand(9, -1, -1, -1), box_before_wall().float().expand(9, -1, -1), good.cameras
    )
    for changes, message in [
        ({"cache": None}, "trajectory 0: expected a 3D cache, found none"),
        ({"cameras": good.cameras[:8]}, "8k \\+ 1 frames, found 8: cut it to 1"),
        ({"cameras": good.cameras.reshape(3, 3)}, "expected one path of cameras"),
        ({"cameras": nan}, "found NaN or infinity"),
        ({"image": good.image[:, 1:]}, r"expected an image \[3, 40, 56\] as large as the cameras say"),
        ({"image": good.image * 255}, "colours from 0 to 1"),
        ({"cache": video, "start": 1}, "expected 9 frames of video from frame 1 on, found 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            teacher.generate([good, replace(good, **changes)], lambda *done: steps.append(done))
    assert not steps
