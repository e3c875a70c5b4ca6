"""Camera paths from files: round trips, other programs' conventions, and what bad files are told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lyra_ns.cameras import CameraPath, look_at, nerfstudio_from_opencv
from lyra_ns.data.camera_files import read_camera_path, write_camera_path_json, write_npz

HEIGHT, WIDTH = 70, 128


def cameras(num_frames: int = 9) -> CameraPath:
    """A curve with turning and zooming cameras and a principal point off the middle."""
    along = torch.linspace(0, 1, num_frames)[:, None]
    centres = torch.tensor([1.0, -2.0, 0.5]) + along * torch.tensor([0.8, 0.3, 0.4])
    poses = look_at(centres, torch.tensor([0.0, 0.0, 5.0]) + along.square() * torch.tensor([1.0, 0.5, 0.0]))
    intrinsics = torch.tensor([115.0, 112.0, 66.0, 33.0]).expand(num_frames, 4) * (1 + 0.1 * along)
    return CameraPath(poses, intrinsics, along[:, 0], HEIGHT, WIDTH)


def assert_same(found: CameraPath, expected: CameraPath, tolerance: float = 1e-6):
    for name in ("camera_to_world", "intrinsics", "times"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=tolerance, rtol=1e-6)
    assert (found.height, found.width) == (expected.height, expected.width)


def save(path: Path, **changes) -> Path:
    """An npz of Lyra 2 with changed entries; None leaves one out."""
    entries = {
        "w2c": cameras().world_to_camera.numpy(), "intrinsics": cameras().intrinsic_matrix.numpy(),
        "h": HEIGHT, "w": WIDTH, **changes,
    }  # fmt: skip
    np.savez(path, **{name: value for name, value in entries.items() if value is not None})
    return path


def transforms(**changes) -> dict:
    """A transforms.json, whose frames carry OpenGL poses and names."""
    poses = nerfstudio_from_opencv(cameras(11).camera_to_world)
    frames = [
        {"file_path": f"images/frame_{number}.png", "transform_matrix": pose.tolist()}
        for number, pose in enumerate(poses)
    ]
    return {
        "fl_x": 115.0,
        "fl_y": 112.0,
        "cx": 66.0,
        "cy": 33.0,
        "w": WIDTH,
        "h": HEIGHT,
        "frames": frames,
    } | changes


def write(path: Path, entries) -> Path:
    path.write_text(json.dumps(entries))
    return path


def viewer_path(tmp_path: Path) -> dict:
    write_camera_path_json(tmp_path / "viewer.json", cameras())
    return json.loads((tmp_path / "viewer.json").read_text())


def test_npz_comes_back_as_it_was_written(tmp_path):
    write_npz(tmp_path / "path.npz", cameras())
    assert_same(read_camera_path(tmp_path / "path.npz"), cameras())
    with np.load(tmp_path / "path.npz") as archive:
        assert set(archive.files) == {"w2c", "intrinsics", "h", "w"}
        np.testing.assert_allclose(archive["w2c"], cameras().world_to_camera.numpy(), atol=1e-6)
        assert archive["intrinsics"].shape == (9, 3, 3)
        assert (int(archive["h"]), int(archive["w"])) == (HEIGHT, WIDTH)


def test_npz_of_lyra_2s_program_is_read(tmp_path):
    given = {"h": None, "w": None, "image_height": HEIGHT, "image_width": WIDTH}
    found = read_camera_path(save(tmp_path / "lyra2.npz", **given))
    assert_same(found, cameras())
    one = cameras().intrinsic_matrix[0].numpy()
    found = read_camera_path(save(tmp_path / "one.npz", intrinsics=one))
    torch.testing.assert_close(found.intrinsics, cameras().intrinsics[:1].expand(9, 4))


def test_camera_path_json_comes_back_as_it_was_written(tmp_path):
    write_camera_path_json(tmp_path / "path.json", cameras())
    assert_same(read_camera_path(tmp_path / "path.json"), cameras(), tolerance=0)


def test_nerfstudio_reads_what_we_write(tmp_path):
    from nerfstudio.cameras.camera_paths import get_path_from_json

    theirs = get_path_from_json(viewer_path(tmp_path))
    expected = nerfstudio_from_opencv(cameras().camera_to_world)[:, :3]
    torch.testing.assert_close(theirs.camera_to_worlds, expected)
    torch.testing.assert_close(theirs.fy[:, 0].float(), cameras().intrinsics[:, 1], rtol=1e-5, atol=0)
    torch.testing.assert_close(theirs.times[:, 0], cameras().times)
    keyframes = viewer_path(tmp_path)["keyframes"]
    torch.testing.assert_close(torch.tensor(keyframes[1]["matrix"]).view(4, 4)[:3], expected[-1])


def test_a_path_of_the_viewer_alone_has_square_pixels_and_a_centred_image(tmp_path):
    entries = viewer_path(tmp_path)
    for camera in entries["camera_path"]:
        del camera["intrinsics"]
        camera["fov"] = 60.0
    found = read_camera_path(write(tmp_path / "plain.json", entries))
    focal = HEIGHT / 2 / math.tan(math.radians(30))
    torch.testing.assert_close(found.intrinsics, torch.tensor([focal, focal, 64.0, 35.0]).expand(9, 4))


@pytest.mark.parametrize("as_text", [False, True])
def test_keyframes_alone_are_run_through_evenly(tmp_path, as_text):
    entries = viewer_path(tmp_path)
    given = [entries["camera_path"][frame] for frame in (0, 4, 8)]
    matrices = [camera["camera_to_world"] for camera in given]
    entries["keyframes"] = [
        {"matrix": json.dumps(matrix) if as_text else matrix, "fov": 50.0 + 10 * number}
        for number, matrix in enumerate(matrices)
    ]
    entries |= {"camera_path": [], "fps": 24, "seconds": 17 / 24}
    found = read_camera_path(write(tmp_path / "keyframes.json", entries))
    assert found.shape == (17,)
    torch.testing.assert_close(found.camera_to_world[::8], cameras().camera_to_world[::4], atol=1e-6, rtol=0)
    focal = [HEIGHT / 2 / math.tan(math.radians(fov / 2)) for fov in (50.0, 60.0, 70.0)]
    torch.testing.assert_close(found.intrinsics[::8, 0], torch.tensor(focal))


def test_frames_of_transforms_are_sorted_by_number(tmp_path):
    entries = transforms()
    entries["frames"] = entries["frames"][::-1]
    found = read_camera_path(write(tmp_path / "transforms.json", entries))
    torch.testing.assert_close(found.camera_to_world, cameras(11).camera_to_world)
    torch.testing.assert_close(found.intrinsics, torch.tensor([115.0, 112.0, 66.0, 33.0]).expand(11, 4))
    assert (found.height, found.width) == (HEIGHT, WIDTH)


def test_intrinsics_of_transforms_may_stand_in_frames_or_be_an_angle(tmp_path):
    entries = transforms(fl_y=None)
    del entries["fl_x"], entries["fl_y"], entries["cx"]
    entries["camera_angle_x"] = math.radians(60)
    entries["frames"][3]["fl_x"] = 100.0
    found = read_camera_path(write(tmp_path / "transforms.json", entries)).intrinsics
    focal = WIDTH / 2 / math.tan(math.radians(30))
    torch.testing.assert_close(found[0], torch.tensor([focal, focal, 64.0, 33.0]))
    torch.testing.assert_close(found[3], torch.tensor([100.0, 100.0, 64.0, 33.0]))


def with_entry(array, index, value):
    array = np.array(array)
    array[index] = value
    return array


POSES = cameras().world_to_camera.numpy()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w2c": with_entry(POSES, (4, 0, 3), np.nan)}, r"finite, found NaN .* w2c of frame 4"),
        ({"w2c": with_entry(POSES, (2, 0), 2 * POSES[2, 0])}, "rotations, found another matrix at frame 2"),
        ({"w2c": with_entry(POSES, (5, 0), -POSES[5, 0])}, "rotations, found another matrix at frame 5"),
        ({"w2c": POSES.swapaxes(1, 2)}, "end in the row 0 0 0 1"),
        ({"w2c": POSES[0]}, r"w2c of shape \(4, 4\), found \(4,\)"),
        ({"w2c": POSES[:0]}, r"w2c of shape \(4, 4\)"),
        ({"intrinsics": cameras(5).intrinsic_matrix.numpy()}, r"per camera \(9\), found 5"),
        ({"intrinsics": -cameras().intrinsic_matrix.numpy()}, "positive size and focal length"),
        ({"h": 0}, "positive size and focal length"),
        ({"h": None}, "must hold w2c, intrinsics, h and w, found intrinsics, w, w2c"),
        ({"w2c": POSES.astype(object)}, "npz"),
    ],
)
def test_bad_npz_is_explained(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_camera_path(save(tmp_path / "bad.npz", **changes))
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(camera_type="equirectangular"), "pinhole cameras, found equirectangular"),
        (lambda e: e["camera_path"][2].update(camera_to_world=[1.0, 2.0]), "camera_to_world of one shape"),
        (lambda e: e["camera_path"][2].update(camera_to_world=[float("nan")] * 16), "finite, found NaN"),
        (lambda e: e["camera_path"][2].update(camera_to_world=[2.0] * 16), "rotations, .* frame 2"),
        (lambda e: e["camera_path"][2].update(intrinsics=[1.0]), "one shape"),
        (lambda e: [e["camera_path"][2].pop("intrinsics"), e["camera_path"][2].update(fov=180)], "0 and 180"),
        (lambda e: e.pop("render_height"), "lacks an entry .*render_height"),
        (
            lambda e: [e.pop("camera_path"), e.pop("keyframes")],
            "camera_path, keyframes or frames, found camera_type",
        ),
        (lambda e: [e.pop("camera_path"), e.update(seconds=0)], "at least one frame"),
        (lambda e: e.update(render_width="wide"), "wrong kind"),
    ],
)
def test_bad_viewer_paths_are_explained(tmp_path, change, message):
    entries = viewer_path(tmp_path)
    change(entries)
    with pytest.raises(ValueError, match=message):
        read_camera_path(write(tmp_path / "bad.json", entries))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "pinhole cameras, found OPENCV_FISHEYE"),
        ({"camera_model": "FISHEYE624"}, "pinhole cameras, found FISHEYE624"),
        ({"frames": [{"file_path": "a"}]}, "lacks an entry .*transform_matrix"),
        ({"fl_x": None}, "neither"),
        ({"h": None}, "lacks an entry"),
    ],
)
def test_bad_transforms_are_explained(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_camera_path(write(tmp_path / "transforms.json", transforms(**changes)))


def test_transforms_of_several_sizes_are_refused(tmp_path):
    entries = transforms()
    entries["frames"][1]["w"] = 64
    with pytest.raises(ValueError, match=r"one image size, found \[\(70, 64\), \(70, 128\)\]"):
        read_camera_path(write(tmp_path / "transforms.json", entries))


def test_unknown_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz does not exist"):
        read_camera_path(tmp_path / "nowhere.npz")
    (tmp_path / "path.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"found \.csv: convert"):
        read_camera_path(tmp_path / "path.csv")
    (tmp_path / "path.json").write_bytes(b"{")
    with pytest.raises(ValueError, match="must be JSON"):
        read_camera_path(tmp_path / "path.json")
    with pytest.raises(ValueError, match="found none of them"):
        read_camera_path(write(tmp_path / "list.json", [1, 2]))
    (tmp_path / "path.npz").write_bytes(save(tmp_path / "whole.npz").read_bytes()[:-300])
    with pytest.raises(ValueError, match="npz file, found damage"):
        read_camera_path(tmp_path / "path.npz")


@pytest.mark.parametrize(("writer", "name"), [(write_npz, "path.npz"), (write_camera_path_json, "path.json")])
def test_bad_cameras_are_not_written(tmp_path, writer, name):
    path = tmp_path / name
    writer(path, cameras(5))
    before = path.read_bytes()
    poses = cameras().camera_to_world.clone()
    poses[3, 0, 3] = float("nan")
    with pytest.raises(ValueError, match="found NaN or infinity in camera_to_world of frame 3"):
        writer(path, replace(cameras(), camera_to_world=poses))
    with pytest.raises(ValueError, match=r"shape \[frames\], found \[3, 3\]"):
        writer(path, cameras().reshape(3, 3))
    with pytest.raises(ValueError, match="rotations"):
        writer(path, replace(cameras(), camera_to_world=2 * cameras().camera_to_world))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]
