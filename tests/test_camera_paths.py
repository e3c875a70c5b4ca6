"""GEN3C's camera paths number by number, Lyra's six with their draws, and free paths fitted to a scene."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import pytest
import torch

from lyra_ns.camera_paths import (
    GEN3C_SPIRAL,
    MOTIONS,
    TRAJECTORIES,
    CameraPathConfig,
    PathKind,
    Rotation,
    camera_path,
    fitted_path,
    flipped_path,
    follow,
    lyra_six,
    path_of_poses,
    resampled_path,
    reversed_in_time,
    trajectory_path,
)
from lyra_ns.cameras import CameraPath, invert_rigid, look_at, project

INTRINSICS = torch.tensor([115.2, 110.0, 64.0, 40.0])
SIZE = {"height": 80, "width": 128}
KINDS = get_args(PathKind)
ROTATIONS = get_args(Rotation)
# Centre and view direction of frame 50 of 121, distance 0.25, centre depth 2, computed with the official
# formulas (docs/reference/gen3c.md, "Camera motions").
GOLDEN = {
    ("center_facing", "left"): ((-0.205517829, 0, 0.021231181), (0.102758914, 0, 0.994706291)),
    ("center_facing", "down"): ((0, 0.205517829, 0.021231181), (0, -0.102758914, 0.994706291)),
    ("center_facing", "zoom_in"): ((0, 0, 0.206611570), (0, 0, 1)),
    ("center_facing", "clockwise"): (
        (-0.037475842, -0.043291129, 0.001639952), (0.018742314, 0.021641760, 0.999590096)),
    ("center_facing", "counterclockwise"): (
        (0.037475842, -0.043291129, 0.001639952), (-0.018742314, 0.021641760, 0.999590096)),
    ("no_rotation", "left"): ((-0.206611570, 0, 0), (0, 0, 1)),
    ("no_rotation", "clockwise"): ((-0.0375, -0.043301270, 0), (0, 0, 1)),
    ("trajectory_aligned", "left"): ((-0.205517829, 0, -0.021231181), (-0.102758914, 0, 0.994706291)),
    ("trajectory_aligned", "down"): ((0, 0.205517829, -0.021231181), (0, 0.102758914, 0.994706291)),
    ("trajectory_aligned", "clockwise"): (
        (-0.037475842, -0.043291129, -0.001639952), (-0.018742314, -0.021641760, 0.999590096)),
}  # fmt: skip


def path(num_frames: int = 17, centre_depth: float = 2.0, **config) -> CameraPath:
    return camera_path(
        CameraPathConfig(**config),
        centre_depth=centre_depth, num_frames=num_frames, intrinsics=INTRINSICS, **SIZE,
    )  # fmt: skip


def handheld(num_frames: int) -> CameraPath:
    """Cameras of a video whose own camera moves, far from the origin."""
    along = torch.linspace(0, 1, num_frames)[:, None]
    centres = torch.tensor([3.0, -1.0, 2.0]) + along * torch.tensor([0.5, 0.1, -0.3])
    targets = torch.tensor([0.0, 0.0, 9.0]) + along.square() * torch.tensor([1.0, 0.5, 0.0])
    intrinsics = INTRINSICS.expand(num_frames, 4) * (1 + 0.1 * along)
    return CameraPath(look_at(centres, targets), intrinsics, along[:, 0], **SIZE)


def close(found, expected, tolerance: float = 1e-6):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("rotation", "kind"), GOLDEN)
def test_poses_are_gen3cs_numbers(rotation, kind):
    pose = path(121, kind=kind, rotation=rotation, distance=0.25).camera_to_world[50]
    centre, forward = GOLDEN[rotation, kind]
    close(pose[:3, 3], centre)
    close(pose[:3, 2], forward)


def test_ends_are_the_numbers_of_the_specification():
    left = path(121, 1.0, kind="left", distance=0.25).camera_to_world[-1]
    close(left[:3, 3], (-0.24064773, 0, 0.05966473))
    close(left[:3, 2], (0.24064773, 0, 0.97061252))
    spiral = path(121, 1.0, kind="clockwise", distance=0.5).camera_to_world[:, :3, 3]
    close(spiral[:, 0].min(), -0.14834045)
    close(spiral[:, :2].amax(0), (0, 0.04993797))


@pytest.mark.parametrize("look", ["gen3c", "exact"])
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_starts_at_the_identity_and_is_rigid(kind, rotation, look):
    cameras = path(9, kind=kind, rotation=rotation, look_at=look)
    assert torch.equal(cameras.camera_to_world[0], torch.eye(4))
    turns = cameras.camera_to_world[:, :3, :3]
    close(turns @ turns.mT, torch.eye(3).expand(9, 3, 3))
    assert cameras.camera_to_world[1:, :3, 3].abs().amax() > 0.05 or kind == "none"
    close(cameras.intrinsics, INTRINSICS.expand(9, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_centre_stays_in_the_middle_of_exact_paths_that_face_it(kind):
    cameras = path(kind=kind, look_at="exact")
    pixels, _ = project(torch.tensor([0.0, 0.0, 2.0]).expand(17, 1, 3), cameras)
    close(pixels[:, 0], INTRINSICS[2:].expand(17, 2), 1e-4)


def test_gen3cs_left_path_looks_at_a_point_behind_the_centre():
    cameras = path(kind="left", distance=0.4)
    offset = 0.4 * 2.0 * torch.arange(17) / 17
    points = torch.stack([0 * offset, 0 * offset, (offset.square() + 4).sqrt()], -1)
    pixels, _ = project(points[:, None], cameras)
    close(pixels[:, 0], INTRINSICS[2:].expand(17, 2), 1e-4)


def test_opposite_kinds_mirror_each_other():
    pairs = [("left", "right"), ("up", "down"), ("zoom_in", "zoom_out"), ("clockwise", "counterclockwise")]
    for (one, other), axis in zip(pairs, (0, 1, 2, 0), strict=True):
        first, second = (path(kind=kind, look_at="exact").camera_to_world[:, :3, 3] for kind in (one, other))
        mirrored = first.clone()
        mirrored[:, axis] *= -1
        close(second, mirrored)
        assert not torch.equal(first, second)
    assert torch.equal(path(kind="none").camera_to_world, torch.eye(4).expand(17, 4, 4))
    assert set(KINDS) == set(MOTIONS)


def test_gen3cs_own_spiral_is_one_wide_turn():
    centres = path(kind="clockwise", distance=0.2, spiral=GEN3C_SPIRAL, look_at="exact").camera_to_world[
        :, :3, 3
    ]
    close(centres[8], (-0.8, 0, 0))
    close(centres[4], (-0.4, 0.4, 0))


def test_a_path_is_the_one_of_the_sample_data():
    settings = {"centre_depth": 2.0, "num_frames": 9, "intrinsics": INTRINSICS, **SIZE}
    for number, trajectory in enumerate(TRAJECTORIES):
        config = CameraPathConfig(kind=trajectory.name, distance=0.25)
        ours = camera_path(config, **settings)
        assert torch.equal(
            ours.camera_to_world, trajectory_path(number, 0.25, parity=True, **settings).camera_to_world
        )


def test_draws_depend_on_seed_scene_and_path_alone():
    random.seed(3)
    torch.manual_seed(3)
    first = lyra_six(1, "kitchen")
    random.seed(4)
    torch.manual_seed(4)
    assert lyra_six(1, "kitchen") == first
    assert [config.kind for config in first] == [trajectory.name for trajectory in TRAJECTORIES]
    others = [lyra_six(2, "kitchen"), lyra_six(1, "garden")]
    for number, trajectory in enumerate(TRAJECTORIES):
        low, high = trajectory.distance_range
        assert low <= first[number].distance <= high
        assert len({first[number].distance, *(other[number].distance for other in others)}) == 3
    shares = [
        (config.distance - t.distance_range[0]) / (t.distance_range[1] - t.distance_range[0])
        for config, t in zip(first, TRAJECTORIES, strict=True)
    ]
    assert len({round(share, 6) for share in shares}) == 6
    doubled = lyra_six(1, "kitchen", distance_factor=2.0)
    assert doubled[3].distance == pytest.approx(2 * first[3].distance)


def test_legacy_seeding_gives_every_scene_the_distances_of_the_official_script():
    for scene in ("kitchen", "garden"):
        found = [config.distance for config in lyra_six(1, scene, seeding="legacy")][1:]
        expected = [0.213436424, 0.113436424, 0.313436424, 0.313436424, 0.426872849]
        assert found == pytest.approx(expected, abs=1e-8)
    usual = lyra_six(1, "kitchen")
    assert lyra_six(1, "kitchen", seeding="legacy")[0] == usual[0]


def test_a_path_follows_the_cameras_of_a_video():
    source, moves = handheld(9), path(9, kind="up")
    cameras = follow(moves, source)
    close(cameras.world_to_camera, moves.world_to_camera @ source.world_to_camera, 1e-5)
    assert torch.equal(cameras.intrinsics, source.intrinsics)
    still = follow(moves, source[:1])
    close(still.camera_to_world[0], source.camera_to_world[0])
    assert torch.equal(still.intrinsics, source.intrinsics[:1].expand(9, 4))
    with pytest.raises(ValueError, match="9\\) or one, found 5"):
        follow(moves, source[:5])


def test_flipped_paths_end_at_the_source():
    source, moves = handheld(9), path(9, kind="right")
    flipped = flipped_path(moves, source)
    close(flipped.camera_to_world[-1], source.camera_to_world[-1], 1e-5)
    apart = invert_rigid(source.camera_to_world) @ flipped.camera_to_world
    close(apart, moves.camera_to_world.flip(0), 1e-5)
    assert torch.equal(flipped.intrinsics, source.intrinsics)
    assert torch.equal(flipped.times, moves.times)
    again = reversed_in_time(reversed_in_time(flipped))
    assert torch.equal(again.camera_to_world, flipped.camera_to_world)


def test_resampling_keeps_ends_and_turns_evenly():
    angle = torch.linspace(0, 1.2, 4)
    turns = torch.eye(3).repeat(4, 1, 1)
    turns[:, 0, 0], turns[:, 0, 2], turns[:, 2, 0], turns[:, 2, 2] = (
        angle.cos(), angle.sin(), -angle.sin(), angle.cos(),
    )  # fmt: skip
    poses = torch.eye(4).repeat(4, 1, 1)
    poses[:, :3, :3] = turns
    poses[:, 0, 3] = torch.arange(4.0)
    given = path_of_poses(poses, INTRINSICS, **SIZE)
    dense = resampled_path(given, 25)
    close(dense.camera_to_world[::8], poses)
    close(dense.camera_to_world[:, 0, 3], torch.linspace(0, 3, 25))
    found = torch.atan2(dense.camera_to_world[:, 0, 2], dense.camera_to_world[:, 0, 0])
    close(found, torch.linspace(0, 1.2, 25), 1e-5)
    close(dense.times, torch.linspace(0, 1, 25))
    alone = resampled_path(given[:1], 9).camera_to_world
    close(alone, poses[:1].expand(9, 4, 4))
    poses[1, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match="half a turn"):
        resampled_path(replace(given, camera_to_world=poses), 9)


def test_free_paths_are_fitted_to_the_scene():
    given = handheld(9)
    fitted = fitted_path(given, num_frames=9, intrinsics=INTRINSICS, height=80, width=128, pose_scale=2.5)
    close(fitted.camera_to_world[0], torch.eye(4))
    steps = given.camera_to_world[:, :3, 3] - given.camera_to_world[0, :3, 3]
    close(fitted.camera_to_world[:, :3, 3].norm(dim=-1), 2.5 * steps.norm(dim=-1), 1e-5)
    close(fitted.intrinsics[0], INTRINSICS)
    close(fitted.intrinsics[-1], (115.2 * 1.1, 110.0 * 1.1, 64.0, 40.0), 1e-4)
    own = fitted_path(given, num_frames=9, intrinsics=None, height=40, width=64)
    close(own.intrinsics, given.intrinsics / 2, 1e-4)


def test_lengths_that_do_not_fit_are_refused_cut_or_resampled():
    given, settings = handheld(25), {"num_frames": 9, "intrinsics": None, **SIZE}
    with pytest.raises(ValueError, match="of 9 frames, found 25"):
        fitted_path(given, **settings)
    first = fitted_path(given, length="first", **settings)
    close(first.camera_to_world, fitted_path(given[:9], **settings).camera_to_world)
    assert first.times[-1] == 1
    thinned = fitted_path(given, length="resample", **settings)
    close(thinned.camera_to_world, fitted_path(given[::3], **settings).camera_to_world, 1e-5)
    with pytest.raises(ValueError, match="of 17 frames, found 9"):
        fitted_path(given[:9], length="first", **{**settings, "num_frames": 17})


def unchecked(name: str, value: str) -> CameraPath:
    """A path with a word in its configuration that its type forbids, as a plain python caller may give it."""
    config = CameraPathConfig()
    object.__setattr__(config, name, value)
    return camera_path(config, centre_depth=1.0, num_frames=9, intrinsics=INTRINSICS, **SIZE)


def test_bad_requests_are_explained():
    with pytest.raises(ValueError, match=r"8 k \+ 1 frames .* found 24: take 25"):
        path(24)
    with pytest.raises(ValueError, match=r"clockwise.*found 'sideways'"):
        unchecked("kind", "sideways")
    with pytest.raises(ValueError, match=r"no_rotation.*found 'dizzy'"):
        unchecked("rotation", "dizzy")
    with pytest.raises(ValueError, match=r"gen3c, exact.*found 'nearly'"):
        unchecked("look_at", "nearly")
    with pytest.raises(ValueError, match="in front"):
        path(kind="zoom_in", distance=1.2)
    with pytest.raises(ValueError, match="distance of 0 or more, found nan"):
        path(distance=float("nan"))
    with pytest.raises(ValueError, match="centre depth above 0, found 0"):
        path(centre_depth=0.0)
    with pytest.raises(ValueError, match="pose scale above 0, found -1"):
        fitted_path(handheld(9), num_frames=9, intrinsics=None, pose_scale=-1.0, **SIZE)
