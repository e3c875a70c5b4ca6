"""What a data set will hold: scenes of an input, their names, draws and splits, decided once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lyra_ns.cameras import CameraPath
from lyra_ns.data.check import check_dataset
from lyra_ns.data.pose_order import order_of_ends
from lyra_ns.data.store import write_clip
from lyra_ns.data.video import video_bytes
from lyra_ns.make_data.clip_maker import in_forward_time, noise_seed, scene_path
from lyra_ns.make_data.plan import Plan, Shard, chosen_scenes, extended_plan, missing_jobs
from lyra_ns.make_data.run import RunOptions, make_data
from lyra_ns.make_data.settings import MakeDataSettings, settings_digest
from lyra_ns.make_data.sources import FoundScene, FoundScenes, find_scenes
from lyra_ns.teachers.base import TeacherClip
from lyra_ns.teachers.registry import TeacherChoice
from tests.helpers.small_make_data import ON_CPU

SETTINGS = MakeDataSettings(height=32, width=48, num_frames=9, depth="plane")


def save_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures, of which two have one name and two one content."""
    folder = tmp_path / "pictures"
    save_picture(folder / "cat.png", 0)
    save_picture(folder / "old" / "cat.png", 1)
    save_picture(folder / "dog one.png", 2)
    save_picture(folder / "twin.png", 2)
    (folder / "cat.txt").write_text("a cat\non a mat\n")
    return folder


def still_camera(num_frames: int, shift: float = 0.0) -> CameraPath:
    poses = torch.eye(4).repeat(num_frames, 1, 1)
    poses[:, 0, 3] = torch.linspace(0, shift, num_frames)
    lens = torch.tensor([40.0, 40.0, 24.0, 16.0]).repeat(num_frames, 1)
    return CameraPath(poses, lens, torch.linspace(0, 1, num_frames), 32, 48)


def test_scenes_are_told_by_content(pictures: Path, tmp_path: Path) -> None:
    found = find_scenes(pictures)
    assert [scene.source for scene in found.scenes] == ["cat.png", "old/cat.png", "dog one.png"]
    assert found.scenes[0].prompt == "a cat on a mat"
    plan = extended_plan(tmp_path / "out", SETTINGS, found)
    digests = {scene.source: scene.digest[:8] for scene in found.scenes}
    assert set(plan.scenes) == {f"cat-{digests['cat.png']}", f"cat-{digests['old/cat.png']}", "dog_one"}


ODD_NAMES = (
    "a b.png", "a_b.png", "a  b.png", "Cat.png", "cat.png", "cat.jpeg", "Dog.png", "dog.png", "caf\u00e9.png",
    "cafe\u0301.png", "日本 の 庭.png", "'quoted' $(x); &.png", "-o.png", "…png.png", "#1.webp",
    "line\nbreak.png",
    "deep er/a b.png", "x" * 240 + ".png", "庭" * 80 + ".png",
)  # fmt: skip


@pytest.mark.slow
def test_no_picture_is_lost_by_its_name(tmp_path: Path) -> None:
    """Not even where names become equal when cleaned, or on disks that take capitals for small letters."""
    folder = tmp_path / "in put"
    for seed, name in enumerate(ODD_NAMES):
        save_picture(folder / name, seed)
    report = make_data(folder, tmp_path / "out put", replace(SETTINGS, trajectories=(0,)), ON_CPU)
    assert report.failures == {}
    assert report.num_made == report.num_scenes == len(ODD_NAMES)
    plan = json.loads((tmp_path / "out put" / "plan.json").read_text())
    assert {scene["source"] for scene in plan["scenes"].values()} == {*ODD_NAMES}
    assert len({name.casefold() for name in plan["scenes"]}) == len(ODD_NAMES)
    assert check_dataset(tmp_path / "out put").is_good


def test_names_differ_where_the_starts_of_digests_do_not(tmp_path: Path) -> None:
    """As two of many thousand pictures that all have one name."""
    digests = [f"{'0' * 8}{number:024x}" for number in range(3)]
    scenes = [FoundScene("image", "image", f"{digest}/image.png", digest) for digest in digests]
    scenes.append(FoundScene("image-00000000", "image", "image-00000000.png", "1" * 32))
    plan = extended_plan(tmp_path, SETTINGS, FoundScenes(scenes, False, {}))
    assert {scene.digest for scene in plan.scenes.values()} == {*digests, "1" * 32}


