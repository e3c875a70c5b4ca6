"""Data sets made in this process: files, records, depth, moving scenes, given clips, and mistakes."""

from __future__ import annotations

import errno
import json
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.cache3d.cache import SceneCache
from lyra_ns.cameras import CameraPath, look_at
from lyra_ns.codec import load_codec
from lyra_ns.data.check import check_dataset
from lyra_ns.data.depth_files import depth_bytes
from lyra_ns.data.store import LyraStore, Manifest, read_manifest, write_clip
from lyra_ns.data.video import video_bytes
from lyra_ns.depth.base import DepthPrediction, PlaneDepth
from lyra_ns.depth.small import load_small_depth
from lyra_ns.make_data import failures, run, workers
from lyra_ns.make_data.clip_maker import aligned_sequence, estimated_depth
from lyra_ns.make_data.failures import Failure, add_failure, read_failures
from lyra_ns.make_data.plan import Shard
from lyra_ns.make_data.run import make_data
from lyra_ns.make_data.workers import LocalWorker
from lyra_ns.memory import DoesNotFit
from lyra_ns.teachers.base import TeacherClip, TeacherRequest, latents_of_frames
from lyra_ns.teachers.registry import TeacherChoice
from lyra_ns.teachers.warp import WarpTeacher
from tests.helpers.small_make_data import ON_CPU, SETTINGS, save_picture, smooth_picture


def deviation(z: Tensor, frames: Tensor) -> float:
    """How far latents are from those of stored frames, which compression has changed a little."""
    expected = latents_of_frames(load_codec("linear"), frames, "cpu")
    return float((z - expected).norm() / expected.norm())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for seed in range(3):
        save_picture(tmp_path / "pictures" / f"scene{seed}.png", seed)
    return tmp_path / "pictures"


@pytest.mark.slow
def test_pictures_become_a_data_set(pictures: Path, tmp_path: Path) -> None:
    """That the checker finds nothing wrong with, whose records say how it was made."""
    (pictures / "scene1.txt").write_text("a hall")
    root = tmp_path / "out"
    report = make_data(pictures, root, SETTINGS, ON_CPU)
    assert (report.num_made, report.num_kept, report.num_scenes) == (6, 0, 3)
    assert report.failures == {}
    assert check_dataset(root).is_good
    manifest = read_manifest(root)
    codec = load_codec("linear")
    assert manifest is not None
    assert (manifest.codec, manifest.codec_digest) == ("linear", codec.spec.digest)
    assert manifest.scenes == {f"scene{number}": [0, 4] for number in range(3)}
    assert sorted([*manifest.splits["train"], *manifest.splits["test"]]) == ["scene0", "scene1", "scene2"]
    record = json.loads((root / "static" / "4" / "meta" / "scene1.json").read_text())
    assert (record["prompt"], record["teacher"], record["depth"]) == ("a hall", "warp", "warp")
    assert record["path"]["kind"] == "zoom_in"
    assert record["scene_scale"]["estimator"].startswith("plane")
    clip = LyraStore(root).clips("scene1")[4]
    path = clip.cameras().camera_to_world
    assert abs(float(path[-1, 2, 3]) - record["path"]["distance"] * 8 / 9) < 1e-5
    assert (clip.depth() > 0).float().mean() > 0.8
    assert deviation(clip.latents(), clip.rgb()) < 0.15 < deviation(clip.latents(), clip.rgb().flip(0))


