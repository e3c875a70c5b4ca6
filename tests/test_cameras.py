"""Cameras: projection, rays, borders with nerfstudio, intrinsics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lyra_ns.cameras import (
    CameraPath,
    crop_and_resize_intrinsics,
    invert_rigid,
    look_at,
    nerfstudio_from_opencv,
    opencv_from_nerfstudio,
    plucker_map,
    project,
    ray_grid,
    relative_to,
    stack_cameras,
)

seeds = st.integers(0, 2**31)
few = settings(max_examples=20, deadline=None, derandomize=True)


def random_poses(seed: int, *shape: int) -> Tensor:
    """Camera-to-world matrices of any direction, float64."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64)).Q
    rotation = rotation * torch.linalg.det(rotation)[..., None, None]
    translation = torch.randn(*shape, 3, 1, generator=generator, dtype=torch.float64)
    bottom = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64).expand(*shape, 1, 4)
    return torch.cat([torch.cat([rotation, translation], -1), bottom], -2)


def random_cameras(seed: int, *shape: int, height: int = 48, width: int = 64) -> CameraPath:
    """Cameras with different focal lengths and principal points."""
    generator = torch.Generator().manual_seed(seed + 1)
    draws = torch.rand(*shape, 4, generator=generator, dtype=torch.float64)
    intrinsics = torch.tensor([50.0, 55.0, 30.0, 20.0]) + 10 * draws
    times = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return CameraPath(random_poses(seed, *shape), intrinsics, times, height, width)


def worked_example() -> CameraPath:
    """The camera of docs/reference/decoder.md, "Rays"."""
    cos, sin = math.cos(0.1), math.sin(0.1)
    pose = torch.tensor(
        [[cos, 0, sin, 0.213], [0, 1, 0, 0.017], [-sin, 0, cos, -0.05], [0, 0, 0, 1]], dtype=torch.float32
    )
    intrinsics = torch.tensor([[1000.0, 1000.0, 640.0, 352.0]])
    return CameraPath(pose[None], intrinsics, torch.zeros(1), 704, 1280)


def test_worked_example() -> None:
    """Plücker map at full size and ray at one eighth, as the official code gives them."""
    full = plucker_map(ray_grid(worked_example(), 704, 1280))[0, 0, 0]
    expected = [0.00034364, -0.16051655, -0.05311171, -0.43335608, -0.28393787, 0.85532558]
    assert full.tolist() == pytest.approx(expected, abs=2e-7)
    eighth = ray_grid(worked_example(), 88, 160).directions[0, 0, 0]
    assert eighth.tolist() == pytest.approx([-0.43151721, -0.28174675, 0.85697830], abs=2e-7)


def test_projection_of_known_points() -> None:
    """+x is right, +y is down, +z is ahead; the principal point is in the middle."""
    camera = CameraPath(torch.eye(4), torch.tensor([100.0, 200.0, 32.0, 24.0]), torch.tensor(0.0), 48, 64)
    points = torch.tensor([[0.0, 0.0, 2.0], [0.5, 0.0, 2.0], [0.0, 0.1, 4.0]])
    pixels, depth = project(points, camera)
    torch.testing.assert_close(pixels, torch.tensor([[32.0, 24.0], [57.0, 24.0], [32.0, 29.0]]))
    torch.testing.assert_close(depth, torch.tensor([2.0, 2.0, 4.0]))


@few
@given(seed=seeds, distance=st.floats(0.1, 50.0))
def test_points_on_rays_project_to_cell_centres(seed: int, distance: float) -> None:
    """Rays and projection are inverse to each other, for any pose and intrinsics."""
    cameras = random_cameras(seed, 2)
    rays = ray_grid(cameras, 6, 8)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(2, 6, 8, dtype=torch.float64))
    pixels, depth = project((rays.origins + distance * rays.directions).flatten(1, 2), cameras)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    expected = (torch.stack([columns, rows], -1).double().flatten(0, 1) + 0.5) * 8
    torch.testing.assert_close(pixels, expected.expand(2, -1, 2), rtol=0, atol=1e-7)
    assert (depth > 0).all()


