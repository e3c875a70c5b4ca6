"""Depth in colours and contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lyra_ns.pictures import (
    DEPTH_COLOURS,
    GAP,
    PAPER,
    UNKNOWN_COLOUR,
    colour_depth,
    contact_sheet,
    inverse_depth_limits,
    save_picture,
)


def test_near_is_red_far_is_blue_and_unknown_is_grey() -> None:
    depth = torch.tensor([[1.0, 1.0, 4.0, 4.0, 0.0, torch.inf]])
    colours = colour_depth(depth, limits=(0.25, 1.0))
    assert colours.shape == (1, 6, 3)
    assert tuple(colours[0, 0].tolist()) == DEPTH_COLOURS[-1]
    assert tuple(colours[0, 2].tolist()) == DEPTH_COLOURS[0]
    assert tuple(colours[0, 4].tolist()) == tuple(colours[0, 5].tolist()) == UNKNOWN_COLOUR


def test_colours_are_even_in_inverse_depth() -> None:
    inverse = torch.linspace(0.2, 1.0, len(DEPTH_COLOURS))
    colours = colour_depth((1 / inverse)[None], limits=(0.2, 1.0))[0]
    torch.testing.assert_close(colours, torch.tensor(DEPTH_COLOURS, dtype=torch.uint8), atol=1, rtol=0)


def test_limits_are_common_to_clips_and_ignore_outliers() -> None:
    clip = torch.rand(4, 30, 40) + 1.0
    low, high = inverse_depth_limits(clip)
    with_outliers = clip.clone()
    with_outliers[0, 0, :5] = 1e-4
    with_outliers[0, 1] = 0.0
    assert inverse_depth_limits(with_outliers) == pytest.approx((low, high), rel=0.02)
    low, high = inverse_depth_limits(clip, clip * 3)
    assert low == pytest.approx(1 / 6, rel=0.1)
    assert high == pytest.approx(1.0, rel=0.1)
    assert inverse_depth_limits(torch.zeros(1, 2, 2)) == (0.0, 1.0)


def test_sheet_shows_each_image_in_its_place() -> None:
    views = torch.rand(3, 40, 60, 3, generator=torch.Generator().manual_seed(0))
    depth = 1 + torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(1))
    sheet = np.asarray(
        contact_sheet(
            {"input": views, "depth": depth, "true depth": 2 * depth}, ["one", "two", "three"], "Scene"
        )
    )
    width = 3 * (60 + GAP)
    left, top = sheet.shape[1] - width, sheet.shape[0] - 3 * (40 + GAP)
    for row in range(3):
        image = sheet[top + row * (40 + GAP) :, left:][:40, :60]
        np.testing.assert_array_equal(image, (views[row] * 255).round().numpy().astype(np.uint8))
    limits = inverse_depth_limits(depth, 2 * depth)
    shown = sheet[top : top + 40, left + 60 + GAP :][:, :60]
    np.testing.assert_array_equal(shown, colour_depth(depth[0], limits).numpy())
    assert (sheet[:top, left:] != PAPER).any(), "captions"
    assert (sheet[top:, : left - GAP] != PAPER).any(), "row captions"
    assert (sheet[:, -GAP:] == PAPER).all()


def test_sheets_of_uneven_columns_are_refused() -> None:
    views = torch.zeros(2, 8, 8, 3)
    with pytest.raises(ValueError, match="one number of views and one size"):
        contact_sheet({"input": views, "depth": torch.zeros(3, 8, 8)})
    with pytest.raises(ValueError, match="expected 2 row captions"):
        contact_sheet({"input": views}, ["one"])
    with pytest.raises(ValueError, match="at least one column"):
        contact_sheet({})


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures_are_saved_in_the_format_of_their_name(tmp_path: Path, suffix: str) -> None:
    save_picture(torch.full((16, 16, 3), 200, dtype=torch.uint8), tmp_path / "new" / f"picture{suffix}")
    with Image.open(tmp_path / "new" / f"picture{suffix}") as image:
        assert image.format == {".png": "PNG", ".jpg": "JPEG"}[suffix]
        assert abs(int(np.asarray(image).mean()) - 200) < 2
    with pytest.raises(ValueError, match=r"found 'picture\.webm'"):
        save_picture(torch.zeros(4, 4, 3, dtype=torch.uint8), tmp_path / "picture.webm")
