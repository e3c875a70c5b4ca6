"""Scenes at another size: what is cropped, what is averaged, and that cameras still point at their pixels."""

from __future__ import annotations

import pytest
import torch

from lyra_ns.cameras import project
from lyra_ns.data.resize import ResizedScene, crop_to_aspect, resize_cameras, resize_depth, resize_rgb
from lyra_ns.data.scenes import load_scene
from lyra_ns.data.store import LyraStore
from tests.helpers.small_dataset import HEIGHT, NUM_FRAMES, WIDTH, write_small_dataset


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    store = LyraStore(write_small_dataset(tmp_path_factory.mktemp("data"), num_scenes=1, num_trajectories=2))
    return load_scene(store.scene("a"), with_rgb=True)


def test_the_crop_is_the_largest_centred_part_of_the_aspect():
    images = torch.arange(8 * 12, dtype=torch.uint8).view(1, 8, 12)
    assert torch.equal(crop_to_aspect(images, 4, 4), images[..., 2:10])
    assert torch.equal(crop_to_aspect(images, 2, 6), images[:, 2:6])
    assert crop_to_aspect(images, 16, 24).shape == (1, 8, 12)


def test_frames_are_averaged_and_depth_is_picked():
    checker = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    frames = (checker * 200).to(torch.uint8).expand(2, 3, 8, 8)
    grey = resize_rgb(frames, 2, 2)
    assert grey.dtype == torch.uint8
    # Antialiased: a single pixel would be 0 or 200.
    assert (grey.float() - 100).abs().max() < 15
    depth = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_depth(depth, 2, 2), depth[:, 2::4, 2::4])
    assert resize_rgb(frames, 8, 8) is frames
    assert resize_depth(depth, 8, 8) is depth


@pytest.mark.parametrize("size", [(16, 24), (16, 16), (8, 24)])
def test_cameras_keep_pointing_at_the_same_things(scene, size):
    """A bright spot in the frame lands where the resized camera projects its point."""
    cameras = scene.cameras(0)
    row, column, depth = 18, 27, 2.0
    fx, fy, cx, cy = cameras.intrinsics[0].tolist()
    in_camera = torch.tensor([(column + 0.5 - cx) / fx * depth, (row + 0.5 - cy) / fy * depth, depth])
    pose = cameras.camera_to_world[0]
    point = pose[:3, :3] @ in_camera + pose[:3, 3]
    frame = torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    frame[..., row, column] = 255
    spot = resize_rgb(frame, *size)[0, 0].float()
    rows, columns = (torch.arange(length) + 0.5 for length in size)
    found = torch.stack([(spot.sum(0) * columns).sum(), (spot.sum(1) * rows).sum()]) / spot.sum()
    pixel, _ = project(point[None], resize_cameras(cameras, *size)[0])
    torch.testing.assert_close(pixel[0], found, atol=0.2, rtol=0)


def test_a_resized_scene_has_one_size_and_no_latents(scene):
    resized = ResizedScene(scene, 16, 16)
    assert (resized.name, resized.input_ids, resized.num_frames) == ("a", [0, 1], NUM_FRAMES)
    assert (resized.cameras(1).height, resized.cameras(1).width) == (16, 16)
    assert resized.rgb(1, [3, 5]).shape == (2, 3, 16, 16)
    assert resized.depth(0, [3]).shape == (1, 16, 16)
    with pytest.raises(ValueError, match="belong to its stored image size, found image_size 16x16"):
        resized.latents(0)