@few
@given(seed=seeds)
def test_cell_size_is_the_width_of_a_cell(seed: int) -> None:
    """Neighbouring rays at one depth are a cell apart."""
    cameras = random_cameras(seed, 1)
    rays = ray_grid(cameras, 6, 8)
    in_depth = 3.0 / (rays.directions @ cameras.camera_to_world[:, None, :3, 2:3])[..., 0]
    points = rays.origins + in_depth[..., None] * rays.directions
    apart = (points[:, :, 1:] - points[:, :, :-1]).norm(dim=-1)
    torch.testing.assert_close(apart, (in_depth * rays.cell_size)[:, :, 1:])


def test_flattened_cells_run_view_frame_row_column() -> None:
    """The order of the tokens."""
    cameras = random_cameras(0, 2, 3, 5)
    rays = ray_grid(cameras, 2, 4)
    flat = rays.flatten_cells()
    assert flat.directions.shape == (2, 1, 3 * 5 * 2 * 4, 3)
    assert torch.equal(flat.directions[1, 0, ((2 * 5 + 3) * 2 + 1) * 4 + 2], rays.directions[1, 2, 3, 1, 2])
    assert torch.equal(flat.cell_size[1, 0, ((2 * 5 + 3) * 2 + 1) * 4 + 2], rays.cell_size[1, 2, 3, 1, 2])


@few
@given(seed=seeds)
def test_nerfstudio_round_trip(seed: int) -> None:
    """There and back is nothing, for [4, 4] and for nerfstudio's own [3, 4]."""
    poses = random_poses(seed, 3)
    theirs = nerfstudio_from_opencv(poses)
    torch.testing.assert_close(opencv_from_nerfstudio(theirs), poses)
    torch.testing.assert_close(opencv_from_nerfstudio(theirs[..., :3, :]), poses)


