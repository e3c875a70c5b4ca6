"""Paths are as long as near things allow, turn about the subject, and fly through nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lyra_ns.camera_paths import CameraPathConfig, camera_path
from lyra_ns.cameras import CameraPath, project
from lyra_ns.data.video import VideoSize
from lyra_ns.depth.base import DepthPrediction, intrinsics_of_focal
from lyra_ns.generation.inputs import ClipSizes, image_input
from lyra_ns.generation.plan import CLEARANCE, SceneDepth, ScenePlan, clear_distance, near_depth, plan_scene
from lyra_ns.generation.settings import GenerateSettings

HEIGHT, WIDTH, FOCAL = 64, 96, 90.0
SKY, SUBJECT = 10.0, 2.0


def sky_and_subject() -> torch.Tensor:
    """A thin pillar in the middle before the sky, on near ground: most of the picture is far."""
    depth = torch.full((HEIGHT, WIDTH), SKY)
    depth[12:, 44:52] = SUBJECT
    depth[56:] = 1.2
    return depth


def path_of(kind: str, centre_depth: float, num_frames: int = 17):
    """Makes the path of a distance."""

    def path(distance: float) -> CameraPath:
        return camera_path(
            CameraPathConfig(kind=kind, distance=distance, look_at="exact"),
            centre_depth=centre_depth,
            num_frames=num_frames,
            intrinsics=intrinsics_of_focal(FOCAL, HEIGHT, WIDTH),
            height=HEIGHT,
            width=WIDTH,
        )

    return path


def growth(path: CameraPath, depth: torch.Tensor) -> float:
    """How many times as large as in the picture something gets that stays in view; infinite if passed."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    x, y = (columns - WIDTH / 2) / FOCAL * depth, (rows - HEIGHT / 2) / FOCAL * depth
    points = torch.stack([x, y, depth], -1).reshape(1, -1, 3).expand(path.shape[0], -1, -1)
    pixels, moved = project(points, path)
    inside = ((pixels >= 0) & (pixels < torch.tensor([WIDTH, HEIGHT]))).all(-1) & (moved > 0)
    return float((depth.flatten() / moved)[inside].max())


def test_near_is_a_thin_subject_in_the_middle_and_not_the_sky():
    depth = sky_and_subject()
    assert float(depth.median()) == SKY
    assert near_depth(depth) == SUBJECT
    # A speck does not count, nor what is near at the border, nor what is not known.
    depth[30:33, 60:63] = 0.1
    depth[:, :10] = 0.5
    depth[20:40, 30:40] = 0.0
    assert near_depth(depth) == SUBJECT
    only_border = torch.zeros(HEIGHT, WIDTH)
    only_border[:8] = 3.0
    assert near_depth(only_border) == 3.0
    with pytest.raises(ValueError, match="depth of at least one pixel, found none"):
        near_depth(torch.zeros(HEIGHT, WIDTH))


def test_a_path_through_the_subject_is_shortened_until_it_keeps_clear():
    """As official lengths would have it: 0.4 of the sky's depth is twice as far as the pillar."""
    depth, make = sky_and_subject(), path_of("zoom_in", SKY)
    distance = clear_distance(make, 0.4, depth[None])
    assert 0.3 * SUBJECT < distance * SKY < (1 - CLEARANCE) * SUBJECT * 17 / 16
    assert growth(make(distance), depth) <= 1 / CLEARANCE
    # The next longer one would not do.
    assert growth(make(distance + 0.02), depth) > 1 / CLEARANCE


@pytest.mark.parametrize("kind", ["left", "right", "up", "zoom_out", "clockwise", "zoom_in", "none"])
def test_paths_that_are_clear_keep_their_length(kind):
    assert clear_distance(path_of(kind, SUBJECT), 0.4, sky_and_subject()[None]) == 0.4
    assert clear_distance(path_of(kind, SKY), 0.4, torch.full((1, HEIGHT, WIDTH), SKY)) == 0.4


def test_a_long_path_does_not_jump_over_what_is_in_its_way():
    depth, make = sky_and_subject(), path_of("zoom_in", SKY)
    distance = clear_distance(make, 0.95, depth[None])
    assert distance * SKY < SUBJECT


def test_nothing_is_in_the_way_where_depth_is_unknown_and_sizes_may_differ():
    make = path_of("zoom_in", SKY)
    assert clear_distance(make, 0.4, torch.zeros(1, HEIGHT, WIDTH)) == 0.4
    fine = sky_and_subject().repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert clear_distance(make, 0.4, fine[None]) == pytest.approx(
        clear_distance(make, 0.4, sky_and_subject()[None]), abs=0.021
    )


def test_every_frame_of_a_video_has_its_own_depth():
    """Something that steps into the way late in the video shortens the path, too."""
    depth = torch.full((17, HEIGHT, WIDTH), SKY)
    make = path_of("zoom_in", SKY)
    assert clear_distance(make, 0.4, depth) == 0.4
    depth[16, 20:40, 40:60] = SUBJECT
    assert clear_distance(make, 0.4, depth) * SKY * 16 / 17 <= (1 - CLEARANCE) * SUBJECT


def planned(depth: torch.Tensor, follows_near: bool, **changes) -> ScenePlan:
    size = VideoSize(9, HEIGHT, WIDTH)
    settings = GenerateSettings(input=Path("a.png"), output=Path("b"), **changes)
    picture = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    frames = image_input("pillar", "image", picture, settings, ClipSizes(size))
    lens = intrinsics_of_focal(FOCAL, HEIGHT, WIDTH)
    found = SceneDepth(depth[None], DepthPrediction(depth, lens, False, False, "test"), lens, "", "")
    return plan_scene(frames, found, settings, size, "exact", follows_near=follows_near)


@pytest.mark.slow
def test_a_scene_turns_about_its_subject_or_as_the_official_data():
    depth = sky_and_subject()
    near, official = planned(depth, True), planned(depth, False)
    # The depth is brought to a median of 1, which is the sky's.
    assert near.near_depth == official.near_depth == pytest.approx(SUBJECT / SKY)
    assert near.scale.centre_depth == near.near_depth
    assert official.scale.centre_depth == 1.0
    assert float(near.centre[2]) == pytest.approx(SUBJECT / SKY)
    for ours, theirs in zip(near.paths, official.paths, strict=True):
        assert ours.drawn_distance == theirs.drawn_distance == ours.distance
        assert not ours.shortening
        length, official_length = (
            float(path.cameras.camera_to_world[..., :3, 3].norm(dim=-1).max()) for path in (ours, theirs)
        )
        if ours.name != "zoom_in":
            assert length == pytest.approx(official_length * SUBJECT / SKY, rel=1e-4)
    (zoom,) = [path for path in official.paths if path.name == "zoom_in"]
    assert zoom.distance < 0.5 * zoom.drawn_distance
    assert "path zoom_in: " in zoom.shortening
    assert "fly through what is near" in zoom.shortening


@pytest.mark.slow
def test_the_subject_stays_in_the_middle_of_its_paths():
    """It is what they turn about: seen from anywhere along them it is where it was."""
    middle = torch.tensor([[[0.0, 0.0, SUBJECT / SKY]]])
    for path in planned(sky_and_subject(), True).paths:
        pixels, _ = project(middle.expand(9, -1, -1), path.cameras)
        assert float((pixels - torch.tensor([WIDTH / 2, HEIGHT / 2])).abs().max()) < 0.01
