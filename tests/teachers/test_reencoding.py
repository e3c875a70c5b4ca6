"""Frames of other models brought to a request."""

from __future__ import annotations

import pytest
import torch

from lyra_ns.codec.registry import load_codec
from lyra_ns.teachers.reencoding import (
    check_stretch,
    frames_to_make,
    held,
    reencoded,
    size_to_make,
    stretched,
)
from tests.helpers.teacher_requests import NUM_FRAMES, request_for_a_box


@pytest.mark.parametrize(("num", "stride", "made"), [(121, 4, 121), (121, 8, 121), (9, 16, 17), (1, 8, 1)])
def test_frames_to_make(num: int, stride: int, made: int) -> None:
    """4k + 1 holds every 8k + 1; otherwise the next longer clip."""
    assert frames_to_make(num, stride) == made


def test_held() -> None:
    """Cut, or the last repeated."""
    assert held(torch.arange(3), 2).tolist() == [0, 1]
    assert held(torch.arange(3), 5).tolist() == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("size", "smallest_area", "made"),
    [((704, 1280), 480 * 832, (704, 1280)), ((160, 256), 480 * 832, (496, 800)), ((488, 840), 0, (496, 848))],
)
def test_size_to_make(size: tuple[int, int], smallest_area: int, made: tuple[int, int]) -> None:
    """Multiples of 16: as asked for where that is large enough, and enlarged otherwise."""
    assert size_to_make(*size, 16, smallest_area) == made


def test_stretching() -> None:
    """The small decoder's size fits SANA-WM's; a square does not."""
    check_stretch(160, 256, 704, 1280)
    with pytest.raises(ValueError, match=r"704x1280.* found 256x256"):
        check_stretch(256, 256, 704, 1280)


def test_stretched_there_and_back() -> None:
    """A smooth picture survives being enlarged and shrunk; edges of the view stay where they are."""
    rows = torch.linspace(0, 1, 40)[:, None].expand(40, 56)
    images = torch.stack([rows, rows.flip(0), rows * 0 + 0.5])[None]
    back = stretched(stretched(images, 64, 96), 40, 56)
    assert (back - images).abs().max() < 0.01


def test_reencoded_frames() -> None:
    """Extra frames are dropped, colours clamped and rounded, and the notes say what was made."""
    request, codec = request_for_a_box(), load_codec("linear")
    video = torch.rand(NUM_FRAMES + 8, 3, 40, 56) * 1.2 - 0.1
    clip = reencoded(video, request, codec, "cpu", {"teacher": "mine"})
    assert torch.equal(clip.video, (video[:NUM_FRAMES].clamp(0, 1) * 255).round().to(torch.uint8))
    assert clip.z.shape == codec.spec.latent_shape(NUM_FRAMES, 40, 56)
    assert clip.notes == {"teacher": "mine", "made_height": 40, "made_width": 56}


def test_frames_that_make_no_clip() -> None:
    """Too few of them, and such that are no colours."""
    request, codec = request_for_a_box(), load_codec("linear")
    with pytest.raises(ValueError, match="at least 9 frames"):
        reencoded(torch.rand(8, 3, 40, 56), request, codec, "cpu", {})
    with pytest.raises(ValueError, match="no colours"):
        reencoded(torch.full((9, 3, 40, 56), torch.nan), request, codec, "cpu", {})