def test_nerfstudio_world_is_z_up() -> None:
    """A level camera that looks ahead: theirs looks along -z of its own axes, and up is +z of the world."""
    theirs = nerfstudio_from_opencv(torch.eye(4))
    right, up, back = theirs[:3, :3].T
    torch.testing.assert_close(up, torch.tensor([0.0, 0.0, 1.0]))
    torch.testing.assert_close(right, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(-back, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.linalg.det(theirs[:3, :3]).item() == pytest.approx(1.0)


@few
@given(seed=seeds)
def test_nerfstudio_rays_are_our_rays(seed: int) -> None:
    """Their camera model on the converted pose sees the same pixels' directions in the converted world."""
    cameras = random_cameras(seed, 1)
    ours = ray_grid(cameras, 6, 8)
    theirs = nerfstudio_from_opencv(cameras.camera_to_world)
    world = theirs @ invert_rigid(
        cameras.camera_to_world @ torch.diag(torch.tensor([1.0, -1, -1, 1]).double())
    )
    fx, fy, cx, cy = (cameras.intrinsics[0] / 8).tolist()
    column, row = 5, 2
    in_their_camera = torch.tensor([(column + 0.5 - cx) / fx, -(row + 0.5 - cy) / fy, -1.0]).double()
    expected = torch.nn.functional.normalize(theirs[0, :3, :3] @ in_their_camera, dim=0)
    torch.testing.assert_close(
        world[0, :3, :3] @ ours.directions[0, row, column], expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("to_size", "expected"),
    [
        ((704, 1280), [1000.0, 990.0, 650.0, 340.0]),
        ((352, 640), [500.0, 495.0, 325.0, 170.0]),
        ((176, 320), [250.0, 247.5, 162.5, 85.0]),
    ],
)
def test_official_sizes_need_no_crop(to_size: tuple[int, int], expected: list[float]) -> None:
    """704 x 1280 stays itself, the early stages are halves and quarters.

    Source: docs/reference/decoder.md, "Camera conditioning".
    """
    intrinsics = torch.tensor([1000.0, 990.0, 650.0, 340.0])
    assert crop_and_resize_intrinsics(intrinsics, (704, 1280), to_size).tolist() == pytest.approx(expected)


@few
@given(
    from_size=st.tuples(st.integers(40, 400), st.integers(40, 400)),
    to_size=st.tuples(st.integers(16, 200), st.integers(16, 200)),
)
def test_crop_keeps_the_middle(from_size: tuple[int, int], to_size: tuple[int, int]) -> None:
    """A centre crop leaves a centred principal point in the centre, and pixels square up to rounding."""
    (from_height, from_width), (height, width) = from_size, to_size
    intrinsics = torch.tensor([100.0, 100.0, from_width / 2, from_height / 2], dtype=torch.float64)
    fx, fy, cx, cy = crop_and_resize_intrinsics(intrinsics, from_size, to_size).tolist()
    assert (cx, cy) == pytest.approx((width / 2, height / 2))
    assert fx == pytest.approx(fy, rel=0.1)


@few
@given(seed=seeds)
def test_relative_poses(seed: int) -> None:
    """The reference camera becomes the identity, and what cameras see does not change."""
    cameras = random_cameras(seed, 2, 4)
    reference = cameras.camera_to_world[0, 0]
    relative = relative_to(cameras, reference)
    torch.testing.assert_close(relative.camera_to_world[0, 0], torch.eye(4, dtype=torch.float64))
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = points @ invert_rigid(reference)[:3, :3].T + invert_rigid(reference)[:3, 3]
    before, after = project(points, cameras[1, 2]), project(moved, relative[1, 2])
    torch.testing.assert_close(after[1], before[1])
    torch.testing.assert_close(after[0], before[0], rtol=1e-6, atol=1e-6)


@few
@given(seed=seeds)
def test_inverse_poses(seed: int) -> None:
    """A pose times its inverse is the identity."""
    poses = random_poses(seed, 2, 3)
    torch.testing.assert_close(
        poses @ invert_rigid(poses), torch.eye(4, dtype=torch.float64).expand(2, 3, 4, 4)
    )


@few
@given(seed=seeds)
def test_look_at(seed: int) -> None:
    """The target lies in the middle of the picture, ahead, and the picture is upright."""
    generator = torch.Generator().manual_seed(seed)
    centre, target = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    pose = look_at(centre, target)
    camera = CameraPath(
        pose, torch.tensor([50.0, 50.0, 32.0, 24.0]).double(), torch.tensor(0.0).double(), 48, 64
    )
    pixels, depth = project(target[None], camera)
    torch.testing.assert_close(pixels[0], torch.tensor([32.0, 24.0]).double())
    assert depth.item() == pytest.approx((target - centre).norm().item())
    torch.testing.assert_close(torch.linalg.det(pose[:3, :3]), torch.tensor(1.0).double())
    assert pose[1, 1] > 0  # the camera's y axis points down in the y-down world
    assert pose[1, 0].abs() < 1e-9  # its x axis is level


def test_paths_are_indexed_stacked_and_resized() -> None:
    """Leading axes behave as those of tensors, and intrinsics follow the image size."""
    cameras = random_cameras(3, 2, 4)
    stacked = stack_cameras([cameras[0], cameras[1]])
    assert torch.equal(stacked.camera_to_world, cameras.camera_to_world)
    assert cameras.reshape(8)[5].times == cameras.times[1, 1]
    half = cameras.resized(24, 32)
    torch.testing.assert_close(half.intrinsics, cameras.intrinsics / 2)
    torch.testing.assert_close(half.intrinsic_matrix[0, 0, 0, 2], half.intrinsics[0, 0, 2])
    with pytest.raises(ValueError, match="image size"):
        stack_cameras([cameras[0], half[1]])
