"""The dataset reader and writer: layout, cameras, videos, depth, held-out paths, time-reversed views."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from lyra_ns.data.atomic import write_whole
from lyra_ns.data.check import check_dataset
from lyra_ns.data.depth_files import depth_bytes
from lyra_ns.data.store import LyraStore, Manifest, read_manifest, write_clip, write_manifest
from tests.helpers.small_dataset import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    smooth_video,
    straight_path,
    write_small_clip,
    write_small_dataset,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_small_dataset(tmp_path_factory.mktemp("data"), num_scenes=2)


def test_every_way_to_name_the_root_finds_the_same_scenes(root):
    for given in (root, str(root), root / "static"):
        store = LyraStore(given)
        assert store.names == ["a", "b"]
        assert list(store.scene("a").clips) == [0, 1, 2, 3, 4, 5]
        assert store.home == root
        assert not store.is_dynamic
        assert list(store.novel_clips("b")) == [0]


def test_the_layout_of_the_official_demo_is_found(tmp_path):
    write_small_clip(tmp_path / "dynamic" / "diffusion_output", "scene", 0, seed=0)
    for given in (tmp_path, tmp_path / "dynamic", tmp_path / "dynamic" / "diffusion_output"):
        store = LyraStore(given)
        assert store.names == ["scene"]
        assert store.is_dynamic
    write_small_clip(tmp_path / "static" / "diffusion_output", "scene", 0, seed=0)
    assert not LyraStore(tmp_path / "static").is_dynamic
    with pytest.raises(ValueError, match="both static and dynamic"):
        LyraStore(tmp_path)


def test_numbered_folders_may_lie_in_the_root_itself_beside_strays(tmp_path, caplog):
    for trajectory in (10, 2, 1):
        write_small_clip(tmp_path, "scene", trajectory, seed=trajectory)
    (tmp_path / "flag").write_text("")
    (tmp_path / "notes").mkdir()
    (tmp_path / "2" / "pose" / ".hidden.npz").write_text("")
    (tmp_path / "2" / "pose" / "readme.txt").write_text("")
    with caplog.at_level("INFO"):
        store = LyraStore(tmp_path)
    assert store.listing == {"scene": [1, 2, 10]}
    assert "flag" in caplog.text
    assert "notes" in caplog.text


def test_clip_gives_back_what_was_written(root):
    clip = LyraStore(root).scene("b").clips[2]
    cameras = clip.cameras()
    angle = torch.tensor(2 * torch.pi * 2 / 6)
    written = straight_path((float(angle.cos()), float(angle.sin()), 0.2))
    torch.testing.assert_close(cameras.camera_to_world, written.camera_to_world)
    torch.testing.assert_close(cameras.intrinsics, written.intrinsics)
    torch.testing.assert_close(cameras.times, written.times)
    assert (cameras.height, cameras.width) == (HEIGHT, WIDTH)
    video = smooth_video(102).transpose(0, 1)
    rgb = clip.rgb()
    assert rgb.dtype == torch.uint8
    error = (rgb.float() / 255 - video).square().mean()
    assert -10 * error.log10() > 36
    torch.testing.assert_close(clip.depth(), 1 + 2 * video[:, 0], atol=2e-3, rtol=0)
    assert clip.latents().shape == (16, 3, 4, 6)
    assert all(clip.has(what) for what in ("latent", "rgb", "depth"))


def test_single_frames_are_those_of_the_whole_clip(root):
    clip = LyraStore(root).scene("a").clips[0]
    assert torch.equal(clip.rgb([3, 16]), clip.rgb()[[3, 16]])
    assert torch.equal(clip.depth([16, 0]), clip.depth()[[16, 0]])
    with pytest.raises(ValueError, match=r"a\.mp4 must have frames up to 17, found"):
        clip.rgb([3, 17])
    with pytest.raises(ValueError, match=r"a\.zip must hold images up to frame 17, found 17"):
        clip.depth([17])


def test_held_out_paths_have_no_latents(root):
    clip = LyraStore(root).novel_clips("a")[0]
    assert not clip.has("latent")
    assert clip.rgb().shape == (NUM_FRAMES, 3, HEIGHT, WIDTH)
    with pytest.raises(FileNotFoundError, match=r"latent .* does not exist"):
        clip.latents()
    with pytest.raises(ValueError, match="not 'flow'"):
        clip.has("flow")


def test_writing_twice_gives_equal_bytes_and_leaves_nothing_else(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        write_small_clip(folder, "s", 0, seed=1)
    one, two = (sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("one", "two"))
    assert [path.name for path in one] == ["s.zip", "s.npz", "s.pkl", "s.npz", "s.mp4"]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_machines_with_one_process_number_do_not_write_into_one_file(tmp_path, monkeypatch):
    """Containers of a cluster often have the same, and all of them write the manifest."""
    replace_file, parts = os.replace, []

    def noted(part, path):
        parts.append(part)
        if len(parts) == 1:
            write_whole(path, b"from elsewhere")
        replace_file(part, path)

    monkeypatch.setattr(os, "replace", noted)
    write_whole(tmp_path / "manifest.json", b"from here")
    assert (tmp_path / "manifest.json").read_bytes() == b"from here"
    assert len(set(parts)) == 2


def test_a_clip_without_pose_is_not_listed(tmp_path):
    write_small_clip(tmp_path, "whole", 0, seed=0)
    write_small_clip(tmp_path, "half", 0, seed=0)
    (tmp_path / "0" / "pose" / "half.npz").unlink()
    assert LyraStore(tmp_path).names == ["whole"]


def test_writer_refuses_images_of_another_size(tmp_path):
    with pytest.raises(ValueError, match=r"rgb must be \(17, 32, 48\).*found \(17, 32, 40\)"):
        write_clip(
            tmp_path, "s", 0, straight_path((1, 0, 0)), rgb=torch.zeros(17, 3, 32, 40, dtype=torch.uint8)
        )
    with pytest.raises(ValueError, match=r"depth must be .*found \(9, 32, 48\)"):
        write_clip(tmp_path, "s", 0, straight_path((1, 0, 0)), depth=torch.zeros(9, 32, 48))
    assert not list(tmp_path.iterdir())


def test_unknown_depth_is_zero(tmp_path):
    depth = torch.ones(17, HEIGHT, WIDTH)
    depth[0, 0, :5] = torch.tensor([-1.0, 0.0, torch.nan, torch.inf, 1e6])
    write_clip(tmp_path, "s", 0, straight_path((1, 0, 0)), depth=depth)
    read = LyraStore(tmp_path).scene("s").clips[0].depth()
    assert read[0, 0, :6].tolist() == [0, 0, 0, 0, 0, 1]


def test_official_depth_with_negative_values_is_cleaned_when_read(tmp_path):
    from lyra_ns.data.depth_files import write_exr

    content = depth_bytes(torch.ones(1, 1, 2))
    raw = write_exr(np.array([[-1.0, np.inf]], np.float16))
    good = write_exr(np.array([[1.0, 1.0]], np.float16))
    assert good in content
    (tmp_path / "depth").mkdir()
    import zipfile

    with zipfile.ZipFile(tmp_path / "depth" / "s.zip", "w") as archive:
        archive.writestr("00000.exr", raw)
    from lyra_ns.data.depth_files import read_depth

    assert read_depth(tmp_path / "depth" / "s.zip").tolist() == [[[0.0, 0.0]]]


def save_poses(path, data, ids):
    np.savez(path, data=np.asarray(data, np.float32), inds=np.asarray(ids))


def test_cameras_are_found_by_frame_id(tmp_path):
    write_small_clip(tmp_path, "s", 0, seed=0)
    poses = straight_path((1, 0, 0), 40).camera_to_world.numpy()
    save_poses(tmp_path / "0/pose/s.npz", poses, np.arange(40))
    clip = LyraStore(tmp_path).scene("s").clips[0]
    np.testing.assert_allclose(clip.cameras().camera_to_world.numpy(), poses[:17], rtol=1e-6)
    save_poses(tmp_path / "0/pose/s.npz", poses, np.arange(40) * 2)
    with pytest.raises(ValueError, match=r"must cover frames 0 to 16, found none for frame 1 \(8 missing\)"):
        clip.cameras()
    save_poses(tmp_path / "0/pose/s.npz", poses[:17], np.arange(17)[::-1])
    with pytest.raises(ValueError, match="ascending frame ids"):
        clip.cameras()


def test_bad_cameras_are_named(tmp_path):
    write_small_clip(tmp_path, "s", 0, seed=0)
    clip = LyraStore(tmp_path).scene("s").clips[0]
    good = straight_path((1, 0, 0))
    poses, intrinsics = good.camera_to_world.numpy(), good.intrinsics.numpy()
    not_finite, scaled, mirrored, transposed = (poses.copy() for _ in range(4))
    not_finite[3, 0, 3] = np.nan
    scaled[5, :3, :3] *= 1.1
    mirrored[:, 0, :3] *= -1
    transposed = transposed.swapaxes(1, 2)
    for data, message in (
        (not_finite, r"pose .*s\.npz must be finite, found NaN"),
        (scaled, r"orthonormal, not mirrored\), found one at frame 5"),
        (mirrored, "not mirrored"),
        (transposed, "0 0 0 1, found another"),
        (poses[:, :3], r"shape \[frames, 4, 4\], found float32 \(17, 3, 4\)"),
    ):
        save_poses(tmp_path / "0/pose/s.npz", data, np.arange(17))
        with pytest.raises(ValueError, match=message):
            clip.cameras()
    save_poses(tmp_path / "0/pose/s.npz", poses, np.arange(17))
    for data, message in (
        (intrinsics * np.array([-1, 1, 1, 1]), "positive focal lengths, found -40"),
        (intrinsics * np.inf, r"intrinsics .*s\.npz must be finite"),
    ):
        save_poses(tmp_path / "0/intrinsics/s.npz", data, np.arange(17))
        with pytest.raises(ValueError, match=message):
            clip.cameras()
    (tmp_path / "0/intrinsics/s.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"must be an npz with `data` and `inds`, found damage"):
        clip.cameras()
    (tmp_path / "0/intrinsics/s.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"intrinsics .* does not exist"):
        clip.cameras()


def test_pickled_camera_arrays_are_not_read(tmp_path):
    write_small_clip(tmp_path, "s", 0, seed=0)
    np.savez(tmp_path / "0/pose/s.npz", data=np.array([{}] * 17, object), inds=np.arange(17))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        LyraStore(tmp_path).scene("s").clips[0].cameras()


def test_size_comes_from_what_is_stored(tmp_path):
    write_small_clip(tmp_path, "s", 0, seed=0)
    clip = LyraStore(tmp_path).scene("s").clips[0]
    for file in ("0/rgb/s.mp4", "0/latent/s.pkl"):
        assert clip.video_shape() == (17, HEIGHT, WIDTH)
        (tmp_path / file).unlink()
    assert clip.video_shape() == (17, HEIGHT, WIDTH)
    (tmp_path / "0/depth/s.zip").unlink()
    with pytest.raises(FileNotFoundError, match="neither rgb, latent nor depth"):
        clip.cameras()


def test_roots_without_data_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist.*ns-lyra sample-data"):
        LyraStore(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no numbered trajectory folders.*ns-lyra sample-data"):
        LyraStore(tmp_path)
    (tmp_path / "static" / "0").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds no clip.*ns-lyra sample-data"):
        LyraStore(tmp_path)
    (tmp_path / "dynamic" / "0").mkdir(parents=True)
    with pytest.raises(ValueError, match="both static and dynamic"):
        LyraStore(tmp_path)


def test_manifest_lists_the_scenes(tmp_path):
    write_small_dataset(tmp_path, num_scenes=2)
    manifest = Manifest(
        *("linear", 17, HEIGHT, WIDTH, {"a": [0, 1]}, {"a": [0]}, {"train": ["a"]}),
        seed=3,
        codec_digest="0123456789abcdef",
    )
    path = write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert json.loads(path.read_text())["versions"]["torch"] == torch.__version__
    store = LyraStore(tmp_path)
    assert store.listing == {"a": [0, 1]}
    assert (store.spec.codec, store.spec.digest) == ("linear", "0123456789abcdef")
    assert store.manifest.splits == {"train": ["a"]}
    assert "focal_lengths" not in json.loads(path.read_text()), "nothing here measures them"
    write_manifest(tmp_path, replace(manifest, focal_lengths=[0.5, 2.0]))
    assert read_manifest(tmp_path).focal_lengths == [0.5, 2.0]
    path.write_text("[]")
    assert LyraStore(tmp_path).names == ["a", "b"]
    path.write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json must be JSON.*delete it"):
        LyraStore(tmp_path)


def dynamic_scene(root, pose_flipped: bool, static_camera: bool = True):
    """Views 0 to 5 leave a common start; the frames of 6 to 11 arrive there at the end."""
    for trajectory in range(12):
        end = (0.0, 0.0, 0.0) if trajectory % 6 == 5 else (1.0 + trajectory % 6, 0.3, 0.0)
        cameras = straight_path(end)
        if trajectory % 6 == 5:
            # The spiral is closed: both ends at the start.
            circle = torch.sin(cameras.times * 2 * torch.pi)
            cameras.camera_to_world[:, 0, 3] = circle
        if trajectory >= 6 and pose_flipped:
            cameras = replace(cameras, camera_to_world=cameras.camera_to_world.flip(0))
        write_small_clip(root / "dynamic", "s", trajectory, seed=trajectory, cameras=cameras)


@pytest.mark.parametrize("pose_flipped", [True, False])
def test_poses_of_reversed_views_are_put_in_forward_time(tmp_path, pose_flipped):
    dynamic_scene(tmp_path, pose_flipped)
    expected = straight_path((2.0, 0.3, 0.0)).camera_to_world
    store = LyraStore(tmp_path)
    assert store.is_dynamic
    scene = store.scene("s")
    torch.testing.assert_close(scene.clips[1].cameras().camera_to_world, expected)
    torch.testing.assert_close(scene.clips[7].cameras().camera_to_world, expected.flip(0))
    spiral = scene.clips[11].cameras().camera_to_world[:, 0, 3]
    torch.testing.assert_close(spiral, -torch.sin(torch.linspace(0, 2 * torch.pi, 17)), atol=1e-5, rtol=0)
    stored = expected.flip(0) if pose_flipped else expected
    for order, poses in (("as_is", stored), ("reverse", stored.flip(0))):
        clip = LyraStore(tmp_path, flipped_pose_order=order).scene("s").clips[7]
        torch.testing.assert_close(clip.cameras().camera_to_world, poses)


@pytest.mark.slow
@pytest.mark.parametrize("pose_flipped", [True, False])
def test_manifest_decides_the_pose_order_unless_the_user_does(tmp_path, pose_flipped):
    dynamic_scene(tmp_path, pose_flipped)
    sizes = ("linear", NUM_FRAMES, HEIGHT, WIDTH, {"s": list(range(12))})
    for stated in ("as_is", "reverse"):
        write_manifest(tmp_path, Manifest(*sizes, is_dynamic=True, flipped_pose_order=stated))
        store = LyraStore(tmp_path)
        assert store.scene("s").clips[7].reverse_poses == (stated == "reverse")
        assert not store.scene("s").clips[1].reverse_poses
        assert check_dataset(tmp_path).pose_orders == {"s": stated}
        for order in ("as_is", "reverse"):
            clip = LyraStore(tmp_path, flipped_pose_order=order).scene("s").clips[7]
            assert clip.reverse_poses == (order == "reverse")


@pytest.mark.slow
def test_manifests_of_earlier_versions_leave_the_pose_order_open(tmp_path):
    dynamic_scene(tmp_path, pose_flipped=False)
    sizes = ("linear", NUM_FRAMES, HEIGHT, WIDTH, {"s": list(range(12))})
    path = write_manifest(tmp_path, Manifest(*sizes, is_dynamic=True))
    content = json.loads(path.read_text())
    assert content.pop("flipped_pose_order") == "auto"
    path.write_text(json.dumps(content))
    assert LyraStore(tmp_path).scene("s").clips[7].reverse_poses
    path.write_text(json.dumps({**content, "flipped_pose_order": "backwards"}))
    with pytest.raises(ValueError, match="auto, as_is, reverse, found 'backwards'"):
        LyraStore(tmp_path)


@pytest.mark.slow
def test_undecidable_pose_order_is_read_as_stored_and_logged(tmp_path, caplog):
    dynamic_scene(tmp_path, pose_flipped=False)
    for trajectory in range(6, 11):
        (tmp_path / "dynamic" / str(trajectory) / "pose" / "s.npz").unlink()
    clip = LyraStore(tmp_path).scene("s").clips[11]
    assert not clip.reverse_poses
    assert "do not tell their order" in caplog.text


def plane_clip(root, trajectory, path, poses_backwards):
    """A textured plane at depth 2, seen by a camera that moves along `path` [L, 2] across it."""
    cameras = straight_path((0.0, 0.0, 0.0))
    poses = torch.eye(4).repeat(NUM_FRAMES, 1, 1)
    poses[:, :2, 3] = path
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    x = (columns - WIDTH / 2) / 40 * 2 + path[:, 0, None, None]
    y = (rows - HEIGHT / 2) / 40 * 2 + path[:, 1, None, None]
    texture = torch.stack([torch.sin(5 * x + y), torch.sin(4 * y - x), torch.cos(3 * (x + y))], 1)
    rgb = ((texture * 0.5 + 0.5) * 255).to(torch.uint8)
    stored = replace(cameras, camera_to_world=poses.flip(0) if poses_backwards else poses)
    write_clip(
        *(root / "dynamic", "s", trajectory, stored),
        rgb=rgb,
        depth=torch.full((NUM_FRAMES, HEIGHT, WIDTH), 2.0),
    )


@pytest.mark.parametrize("backwards", [False, True])
def test_frames_tell_the_order_where_the_ends_of_the_path_do_not(tmp_path, backwards):
    angle = torch.linspace(0, 4 * torch.pi, NUM_FRAMES)
    spiral = torch.stack([0.3 * (torch.cos(angle) - 1), 0.2 * torch.sin(angle)], -1)
    plane_clip(tmp_path, 5, spiral, poses_backwards=False)
    plane_clip(tmp_path, 11, spiral, poses_backwards=backwards)
    store = LyraStore(tmp_path)
    assert store.stored_pose_order("s") == ("reverse" if backwards else "as_is")
    found = store.scene("s").clips[11].cameras().camera_to_world[:, :2, 3]
    torch.testing.assert_close(found, spiral)
    report = check_dataset(tmp_path)
    assert report.pose_orders == {"s": "reverse" if backwards else "as_is"}
    expected = "backwards in 1," if backwards else "in the order of their frames in 1 scenes"
    assert expected in report.as_text()
    (tmp_path / "dynamic/11/depth/s.zip").unlink()
    assert LyraStore(tmp_path).stored_pose_order("s") is None


def test_damaged_videos_and_depth_are_named(tmp_path):
    write_small_clip(tmp_path, "s", 0, seed=0)
    clip = LyraStore(tmp_path).scene("s").clips[0]
    for path, read in (("0/rgb/s.mp4", clip.rgb), ("0/depth/s.zip", clip.depth)):
        content = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"write it again"):
            read()
        (tmp_path / path).unlink()
        with pytest.raises(FileNotFoundError, match="does not exist"):
            read()
