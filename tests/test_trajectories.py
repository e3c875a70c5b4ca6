"""The six official paths number by number, and the held-out ones."""

from __future__ import annotations

import math

import pytest
import torch

from lyra_ns.camera_paths import (
    NUM_NOVEL_PATHS,
    TRAJECTORIES,
    camera_offsets,
    draw_distance,
    novel_path,
    trajectory_named,
    trajectory_path,
)
from lyra_ns.cameras import project

GEOMETRY = {
    "intrinsics": torch.tensor([115.2, 115.2, 64.0, 40.0]), "height": 80, "width": 128,
}  # fmt: skip
PATHS = range(len(TRAJECTORIES))


def path(
    trajectory: int, distance: float = 0.25, depth: float = 1.0, frames: int = 121, parity: bool = False
):
    return trajectory_path(
        trajectory, distance, centre_depth=depth, num_frames=frames, parity=parity, **GEOMETRY
    )


def novel(index: int, seed: int, depth: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    return novel_path(index, generator, centre_depth=depth, num_frames=17, **GEOMETRY)


def test_ids_are_the_official_folder_numbers():
    names = ["left", "right", "up", "zoom_out", "zoom_in", "clockwise"]
    assert [trajectory_named(name) for name in names] == list(PATHS)
    with pytest.raises(ValueError, match="down"):
        trajectory_named("down")


@pytest.mark.parametrize(
    ("trajectory", "end"),
    [(0, (-1, 0, 0)), (1, (1, 0, 0)), (2, (0, -1, 0)), (3, (0, 0, -1)), (4, (0, 0, 1))],
)
def test_straight_moves_reach_all_but_one_frame_of_their_distance(trajectory, end):
    offsets = camera_offsets(trajectory, 0.3, 17, 4.0)
    expected = torch.tensor(end, dtype=torch.float64) * 0.3 * 4.0 * 16 / 17
    torch.testing.assert_close(offsets[-1], expected)
    torch.testing.assert_close(offsets.diff(dim=0), (expected / 16).expand(16, 3))


def test_spiral_turns_twice_and_closes():
    offsets = camera_offsets(5, 0.5, 121, 2.0)
    torch.testing.assert_close(offsets[-1], torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert offsets[:, 0].min().item() == pytest.approx(-2 * 0.15 * 0.5 * 2)
    assert offsets[:, 1].max().item() == pytest.approx(0.10 * 0.5 * 2)
    assert (offsets[1:-1, 1].sign().diff() != 0).sum() >= 3
    assert offsets[1, 1] > 0


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("trajectory", PATHS)
def test_poses_are_rigid_start_at_the_origin_and_face_the_scene(trajectory, parity):
    cameras = path(trajectory, 0.3, depth=4.0, frames=17, parity=parity)
    rotation = cameras.camera_to_world[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(17, 3, 3), atol=1e-6, rtol=0)
    assert torch.all(torch.linalg.det(rotation) > 0)
    torch.testing.assert_close(cameras.camera_to_world[0], torch.eye(4))
    assert cameras.times[0] == 0
    assert cameras.times[-1] == 1


@pytest.mark.parametrize("trajectory", PATHS)
def test_exact_paths_keep_the_centre_in_the_middle_of_the_image(trajectory):
    cameras = path(trajectory, 0.3, depth=4.0, frames=17)
    pixels, depth = project(torch.tensor([[0.0, 0.0, 4.0]]).expand(17, 1, 3), cameras)
    torch.testing.assert_close(pixels[:, 0], torch.tensor([64.0, 40.0]).expand(17, 2), atol=1e-3, rtol=0)
    offsets = camera_offsets(trajectory, 0.3, 17, 4.0).float()
    torch.testing.assert_close(cameras.camera_to_world[:, :3, 3], offsets)
    torch.testing.assert_close(depth[:, 0], (offsets - torch.tensor([0.0, 0.0, 4.0])).norm(dim=-1))


def test_parity_reproduces_the_official_translation_and_its_bent_path():
    cameras = path(0, 0.25, parity=True)
    torch.testing.assert_close(cameras.world_to_camera[:, :3, 3], -camera_offsets(0, 0.25, 121).float())
    end = cameras.camera_to_world[-1]
    torch.testing.assert_close(end[:3, 3], torch.tensor([-0.2406, 0.0, 0.0597]), atol=1e-4, rtol=0)
    torch.testing.assert_close(end[:3, 2], torch.tensor([0.2406, 0.0, 0.9706]), atol=1e-4, rtol=0)
    spiral = path(5, 0.5, parity=True).camera_to_world[:, :3, 3]
    assert spiral[:, 0].min().item() == pytest.approx(-0.148, abs=5e-4)
    assert spiral[:, 1].max().item() == pytest.approx(0.0499, abs=1e-4)


def test_distances_fill_the_official_ranges():
    generator = torch.Generator().manual_seed(0)
    for trajectory, kind in enumerate(TRAJECTORIES):
        low, high = kind.distance_range
        drawn = [draw_distance(trajectory, generator) for _ in range(200)]
        assert low <= min(drawn) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(drawn) <= high


@pytest.mark.parametrize("index", range(NUM_NOVEL_PATHS))
def test_novel_paths_stay_inside_the_hull_of_the_six_and_off_their_lines(index):
    ends = torch.tensor([0.2, 0.1, 0.3]) * 16 / 17
    for seed in range(8):
        centres = novel(index, seed).camera_to_world[:, :3, 3]
        assert torch.all(centres[:, 1] <= 0)
        assert torch.all((centres / ends).abs().sum(-1) <= 1)
        # Off every axis: at least two coordinates differ from zero in every frame but a few.
        apart = (centres.abs() > 0.004).sum(-1) >= 2
        assert apart.float().mean() > 0.9
        assert centres.diff(dim=0).norm(dim=-1).sum() > 0.1


def test_novel_paths_follow_from_their_generator():
    first, again, other = novel(0, 3), novel(0, 3), novel(0, 4)
    assert torch.equal(first.camera_to_world, again.camera_to_world)
    assert not torch.equal(first.camera_to_world, other.camera_to_world)
    scaled = novel(0, 3, depth=4.0).camera_to_world[:, :3, 3]
    torch.testing.assert_close(scaled, 4 * first.camera_to_world[:, :3, 3])


def test_unknown_paths_are_named():
    with pytest.raises(ValueError, match=r"0\.\.5, found 6"):
        path(6)
    with pytest.raises(ValueError, match="found 2"):
        novel(2, 0)
    assert math.isclose(camera_offsets(4, 0.4, 1)[0].norm().item(), 0.0)