def test_what_is_left_out_is_told(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pictures / "photo.heic").write_bytes(b"of a telephone")
    find_scenes(pictures)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert messages == [
        "left out, being no images: photo.heic",
        "left out, having the content of others: twin.png (dog one.png)",
    ]


def test_names_that_cannot_be_written_down_are_told(pictures: Path) -> None:
    # Told as a picture that is there twice, its name would end pytest's workers: they write UTF-8.
    (pictures / "twin.png").unlink()
    (pictures / "dog one.png").rename(os.fsdecode(os.fsencode(pictures) + b"/caf\xe9.png"))
    with pytest.raises(ValueError, match=r"names in UTF-8, found 'caf\\udce9\.png'"):
        find_scenes(pictures)


def test_clips_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    for name in ("hall.mp4", "hall.mov", "hall.json"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="found trajectory 0 of scene hall 2 times"):
        find_scenes(tmp_path, as_clips=True)


def test_still_scenes_are_not_called_dynamic(pictures: Path, tmp_path: Path) -> None:
    """And what is a data set says itself what it is."""
    write_clip(tmp_path / "data" / "static", "hall", 0, still_camera(9), rgb=torch.zeros(9, 3, 32, 48).byte())
    for source in (pictures, tmp_path / "data"):
        with pytest.raises(ValueError, match=r"found still ones .*--dynamic is for clips"):
            find_scenes(source, as_clips=source != pictures, is_dynamic=True)
    assert settings_digest(replace(SETTINGS, dynamic=True)) == settings_digest(SETTINGS)


def test_prompts_are_told_apart_by_more_than_their_first_words(tmp_path: Path) -> None:
    start = "a very long corridor with a red carpet"
    prompts = [f"{start} {number}" for number in range(3)] + [
        "ein Haus",
        "ein  Haus",
        "家",
        "!!!",
        "नदी के पास",
    ]
    (tmp_path / "my prompts.txt").write_text("\n".join([*prompts, prompts[0]]), encoding="utf-8")
    found = find_scenes(tmp_path / "my prompts.txt")
    plan = extended_plan(tmp_path / "out", SETTINGS, found)
    assert sorted(scene.source for scene in plan.scenes.values()) == sorted(prompts)


def test_plan_does_not_depend_on_order(pictures: Path, tmp_path: Path) -> None:
    found = find_scenes(pictures)
    extended_plan(tmp_path / "a", SETTINGS, found)
    turned = replace(found, scenes=found.scenes[::-1])
    extended_plan(tmp_path / "b", SETTINGS, turned)
    assert (tmp_path / "a" / "plan.json").read_bytes() == (tmp_path / "b" / "plan.json").read_bytes()