@pytest.mark.slow
def test_teachers_are_told_what_the_record_says(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scene's own prompt, or else that of the settings, and noise that follows from scene and path."""
    generate, told = WarpTeacher.generate, []

    def noted(self: WarpTeacher, requests: list[TeacherRequest]) -> list[TeacherClip]:
        told.extend({"prompt": each.prompt, "noise_seed": each.seed} for each in requests)
        return generate(self, requests)

    monkeypatch.setattr(WarpTeacher, "generate", noted)
    (pictures / "scene1.txt").write_text("a hall")
    root = tmp_path / "out"
    make_data(pictures, root, replace(SETTINGS, prompt="a place"), ON_CPU)
    written = [json.loads(path.read_text()) for path in root.rglob("meta/*.json")]
    records = sorted(written, key=lambda record: (record["scene"], record["trajectory"]))
    assert [{key: record[key] for key in ("prompt", "noise_seed")} for record in records] == told
    assert [each["prompt"] for each in told] == ["a place"] * 2 + ["a hall"] * 2 + ["a place"] * 2
    assert len({each["noise_seed"] for each in told}) == 6


@pytest.mark.slow
def test_a_source_that_changes_during_a_run_is_not_made(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clips would not follow from what plan and record say of it."""
    plan = run.extended_plan

    def changed_after(*arguments: Any) -> Any:
        planned = plan(*arguments)
        save_picture(pictures / "scene1.png", 9)
        return planned

    monkeypatch.setattr(run, "extended_plan", changed_after)
    report = make_data(pictures, tmp_path / "out", SETTINGS, ON_CPU)
    assert list(report.failures) == ["scene1"]
    assert "it changed meanwhile" in report.failures["scene1"].message
    assert (report.num_made, report.num_scenes) == (4, 2)


@pytest.mark.slow
def test_official_pickles_on_request(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    make_data(pictures, root, replace(SETTINGS, latent_format="pkl"), ON_CPU)
    assert {path.suffix for path in (root / "static" / "0" / "latent").iterdir()} == {".pkl"}
    assert check_dataset(root).is_good


@pytest.mark.slow
def test_names_and_places_of_pictures_decide_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what a teacher may draw its noise from."""
    generate, asked = WarpTeacher.generate, []

    def noted(self: WarpTeacher, requests: list[TeacherRequest]) -> list[TeacherClip]:
        asked.append({(each.scene, each.trajectory, each.seed) for each in requests})
        return generate(self, requests)

    monkeypatch.setattr(WarpTeacher, "generate", noted)
    make_data(pictures, tmp_path / "a", SETTINGS, ON_CPU)
    (pictures / "scene0.png").rename(pictures / "other.png")
    make_data(pictures, tmp_path / "b", SETTINGS, ON_CPU)
    half = len(asked) // 2
    assert half
    assert set.union(*asked[:half]) == set.union(*asked[half:])
    for kind, suffix in (("rgb", "mp4"), ("latent", "safetensors"), ("pose", "npz"), ("depth", "zip")):
        before, after = (
            (tmp_path / root / "static" / "0" / kind / f"{name}.{suffix}").read_bytes()
            for root, name in (("a", "scene0"), ("b", "other"))
        )
        assert before == after, kind


@pytest.mark.slow
def test_a_bad_picture_is_listed_and_the_rest_goes_on(pictures: Path, tmp_path: Path) -> None:
    """It is tried again only if asked for, and forgotten once it is good."""
    root, bad = tmp_path / "out", pictures / "bad.png"
    bad.write_bytes(b"no picture")
    report = make_data(pictures, root, SETTINGS, ON_CPU)
    assert report.num_scenes == 3
    assert list(report.failures) == ["bad"]
    assert "bad.png must be a PNG" in report.failures["bad"].message
    assert report.failures["bad"].attempts == 1
    assert make_data(pictures, root, SETTINGS, ON_CPU).failures["bad"].attempts == 1
    again = make_data(pictures, root, SETTINGS, replace(ON_CPU, retry_failed=True, clips_per_job=1))
    assert again.failures["bad"].attempts == 2
    assert (again.num_made, again.num_kept) == (0, 6)
    assert "see" in again.as_text()
    assert not list((root / "static").rglob("*bad*"))


@pytest.mark.slow
def test_only_clips_that_failed_are_left_out(pictures: Path, tmp_path: Path) -> None:
    """A run that is killed after the first of several failures of a scene ends as if it had not been."""
    root = tmp_path / "out"
    (pictures / "bad.png").write_bytes(b"no picture")
    add_failure(root, Failure("bad", (4,), "killed after this one", attempts=1))
    add_failure(root, Failure("scene1", (0,), "this one, too", attempts=1))
    report = make_data(pictures, root, SETTINGS, replace(ON_CPU, clips_per_job=1))
    assert report.num_made == 5
    assert report.failures["bad"].trajectories == (0, 4)
    assert report.failures["bad"].attempts == 1
    assert report.failures["scene1"].trajectories == (0,)
    assert make_data(pictures, root, SETTINGS, replace(ON_CPU, retry_failed=True)).num_made == 1
    assert [failure.attempts for failure in read_failures(root).values()] == [2]


def test_failures_of_runs_side_by_side_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when one lists or forgets its own in the middle of another's writing."""
    write = failures.write_whole

    def between(path: Path, content: bytes) -> None:
        monkeypatch.setattr(failures, "write_whole", write)
        add_failure(tmp_path, Failure("b", (4,), "meanwhile"))
        failures.remove_failures(tmp_path, "c", (0,))
        write(path, content)

    add_failure(tmp_path, Failure("c", (0, 4), "earlier", attempts=2))
    monkeypatch.setattr(failures, "write_whole", between)
    add_failure(tmp_path, Failure("a", (0, 10), "now"))
    assert read_failures(tmp_path) == {
        "a": Failure("a", (0, 10), "now"),
        "b": Failure("b", (4,), "meanwhile"),
        "c": Failure("c", (4,), "earlier", attempts=2),
    }
    damaged = next(tmp_path.rglob("a.json"))
    damaged.write_text("{")
    with pytest.raises(ValueError, match=r"a\.json must be JSON .* found damage"):
        read_failures(tmp_path)


@pytest.mark.slow
def test_runs_that_end_together_leave_whole_books(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has looked round before the other's end, and writes after it, does not have the last word."""
    root, write = tmp_path / "out", run.write_manifest
    for seed in range(3, 8):
        save_picture(pictures / f"scene{seed}.png", seed)
    for number in range(6):
        (pictures / f"bad{number}.png").write_bytes(b"no picture %d" % number)
    shards = [replace(ON_CPU, shard=Shard(index, 2)) for index in range(2)]

    def late(folder: Path, manifest: Manifest) -> Path:
        monkeypatch.setattr(run, "write_manifest", write)
        make_data(pictures, root, SETTINGS, shards[1])
        return write(folder, manifest)

    monkeypatch.setattr(run, "write_manifest", late)
    make_data(pictures, root, SETTINGS, shards[0])
    manifest = read_manifest(root)
    assert manifest is not None
    assert list(manifest.scenes) == [f"scene{number}" for number in range(8)]
    listed = json.loads((root / "failures.json").read_text())["failures"]
    assert [failure["scene"] for failure in listed] == [f"bad{number}" for number in range(6)]


@pytest.mark.slow
def test_what_failed_for_a_while_is_made_later(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the card is busy")

    with monkeypatch.context() as patch:
        patch.setattr("lyra_ns.teachers.warp.WarpTeacher.generate", fail)
        report = make_data(pictures, root, SETTINGS, ON_CPU)
    assert {failure.message for failure in report.failures.values()} == {"RuntimeError: the card is busy"}
    assert not (root / "manifest.json").exists()
    report = make_data(pictures, root, SETTINGS, replace(ON_CPU, retry_failed=True))
    assert report.failures == read_failures(root) == {}
    assert not (root / "failures.json").exists()
    assert check_dataset(root).is_good


@pytest.mark.slow
def test_clips_that_a_job_wrote_before_it_failed_are_not_listed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody makes them again, so they would be listed for ever."""
    root = tmp_path / "out"

    def write_first(folder: Path, scene: str, trajectory: int, *arguments: object, **files: object) -> None:
        if trajectory == 4:
            raise RuntimeError("the worker is gone")
        write_clip(folder, scene, trajectory, *arguments, **files)

    with monkeypatch.context() as patch:
        patch.setattr("lyra_ns.make_data.clip_maker.write_clip", write_first)
        report = make_data(pictures, root, SETTINGS, ON_CPU)
    assert {failure.trajectories for failure in report.failures.values()} == {(4,)}
    report = make_data(pictures, root, SETTINGS, replace(ON_CPU, retry_failed=True))
    assert (report.num_made, report.num_kept, report.failures) == (3, 3, {})


def test_full_disk_ends_the_run_in_one_sentence(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "out"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lyra_ns.data.store.write_whole", full)
        with pytest.raises(ValueError, match=r"^No space left on device: free some space"):
            make_data(pictures, root, SETTINGS, ON_CPU)
    assert not (root / "failures.json").exists()
    assert make_data(pictures, root, SETTINGS, ON_CPU).num_made == 6


def test_a_gpu_that_fails_for_good_does_not_make_every_scene_a_failure(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once CUDA has met an illegal access every further call of the process fails."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("lyra_ns.teachers.warp.WarpTeacher.generate", fail)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    with pytest.raises(ValueError, match=r"scene0 left its GPU unusable: .*illegal memory access"):
        make_data(pictures, tmp_path / "out", SETTINGS, ON_CPU)
    assert not read_failures(tmp_path / "out")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert len(make_data(pictures, tmp_path / "out", SETTINGS, ON_CPU).failures) == 3


@pytest.mark.slow
def test_a_lost_gpu_leaves_the_work_to_the_others(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They make all that is left but its own scene, which the next run makes."""
    root, generate, lost = tmp_path / "out", WarpTeacher.generate, []

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    def fail_first(self: WarpTeacher, requests: list[TeacherRequest]) -> list[TeacherClip]:
        if not lost:
            lost.append(self)
            fail()
        assert self is not lost[0], "a lost worker gets no further job"
        return generate(self, requests)

    def two_workers(stage: workers.Stage, *_: object) -> list[LocalWorker]:
        return [LocalWorker(stage, "cpu"), LocalWorker(stage, "cpu")]

    with monkeypatch.context() as patch:
        patch.setattr(WarpTeacher, "generate", fail_first)
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "synchronize", fail)
        patch.setattr(run, "local_workers", two_workers)
        message = r"scene scene0 left its GPU unusable: .*1 of 2 workers lost, 2 clips left: run the command"
        with pytest.raises(ValueError, match=message):
            make_data(pictures, root, SETTINGS, ON_CPU)
    assert not read_failures(root)
    manifest = read_manifest(root)
    assert manifest is not None
    assert list(manifest.scenes) == ["scene1", "scene2"]
    report = make_data(pictures, root, SETTINGS, ON_CPU)
    assert (report.num_made, report.num_kept, report.failures) == (2, 4, {})


@pytest.mark.slow
def test_clips_are_written_before_the_next_are_made(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one scene do not all lie in memory; only those that a teacher makes together do."""
    generate, sizes = WarpTeacher.generate, []
    alive: list[weakref.ref[Tensor]] = []

    def noted(self: WarpTeacher, requests: list[TeacherRequest]) -> list[TeacherClip]:
        assert not any(video() is not None for video in alive)
        clips = generate(self, requests)
        sizes.append(len(clips))
        alive.extend(weakref.ref(clip.video) for clip in clips)
        return clips

    monkeypatch.setattr(WarpTeacher, "generate", noted)
    three = replace(SETTINGS, trajectories=(0, 1, 4))
    for samples_at_once, expected in ((1, [1] * 9), (2, [2, 1] * 3)):
        sizes.clear()
        teacher = TeacherChoice(device="cpu", samples_at_once=samples_at_once)
        root = tmp_path / f"out{samples_at_once}"
        assert make_data(pictures, root, replace(three, teacher=teacher), ON_CPU).num_made == 9
        assert sizes == expected
    with pytest.raises(ValueError, match="samples_at_once of 1 or more, found 0"):
        replace(three, teacher=TeacherChoice(samples_at_once=0))


def test_a_refused_run_leaves_nothing(pictures: Path, tmp_path: Path) -> None:
    """No plan and no folder that was not there before."""
    without_weights = replace(SETTINGS, teacher=TeacherChoice(teacher="gen3c"))
    (tmp_path / "there").mkdir()
    for output in (tmp_path / "new" / "out", tmp_path / "there"):
        with pytest.raises(ValueError, match="needs weights"):
            make_data(pictures, output, without_weights, ON_CPU)
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "there").iterdir())


@pytest.mark.slow
def test_a_refused_run_leaves_what_others_made(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    (pictures / "bad.png").write_bytes(b"no picture")
    make_data(pictures, root, SETTINGS, ON_CPU)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    save_picture(pictures / "new.png", 9)
    with pytest.raises(ValueError, match="was planned with"):
        make_data(pictures, root, replace(SETTINGS, seed=5), ON_CPU)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_run_that_made_nothing_but_failures_keeps_its_plan(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are listed by the names of the plan."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WarpTeacher, "generate", full)
    root = tmp_path / "out"
    (pictures / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="No space left"):
        make_data(pictures, root, SETTINGS, ON_CPU)
    assert (root / "plan.json").exists()
    assert json.loads((root / "failures.json").read_text())["failures"][0]["scene"] == "bad"


def test_places_that_get_in_each_others_way(pictures: Path, tmp_path: Path) -> None:
    for output in (pictures / "out", pictures, tmp_path):
        with pytest.raises(ValueError, match="must lie outside"):
            make_data(pictures, output, SETTINGS, ON_CPU)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder"):
        make_data(pictures, tmp_path / "file", SETTINGS, ON_CPU)
    assert not list(pictures.glob("plan.json"))


@pytest.mark.slow
def test_latents_of_another_codec_are_refused(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    make_data(pictures, root, SETTINGS, ON_CPU)
    record = root / "static" / "0" / "meta" / "scene0.json"
    record.write_text(record.read_text().replace(load_codec("linear").spec.digest, "other"))
    save_picture(pictures / "new.png", 9)
    with pytest.raises(ValueError, match=r"codec linear \(digest other\)"):
        make_data(pictures, root, SETTINGS, ON_CPU)


@pytest.mark.slow
def test_pictures_get_the_depth_that_ships(pictures: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, depth="small", trajectories=(0,))
    assert make_data(pictures, tmp_path / "out", settings, ON_CPU).failures == {}
    assert check_dataset(tmp_path / "out").is_good
    record = json.loads((tmp_path / "out" / "static" / "0" / "meta" / "scene0.json").read_text())
    assert record["scene_scale"]["estimator"] == load_small_depth().name
    depth = LyraStore(tmp_path / "out").scene("scene0").clips[0].depth([0])
    assert depth.min() > 0
    assert depth.std() > 0


def moving_cameras(num_frames: int, motion: float = 0.02) -> CameraPath:
    along = torch.linspace(0, 1, num_frames)[:, None]
    centres = along * torch.tensor([motion, 0.0, 0.0])
    poses = look_at(centres, centres + torch.tensor([0.0, 0.0, 1.0]))
    lens = torch.tensor([80.0, 80.0, 48.0, 32.0]).expand(num_frames, 4)
    return CameraPath(poses, lens, along[:, 0], 64, 96)


@pytest.fixture
def vipe(tmp_path: Path) -> Path:
    """ViPE's output of a camera that moves a little."""
    return write_vipe(tmp_path / "vipe")


def write_vipe(root: Path, motion: float = 0.02) -> Path:
    """ViPE's output for a video that gets brighter, of a wall at depth 1 that the camera moves along."""
    num_frames = 11
    light = torch.linspace(0.4, 1.0, num_frames)[:, None, None, None]
    frames = (smooth_picture(5).float() * light).round().to(torch.uint8)
    write_clip(root.parent / "one", "street", 0, moving_cameras(num_frames, motion), rgb=frames)
    for kind in ("rgb", "pose", "intrinsics"):
        (root / kind).mkdir(parents=True)
        for path in (root.parent / "one" / "0" / kind).iterdir():
            path.rename(root / kind / path.name)
    (root / "depth").mkdir()
    (root / "depth" / "street.zip").write_bytes(depth_bytes(torch.ones(num_frames, 64, 96)))
    return root


@pytest.mark.slow
def test_videos_become_twelve_views_in_forward_time(vipe: Path, tmp_path: Path) -> None:
    """Those of the reversed video, too, with poses in the order of their frames."""
    root = tmp_path / "out"
    report = make_data(vipe, root, SETTINGS, ON_CPU)
    assert report.failures == {}
    assert (root / "dynamic" / "10").is_dir()
    store = LyraStore(root, flipped_pose_order="as_is")
    assert store.is_dynamic
    clips = store.clips("street")
    assert list(clips) == [0, 4, 6, 10]
    assert check_dataset(root).is_good
    source = moving_cameras(9).camera_to_world
    for number, clip in clips.items():
        light = clip.rgb().float().mean((1, 2, 3))
        assert (light.diff() > 0).all(), number
        near = 0 if number < 6 else -1
        moved = clip.cameras().camera_to_world[:, :3, 3] - source[[0, -1]][near][:3, 3]
        assert moved[near].norm() < 0.01 < moved[-1 - near].norm(), number
    made = clips[10].rgb().flip(0)
    assert deviation(clips[10].latents(), made) < 0.15 < deviation(clips[10].latents(), made.flip(0))
    record = json.loads((root / "dynamic" / "10" / "meta" / "street.json").read_text())
    assert record["is_flipped"]
    assert record["path"]["kind"] == "zoom_in"
    assert record["scene_scale"]["estimator"] == "vipe"


@pytest.mark.slow
@pytest.mark.parametrize("motion", [0.0, 0.6])
def test_own_dynamic_data_are_read_as_written_however_the_source_camera_moves(
    tmp_path: Path, motion: float
) -> None:
    root = tmp_path / "out"
    make_data(write_vipe(tmp_path / "vipe", motion), root, SETTINGS, ON_CPU)
    store = LyraStore(root)
    written = LyraStore(root, flipped_pose_order="as_is").clips("street")
    turned = LyraStore(root, flipped_pose_order="reverse").clips("street")
    assert check_dataset(root).pose_orders == {"street": "as_is"}
    for number, clip in store.clips("street").items():
        poses = clip.cameras().camera_to_world
        assert torch.equal(poses, written[number].cameras().camera_to_world)
        assert turned[number].reverse_poses == (number >= 6)
    (root / "manifest.json").unlink()
    # Without the manifest's word the ends of paths are asked, which a moving source camera misleads.
    assert LyraStore(root).stored_pose_order("street") == ("reverse" if motion else "as_is")


def test_videos_that_are_too_short_fail_alone(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    frames = smooth_picture(3).expand(9, -1, -1, -1)
    (folder / "long.mp4").write_bytes(video_bytes(frames))
    (folder / "short.mp4").write_bytes(video_bytes(frames[:4]))
    report = make_data(folder, tmp_path / "out", replace(SETTINGS, flipped=False), ON_CPU)
    assert list(report.failures) == ["short"]
    assert "found 4 frames" in report.failures["short"].message
    assert check_dataset(tmp_path / "out").is_good


def test_clips_without_latents_are_encoded(tmp_path: Path) -> None:
    """With their own cameras; depth is kept where it is stored, else estimated in units of the cameras."""
    given, root = tmp_path / "given", tmp_path / "out"
    cameras = replace(moving_cameras(9), intrinsics=moving_cameras(9).intrinsics / 2, height=32, width=48)
    rgb = smooth_picture(1, 32, 48).expand(9, -1, -1, -1)
    depth = torch.full((9, 32, 48), 3.0)
    write_clip(given / "static", "hall", 0, cameras, rgb=rgb, depth=depth)
    write_clip(given / "static", "hall", 2, cameras, rgb=rgb)
    settings = replace(SETTINGS, teacher=TeacherChoice(teacher="replay", device="cpu"), pose_scale=0.5)
    report = make_data(given, root, settings, ON_CPU)
    assert report.failures == {}
    assert check_dataset(root).is_good
    clips = LyraStore(root).clips("hall")
    assert list(clips) == [0, 2]
    expected = latents_of_frames(load_codec("linear"), LyraStore(given).clips("hall")[0].rgb(), "cpu")
    assert torch.equal(clips[0].latents(), expected)
    assert torch.allclose(clips[0].cameras().camera_to_world, cameras.camera_to_world, atol=1e-6)
    assert torch.equal(clips[0].depth(), depth)
    assert torch.allclose(clips[2].depth(), torch.full_like(depth, 2.0), rtol=2e-3)
    record = json.loads((root / "static" / "2" / "meta" / "hall.json").read_text())
    assert record["depth"].startswith("plane")
    assert record["path"] is None
    assert record["scene_scale"]["pose_scale"] == 0.5


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_clips_of_vipe_are_still_unless_told_otherwise(vipe: Path, tmp_path: Path, is_dynamic: bool) -> None:
    """Their files do not say whether anything moves; readers and training go by what is written here."""
    root, teacher = tmp_path / "out", TeacherChoice(teacher="replay", device="cpu")
    settings = replace(SETTINGS, teacher=teacher, dynamic=is_dynamic)
    assert make_data(vipe, root, settings, ON_CPU).failures == {}
    store = LyraStore(root)
    assert store.is_dynamic == is_dynamic
    assert store.trajectory_root.name == ("dynamic" if is_dynamic else "static")
    assert list(store.clips("street")) == [0]
    assert check_dataset(root).is_good
    with pytest.raises(ValueError, match="scenes, now the input has"):
        make_data(vipe, root, replace(settings, dynamic=not is_dynamic), ON_CPU)


@pytest.mark.slow
def test_prompts_become_pictures_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which stay, so that a second run asks no model; what a model refuses is listed."""
    prompts, root, asked = tmp_path / "prompts.txt", tmp_path / "out", []
    prompts.write_text("A red door\nA street\nsomething forbidden\n")

    def load(model: str, device: torch.device, memory: str) -> object:
        def picture(prompt: str, height: int, width: int, seed: int) -> Tensor:
            asked.append((model, prompt))
            assert (height, width) == (64, 96), "pictures of small clips are kept at twice their size"
            if "forbidden" in prompt:
                raise ValueError("the model refuses to show this")
            return smooth_picture(seed, 64, 96)

        return picture

    monkeypatch.setattr("lyra_ns.text.to_image.load_text_to_image", load)
    settings = replace(SETTINGS, text_to_image="painter")
    report = make_data(prompts, root, settings, ON_CPU)
    assert [failure.message for failure in report.failures.values()] == ["the model refuses to show this"]
    assert (report.num_made, report.num_scenes) == (4, 2)
    assert len(list((root / "inputs").glob("*.png"))) == 2
    assert ("painter", "A street") in asked
    asked.clear()
    for pose in (root / "static" / "0" / "pose").iterdir():
        pose.unlink()
    assert make_data(prompts, root, settings, ON_CPU).num_made == 2
    assert asked == []
    record = next((root / "static" / "0" / "meta").glob("a_red_door-*.json"))
    assert json.loads(record.read_text())["prompt"] == "A red door"


@dataclass(frozen=True)
class SkewedDepth:
    """The true depth of a slope, wrong by a scale and shift of its inverse that change with the image."""

    truth: PlaneDepth
    name: str = "skewed"

    def predict(self, image: Tensor, intrinsics: Tensor | None = None) -> DepthPrediction:
        found = self.truth.predict(image, intrinsics)
        light = float(image.mean())
        return replace(found, depth=1 / ((1 + light) / found.depth + 0.3 * light))


def test_estimated_depth_is_brought_to_the_units_of_the_cache() -> None:
    """Scale and shift of every frame are found; a frame that sees nothing known takes those before it."""
    slope = PlaneDepth(distance=2.0, slope_x=0.4)
    still = replace(moving_cameras(4), camera_to_world=torch.eye(4).repeat(4, 1, 1))
    away = still.camera_to_world.clone()
    away[3, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    image = smooth_picture(2).float() / 255
    truth = slope.predict(image, still.intrinsics[0]).depth
    cache = SceneCache.from_image(image, truth, still[:1])
    light = torch.tensor([0.2, 0.5, 0.9, 0.9])[:, None, None, None]
    video = (image * light * 255).round().to(torch.uint8)
    depth = estimated_depth(video, replace(still, camera_to_world=away), cache, SkewedDepth(slope))
    assert torch.allclose(depth, truth.expand_as(depth), rtol=1e-2)
    with pytest.raises(ValueError, match="expected depth of both"):
        estimated_depth(video[3:], replace(still, camera_to_world=away)[3:], cache, SkewedDepth(slope))


def test_depth_of_a_still_video_is_aligned_to_its_first_frame() -> None:
    truth = 1 + torch.rand(16, 24, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    moving = truth * scales
    moving[:, 4:8, 4:8] = torch.tensor([1.0, 0.7, 0.3])[:, None, None]
    aligned = aligned_sequence(moving)
    assert torch.allclose(aligned[1:, 8:], truth[8:].expand(2, -1, -1), rtol=2e-2)


def test_only_what_all_jobs_meet_counts_as_fatal() -> None:
    assert workers._is_fatal(OSError(errno.ENOSPC, "full"))
    assert workers._is_fatal(DoesNotFit("clips of this size need 90 GiB"))
    assert not workers._is_fatal(PermissionError(errno.EACCES, "one picture may not be read"))
    assert not workers._is_fatal(ValueError("one bad picture"))
