"""The replaying teacher: data sets, one trajectory as ViPE writes it, videos with camera files, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import load_codec
from lyra_ns.data.camera_files import write_camera_path_json, write_npz
from lyra_ns.data.depth_files import depth_bytes
from lyra_ns.data.resize import resize_cameras, resize_rgb
from lyra_ns.data.store import LyraStore, Manifest, write_manifest
from lyra_ns.data.video import read_video, video_bytes
from lyra_ns.synthetic.writer import encode_videos
from lyra_ns.teachers.base import CameraVideoTeacher
from lyra_ns.teachers.replay import ReplayTeacher, clips_on_disk, codec_of_clips
from tests.helpers.small_dataset import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    smooth_video,
    straight_path,
    write_small_dataset,
)

CODEC = load_codec("linear")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes a and b with two trajectories each, and no manifest."""
    return write_small_dataset(tmp_path_factory.mktemp("data"), num_scenes=2, num_trajectories=2)


def write_videos(root: Path, num_frames: int = 20) -> CameraPath:
    """house.mp4 with depth, and room/0.mp4 and room/3.mp4; their one camera path."""
    cameras = straight_path((0.3, 0.1, 0.2), num_frames)
    (root / "room").mkdir(parents=True)
    for seed, name in enumerate(("house", "room/0", "room/3")):
        frames = (smooth_video(seed, num_frames).transpose(0, 1) * 255).round().to(torch.uint8)
        (root / f"{name}.mp4").write_bytes(video_bytes(frames))
        (write_npz if seed else write_camera_path_json)(root / f"{name}.{'npz' if seed else 'json'}", cameras)
    depth = 1 + smooth_video(9, num_frames)[0]
    (root / "house.zip").write_bytes(depth_bytes(depth))
    return cameras