def test_scenes_that_come_later_change_nothing(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    before = extended_plan(root, SETTINGS, find_scenes(pictures))
    for seed in range(10, 30):
        save_picture(pictures / f"new{seed}.png", seed)
    save_picture(pictures / "more" / "dog one.png", 99)
    after = extended_plan(root, SETTINGS, find_scenes(pictures))
    assert len(after.scenes) == len(before.scenes) + 21
    assert {name: after.scenes[name] for name in before.scenes} == before.scenes
    assert any(name.startswith("dog_one-") for name in after.scenes)
    chosen = chosen_scenes(after, find_scenes(pictures / "more").scenes)
    assert [(scene.name[:8], scene.source) for scene in chosen] == [("dog_one-", "dog one.png")]


def test_splits_of_the_source_hold_under_other_names(tmp_path: Path) -> None:
    """What was held out is not trained on because its name had to be cleaned."""
    names = [f"room {number}" for number in range(6)]
    scenes = [FoundScene(name.replace(" ", "_"), "clips", name, name, None, (0,)) for name in names]
    for test in (names[:3], names[3:]):
        splits = {"train": sorted({*names} - {*test}), "test": test}
        plan = extended_plan(tmp_path / test[0], SETTINGS, FoundScenes(scenes, False, splits))
        assert plan.splits["test"] == [name.replace(" ", "_") for name in test]


def test_other_settings_are_refused(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    extended_plan(root, replace(SETTINGS, seed=3), find_scenes(pictures))
    extended_plan(root, SETTINGS, find_scenes(pictures))  # Nothing was made by the earlier plan.
    (root / "static").mkdir()
    with pytest.raises(ValueError, match="seed = 0, now 1"):
        extended_plan(root, replace(SETTINGS, seed=1), find_scenes(pictures))
    with pytest.raises(ValueError, match="guidance = null, now 2"):
        extended_plan(root, replace(SETTINGS, teacher=TeacherChoice(guidance=2.0)), find_scenes(pictures))
    with pytest.raises(ValueError, match="still scenes, now the input has moving"):
        extended_plan(root, SETTINGS, FoundScenes([], True, {}))
    elsewhere = TeacherChoice(device="cpu", samples_at_once=4)
    assert settings_digest(replace(SETTINGS, teacher=elsewhere)) == settings_digest(SETTINGS)
    assert settings_digest(replace(SETTINGS, teacher=TeacherChoice(guidance=0.0))) != settings_digest(
        SETTINGS
    )


def test_damaged_plans_and_foreign_data_are_refused(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    (root / "static").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"found static without plan\.json"):
        extended_plan(root, SETTINGS, find_scenes(pictures))
    (root / "plan.json").write_text('{"format": ')
    with pytest.raises(ValueError, match="found damage"):
        extended_plan(root, SETTINGS, find_scenes(pictures))


def test_a_scene_of_several_is_held_out_and_stays_so(pictures: Path, tmp_path: Path) -> None:
    plan = extended_plan(tmp_path / "out", SETTINGS, find_scenes(pictures))
    assert len(plan.splits["test"]) == 1
    assert len(plan.splits["train"]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "must hold images"),
        ({"readme.md": b""}, "found 1 other files"),
        ({"a.png": b"", "b.mp4": b""}, "must hold images or videos, found 1 and 1"),
    ],
)
def test_useless_folders_are_refused(tmp_path: Path, content: dict[str, bytes], message: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        find_scenes(folder)


def test_missing_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_scenes(tmp_path / "nowhere")


def test_videos_make_moving_scenes_and_prompts_still_ones(tmp_path: Path) -> None:
    videos, prompts = tmp_path / "videos", tmp_path / "prompts.txt"
    videos.mkdir()
    (videos / "walk.mp4").write_bytes(video_bytes(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)))
    prompts.write_text("# two\nA red door, ajar.\nA quiet street\n")
    found = find_scenes(videos)
    assert found.is_dynamic
    assert found.scenes[0].kind == "video"
    plan = extended_plan(tmp_path / "out", SETTINGS, found)
    assert plan.scenes["walk"].trajectories == tuple(range(12))
    unflipped = extended_plan(tmp_path / "out2", replace(SETTINGS, flipped=False), found)
    assert unflipped.scenes["walk"].trajectories == tuple(range(6))
    written = find_scenes(prompts)
    assert not written.is_dynamic
    assert [scene.prompt for scene in written.scenes] == ["A quiet street", "A red door, ajar."]
    assert written.scenes[1].name.startswith("a_red_door_ajar-")


def test_clips_keep_their_own_trajectories_and_splits(tmp_path: Path) -> None:
    root, video = tmp_path / "clips", torch.zeros(9, 3, 32, 48, dtype=torch.uint8)
    for number in (0, 3):
        write_clip(root / "static", "hall", number, still_camera(9), rgb=video)
    found = find_scenes(root)
    assert [(scene.kind, scene.trajectories) for scene in found.scenes] == [("clips", (0, 3))]
    plan = extended_plan(tmp_path / "out", SETTINGS, replace(found, splits={"train": [], "test": ["hall"]}))
    assert plan.scenes["hall"].split == "test"
    assert plan.scenes["hall"].trajectories == (0, 3)


