"""Sizes of clips by the aspect of their picture: little is cropped, the area is about the usual one."""

from __future__ import annotations

import math

import pytest

from lyra_ns.data.video import VideoSize
from lyra_ns.generation.inputs import AREA_TOLERANCE, LONGEST_ASPECT, ClipSizes, size_of_aspect

AREA = 160 * 256
USUAL = VideoSize(17, 160, 256)


def share_lost(height: int, width: int, size: tuple[int, int]) -> float:
    """Of a picture, by a crop to the aspect of `size`."""
    aspect, wanted = width / height, size[1] / size[0]
    return 1 - min(aspect / wanted, wanted / aspect)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (256 / 160, (160, 256)),
        (1, (208, 208)),
        (3 / 2, (160, 240)),
        (4 / 3, (176, 240)),
        (16 / 9, (144, 256)),
        (5 / 4, (192, 240)),
    ],
)
def test_common_aspects_lose_a_sliver_at_most_lying_and_upright(aspect, size):
    assert size_of_aspect(aspect, AREA) == size
    assert size_of_aspect(1 / aspect, AREA) == size[::-1]
    assert share_lost(1000, round(1000 * aspect), size) < 0.025


def test_no_other_size_of_about_the_area_is_closer_in_aspect():
    for percent in range(-85, 86, 5):
        aspect = math.exp(percent / 100)
        found = size_of_aspect(aspect, AREA)
        assert abs(found[0] * found[1] / AREA - 1) <= AREA_TOLERANCE
        assert share_lost(1000, round(1000 * aspect), found) < 0.04
        others = [
            (rows * 16, columns * 16)
            for rows in range(1, 60)
            for columns in range(1, 60)
            if abs(rows * columns * 256 / AREA - 1) <= AREA_TOLERANCE
        ]
        closest = min(abs(math.log(width / height / aspect)) for height, width in others)
        assert abs(math.log(found[1] / found[0] / aspect)) == pytest.approx(closest, abs=1e-9)


def test_areas_that_no_size_comes_near_get_the_closest():
    assert size_of_aspect(1.5, 100) == (16, 16)
    assert size_of_aspect(1.0, 2.5 * 64 * 64, multiple=64) == (64, 128)
    assert size_of_aspect(3.0, 3 * 64 * 64, multiple=64) == (64, 192)


@pytest.mark.parametrize(("aspect", "area"), [(0.0, AREA), (1.5, 0.0), (math.inf, AREA), (math.nan, AREA)])
def test_no_aspect_or_area_is_told(aspect, area):
    with pytest.raises(ValueError, match="an aspect and an area above 0, found"):
        size_of_aspect(aspect, area)


def test_clips_take_the_aspect_of_their_picture_unless_they_are_cropped():
    whole, cropped = ClipSizes(USUAL, keeps_aspect=True), ClipSizes(USUAL)
    assert whole.of_picture(600, 400) == VideoSize(17, 240, 160)
    assert cropped.of_picture(600, 400) == USUAL
    assert whole.of_picture(1600, 2560) == USUAL


def test_clips_of_very_long_pictures_are_not_longer_than_any_decoder_knows():
    whole = ClipSizes(USUAL, keeps_aspect=True)
    longest = whole.of_picture(1000, round(1000 * LONGEST_ASPECT))
    assert whole.of_picture(1000, 3000) == whole.of_picture(100, 9000) == longest
    upright = whole.of_picture(3000, 1000)
    assert (upright.height, upright.width) == (longest.width, longest.height)