@pytest.mark.slow
def test_a_data_set_gives_its_own_latents_frames_and_depth(data: Path) -> None:
    teacher = ReplayTeacher(data, CODEC)
    assert isinstance(teacher, CameraVideoTeacher)
    clips = clips_on_disk(data)
    assert [(clip.scene, clip.trajectory) for clip in clips] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    steps: list[tuple[int, int]] = []
    asked = [clips[k].request() for k in (2, 1)]
    made = teacher.generate(asked, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    store = LyraStore(data)
    for request, clip in zip(asked, made, strict=True):
        stored = store.clips(request.scene)[request.trajectory]
        assert torch.equal(clip.z, stored.latents())
        assert torch.equal(clip.video, stored.rgb())
        assert torch.equal(clip.depth, stored.depth())
        assert torch.equal(request.image, clip.video[0].float() / 255)
        assert clip.notes["latents"] == "stored"


def test_the_first_frames_of_a_clip_can_be_asked_for(data: Path) -> None:
    request = clips_on_disk(data)[0].request(num_frames=9)
    (clip,) = ReplayTeacher(data, CODEC).generate([request])
    whole = LyraStore(data).clips("a")[0]
    assert torch.equal(clip.z, whole.latents()[:, :2])
    assert torch.equal(clip.video, whole.rgb(range(9)))
    assert request.cameras.times[-1] == 1


def test_another_size_is_cropped_and_encoded(data: Path) -> None:
    (clip_on_disk, *_) = clips_on_disk(data)
    request = clip_on_disk.request(height=16, width=16)
    (clip,) = ReplayTeacher(data, CODEC).generate([request])
    expected = resize_rgb(LyraStore(data).clips("a")[0].rgb(), 16, 16)
    assert torch.equal(clip.video, expected)
    assert torch.equal(clip.z, encode_videos(expected[None], CODEC)[0])
    assert clip.depth.shape == (NUM_FRAMES, 16, 16)
    assert clip.notes["latents"] == "encoded"


def test_latents_of_another_codec_are_made_anew(data: Path, tmp_path: Path) -> None:
    root = write_small_dataset(tmp_path, num_scenes=1, num_trajectories=1)
    for digest, latents in ((CODEC.spec.digest, "stored"), ("other", "encoded")):
        manifest = Manifest("linear", NUM_FRAMES, HEIGHT, WIDTH, {"a": [0]}, codec_digest=digest)
        write_manifest(root, manifest)
        (clip,) = ReplayTeacher(root, CODEC).generate([clips_on_disk(root)[0].request()])
        assert clip.notes["latents"] == latents
    assert codec_of_clips(write_manifest(root, replace(manifest, codec_digest="")).parent).spec == CODEC.spec
    with pytest.raises(ValueError, match="no manifest that names the codec"):
        codec_of_clips(data)


def test_clips_without_frames_are_decoded(tmp_path: Path) -> None:
    root = write_small_dataset(tmp_path, num_scenes=1, num_trajectories=1)
    asked = clips_on_disk(root)[0].request()
    (whole,) = ReplayTeacher(root, CODEC).generate([asked])
    (root / "static" / "0" / "rgb" / "a.mp4").unlink()
    (clip,) = ReplayTeacher(root, CODEC).generate([asked])
    assert torch.equal(clip.z, whole.z)
    decoded = CODEC.decode(CODEC.from_diffusion(whole.z[None]))[0].transpose(0, 1)
    assert ((clip.video.float() - (decoded.clamp(-1, 1) + 1) * 127.5).abs() <= 0.51).all()
    small = clips_on_disk(root)[0]
    with pytest.raises(ValueError, match="found neither in"):
        ReplayTeacher(root, CODEC).generate(
            [replace(asked, cameras=resize_cameras(small.cameras, 16, 16), image=torch.zeros(3, 16, 16))]
        )


def test_videos_with_camera_files_become_latents(tmp_path: Path) -> None:
    cameras = write_videos(tmp_path)
    clips = clips_on_disk(tmp_path)
    assert [(clip.scene, clip.trajectory) for clip in clips] == [("house", 0), ("room", 0), ("room", 3)]
    torch.testing.assert_close(clips[2].cameras.camera_to_world, cameras.camera_to_world, atol=1e-5, rtol=0)
    assert codec_of_clips(tmp_path).spec == CODEC.spec
    teacher = ReplayTeacher(tmp_path, CODEC)
    house, room = teacher.generate([clips[0].request(), clips[2].request(num_frames=9)])
    frames = read_video(tmp_path / "house.mp4")[:17]
    assert torch.equal(house.video, frames)
    assert torch.equal(house.z, encode_videos(frames[None], CODEC)[0])
    assert house.depth.shape == (17, HEIGHT, WIDTH)
    assert house.depth.min() >= 1
    assert room.depth is None
    assert torch.equal(room.video, read_video(tmp_path / "room" / "3.mp4")[:9])
    (alone,) = clips_on_disk(tmp_path / "house.mp4")
    assert (alone.scene, alone.trajectory) == ("house", 0)


def test_one_trajectory_without_a_number(data: Path, tmp_path: Path) -> None:
    (data / "static" / "1").rename(tmp_path / "walk")
    try:
        clips = clips_on_disk(tmp_path / "walk")
        assert [(clip.scene, clip.trajectory) for clip in clips] == [("a", 0), ("b", 0)]
        (clip,) = ReplayTeacher(tmp_path / "walk", CODEC).generate([clips[1].request()])
        assert clip.depth is not None
        assert clip.notes["latents"] == "stored"
    finally:
        (tmp_path / "walk").rename(data / "static" / "1")


def test_other_cameras_and_other_clips_are_refused(data: Path) -> None:
    teacher, asked, steps = ReplayTeacher(data, CODEC), clips_on_disk(data)[0].request(), []
    moved = asked.cameras.camera_to_world.clone()
    moved[:, 0, 3] += 0.01
    turned = asked.cameras.camera_to_world.flip(0)
    for cameras, message in [
        (replace(asked.cameras, camera_to_world=moved), "trajectory 0: .* another camera path .positions"),
        (replace(asked.cameras, camera_to_world=turned), "rotations differ"),
        (replace(asked.cameras, intrinsics=asked.cameras.intrinsics + 1), "intrinsics differ"),
        (asked.cameras[torch.arange(25).clamp(max=16)], "25 frames asked for, 17 stored"),
    ]:
        with pytest.raises(ValueError, match=message):
            teacher.generate([asked, replace(asked, cameras=cameras)], lambda *done: steps.append(done))
    with pytest.raises(ValueError, match=r"scene c, trajectory 0 is not among the 4 clips .*a/0, a/1, b/0"):
        teacher.generate([replace(asked, scene="c")])
    assert not steps


def test_bad_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="do not exist: give a folder of clips"):
        clips_on_disk(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no clips: expected a data set"):
        clips_on_disk(tmp_path)
    cameras = write_videos(tmp_path)
    (tmp_path / "house.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"house.mp4 has no camera file: put house.json or house.npz"):
        clips_on_disk(tmp_path)
    for written, message in [
        (cameras[:19], "a camera for each of the 20 frames of house.mp4, found 19"),
        (replace(cameras, width=2 * WIDTH), "another aspect in house.mp4, 32x48"),
    ]:
        write_npz(tmp_path / "house.npz", written)
        (house, *_) = clips_on_disk(tmp_path)
        with pytest.raises(ValueError, match=message):
            house.request()
    write_npz(tmp_path / "house.npz", cameras)
    with pytest.raises(ValueError, match="must have 25 frames, found 20: ask for fewer"):
        clips_on_disk(tmp_path)[0].request(num_frames=25)
