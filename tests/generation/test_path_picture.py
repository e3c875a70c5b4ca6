"""The picture of camera paths: its two views, its start, and what it leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lyra_ns.camera_paths import CameraPathConfig, camera_path
from lyra_ns.cameras import CameraPath
from lyra_ns.generation.preview import COLOURS, INK, PANEL, START, draw_paths, write_path_picture

INTRINSICS = torch.tensor([115.2, 115.2, 64.0, 40.0])


def path(kind: str, distance: float = 0.3) -> CameraPath:
    return camera_path(
        CameraPathConfig(kind=kind, distance=distance, look_at="exact"),
        centre_depth=1.0, num_frames=17, intrinsics=INTRINSICS, height=80, width=128,
    )  # fmt: skip


def places(image: Image.Image, colour: tuple[int, int, int], right: bool) -> np.ndarray:
    """Positions (x, y) of the pixels of one colour in one of the views, from its corner."""
    pixels = np.asarray(image)[:PANEL, PANEL * right : PANEL * (1 + right)]
    return np.argwhere((pixels == colour).all(-1))[:, ::-1]


@pytest.mark.parametrize(
    ("kind", "right", "axis", "sign"),
    [("left", False, 0, -1), ("right", False, 0, 1), ("zoom_in", False, 1, -1), ("zoom_out", False, 1, 1),
     ("up", True, 1, -1), ("down", True, 1, 1), ("zoom_in", True, 0, 1)],
)  # fmt: skip
def test_paths_run_to_the_side_that_their_name_says(kind, right, axis, sign):
    image = draw_paths({kind: path(kind)})
    start = places(image, START, right)[:, axis]
    line = places(image, COLOURS[0], right)[:, axis]
    # The line ends far from the start's middle on the named side, and hardly passes it on the other.
    reach = sign * (line - start.mean())
    assert reach.max() > 150
    assert reach.min() > -100


def test_the_centre_is_drawn_where_the_cameras_look():
    image = draw_paths({"left": path("left")}, torch.tensor([0.0, 0.0, 1.0]))
    cross = places(image, INK, False)
    cross = cross[cross[:, 1] > 24]
    start = places(image, START, False)
    assert abs(cross[:, 0].mean() - (start[:, 0].min() + 6)) < 2
    assert cross[:, 1].mean() < start[:, 1].mean() - 300
    far = draw_paths({"left": path("left", 0.01)}, torch.tensor([0.0, 0.0, 1.0]))
    assert not (places(far, INK, False)[:, 1] > 24).any()


def test_every_path_has_its_colour_and_line_in_the_legend(tmp_path):
    paths = {kind: path(kind) for kind in ("left", "up", "clockwise", "none")}
    write_path_picture(tmp_path / "paths.png", paths)
    image = Image.open(tmp_path / "paths.png")
    assert image.width == 2 * PANEL
    legend = np.asarray(image)[PANEL:]
    for colour in COLOURS[: len(paths)]:
        assert (legend == colour).all(-1).sum() > 50
    assert (legend == COLOURS[4]).all(-1).sum() == 0
    assert draw_paths({"one": path("left")}).height < image.height
    assert [file.name for file in tmp_path.iterdir()] == ["paths.png"]


def test_a_camera_that_stands_still_can_be_drawn():
    image = draw_paths({"none": path("none")}, torch.tensor([0.0, 0.0, 1.0]))
    assert len(places(image, START, False)) > 50


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match="at least one camera path"):
        draw_paths({})
    bad = path("left")
    bad.camera_to_world[3, 0, 3] = float("nan")
    with pytest.raises(ValueError, match="finite poses"):
        write_path_picture(tmp_path / "bad.png", {"bad": bad})
    assert not list(tmp_path.iterdir())