def test_paths_follow_from_content_and_number_alone() -> None:
    def poses(digest: str, trajectory: int) -> torch.Tensor:
        path = scene_path(SETTINGS, digest, trajectory, still_camera(1), 1.0)
        return path.cameras.camera_to_world

    assert torch.equal(poses("a", 0), poses("a", 0))
    assert not torch.equal(poses("a", 0), poses("b", 0))
    assert not torch.equal(poses("a", 0), poses("a", 6))
    assert len({noise_seed(0, digest, number) for digest in "ab" for number in range(12)}) == 24


def test_reversed_clips_are_turned_back_with_their_poses() -> None:
    """The camera comes home at the last frame, as the reader of data sets expects; latents stay."""
    source = still_camera(9, shift=0.01)
    path = scene_path(SETTINGS, "a", 6, source, 1.0)
    assert path.is_flipped
    assert torch.allclose(path.cameras.camera_to_world[0], source.camera_to_world[-1])
    frames = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 32, 48)
    z = torch.randn(16, 2, 4, 6)
    clip, cameras = in_forward_time(TeacherClip(z, frames, frames[:, 0].float()), path.cameras)
    assert clip.video[:, 0, 0, 0].tolist() == list(range(9))[::-1]
    assert clip.depth is not None
    assert clip.depth[0, 0, 0] == 8
    assert clip.z is z
    assert torch.allclose(cameras.camera_to_world[-1], source.camera_to_world[-1])
    assert order_of_ends([cameras.camera_to_world], source.camera_to_world[0]) == "as_is"


def test_jobs_cover_what_is_missing_once(pictures: Path, tmp_path: Path) -> None:
    plan = extended_plan(tmp_path / "out", SETTINGS, find_scenes(pictures))
    scenes = list(plan.scenes.values())
    done = {scenes[0].name: {0, 1, 5}, scenes[1].name: set(range(6))}
    jobs = list(missing_jobs(scenes, done, clips_per_job=2))
    assert [(job.scene.name, job.trajectories) for job in jobs] == [
        (scenes[0].name, (2, 3)), (scenes[0].name, (4,)),
        *((scenes[2].name, numbers) for numbers in ((0, 1), (2, 3), (4, 5))),
    ]  # fmt: skip
    assert [job.trajectories for job in missing_jobs(scenes[:1], done)] == [(2, 3, 4)]


def test_shards_share_the_scenes(pictures: Path, tmp_path: Path) -> None:
    for seed in range(10, 22):
        save_picture(pictures / f"{seed}.png", seed)
    plan: Plan = extended_plan(tmp_path / "out", SETTINGS, find_scenes(pictures))
    parts = [
        {name for name, scene in plan.scenes.items() if Shard.parse(f"{index}/3").holds(scene)}
        for index in range(3)
    ]
    assert set.union(*parts) == set(plan.scenes)
    assert sum(map(len, parts)) == len(plan.scenes)
    assert all(parts)
    for wrong in ("3/3", "1", "a/b", "-1/2"):
        with pytest.raises(ValueError, match="such as 0/4"):
            Shard.parse(wrong)


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes in ({"height": 33}, {"num_frames": 10}, {"trajectories": (0, 6)}, {"trajectories": ()}):
        with pytest.raises(ValueError, match="expected"):
            replace(SETTINGS, **changes)


def test_plan_is_plain_json(pictures: Path, tmp_path: Path) -> None:
    extended_plan(tmp_path / "out", SETTINGS, find_scenes(pictures))
    content = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert content["settings"]["teacher"]["teacher"] == "warp"
    assert content["settings_digest"] == settings_digest(SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("centre_quantile", 1.0), ("fov_x", 180.0), ("distance_factor", float("inf")), ("pose_scale", 0.0)],
)
def test_numbers_with_which_every_clip_would_fail_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="field of view" if name == "fov_x" else name):
        replace(SETTINGS, **{name: value})


@pytest.mark.parametrize("name", ["num_workers", "clips_per_job"])
def test_negative_numbers_of_workers_and_clips_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} of 0 or more, found -1"):
        RunOptions(**{name: -1})
