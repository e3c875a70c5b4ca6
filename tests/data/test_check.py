"""check_dataset: every kind of bad clip is found, named, and nothing else is."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from lyra_ns.data.check import check_dataset
from lyra_ns.data.depth_files import depth_bytes
from lyra_ns.data.latent_files import write_latents
from lyra_ns.data.store import Manifest, write_manifest
from lyra_ns.data.types import NOVEL_FIRST_ID
from lyra_ns.data.video import video_bytes
from tests.helpers.small_dataset import smooth_video, straight_path, write_small_clip, write_small_dataset


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_small_dataset(tmp_path_factory.mktemp("good"), num_scenes=2)


@pytest.fixture
def root(good, tmp_path):
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_a_good_dataset_passes_and_progress_is_told(good):
    seen = []
    report = check_dataset(good, on_clip=lambda scene, trajectory: seen.append((scene, trajectory)))
    assert report.is_good
    assert (report.num_scenes, report.num_clips) == (2, 14)
    assert report.as_text().endswith("all good")
    assert len(seen) == 14
    assert seen[6] == ("a", NOVEL_FIRST_ID)


class Code:
    def __reduce__(self):
        return os.system, ("true",)


def spoil_cameras(kind, change):
    def spoil(static):
        path = static / "3" / kind / "b.npz"
        with np.load(path) as stored:
            data, ids = stored["data"], stored["inds"]
        np.savez(path, data=change(data), inds=ids)

    return spoil


def with_nan(data):
    data[4, 1, 3] = np.nan
    return data


def other_size(static):
    video = (smooth_video(0)[:, :, :16].transpose(0, 1) * 255).to(torch.uint8).contiguous()
    (static / "3/rgb/b.mp4").write_bytes(video_bytes(video))


def fewer_frames(static):
    video = (smooth_video(0)[:, :9].transpose(0, 1) * 255).to(torch.uint8).contiguous()
    (static / "3/rgb/b.mp4").write_bytes(video_bytes(video))


def pickle_with_code(static):
    torch.save(Code(), static / "3/latent/b.pkl")


BAD = {
    "truncated latent": (lambda s: truncate(s / "3/latent/b.pkl"), "latent", "cut short"),
    "missing latent": (lambda s: (s / "3/latent/b.pkl").unlink(), "latent", "does not exist"),
    "wrong channels": (
        lambda s: write_latents(s / "3/latent/b.pkl", torch.zeros(12, 3, 4, 6)),
        "latent",
        "16 channels in [C, T, h, w], found shape (12, 3, 4, 6)",
    ),
    "swapped axes": (
        lambda s: write_latents(s / "3/latent/b.pkl", torch.zeros(3, 16, 4, 6)),
        "latent",
        "found shape (3, 16, 4, 6)",
    ),
    "too few latent frames": (
        lambda s: write_latents(s / "3/latent/b.pkl", torch.zeros(16, 2, 4, 6)),
        "latent",
        "stands for 9 frames, found a video of 17",
    ),
    "pickle with code": (pickle_with_code, "latent", f"{os.system.__module__}.system; it was not run"),
    "missing depth": (lambda s: (s / "3/depth/b.zip").unlink(), "depth", "does not exist"),
    "truncated depth": (lambda s: truncate(s / "3/depth/b.zip"), "depth", "found damage"),
    "depth of another size": (
        lambda s: (s / "3/depth/b.zip").write_bytes(depth_bytes(torch.ones(17, 16, 24))),
        "depth",
        "32x48 like the clip's video, found 16x24",
    ),
    "too few depth images": (
        lambda s: (s / "3/depth/b.zip").write_bytes(depth_bytes(torch.ones(16, 32, 48))),
        "depth",
        "must have 17 frames, found 16",
    ),
    "NaN pose": (spoil_cameras("pose", with_nan), "cameras", "must be finite"),
    "scaled pose": (spoil_cameras("pose", lambda data: data * 1.2), "cameras", "orthonormal"),
    "intrinsics of another size": (
        spoil_cameras("intrinsics", lambda data: data * 8),
        "rgb",
        "principal point [192.0, 128.0]",
    ),
    "video of another size": (other_size, "latent", "for a 16x48 video, found 4x6"),
    "video of another length": (fewer_frames, "latent", "stands for 17 frames, found a video of 9"),
    "truncated video": (lambda s: truncate(s / "3/rgb/b.mp4"), "cameras", "video"),
    "missing pose": (lambda s: (s / "3/pose/b.npz").unlink(), "cameras", "is stored without pose"),
    "missing intrinsics": (lambda s: (s / "3/intrinsics/b.npz").unlink(), "cameras", "does not exist"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BAD)
def test_each_fault_is_named_with_its_clip(root, fault):
    spoil, what, message = BAD[fault]
    spoil(root / "static")
    report = check_dataset(root)
    assert report.bad_scenes == ["b"]
    found = [problem for problem in report.problems if problem.what == what and message in problem.message]
    assert found, report.as_text()
    assert {problem.trajectory for problem in report.problems} <= {3, None}
    text = report.as_text()
    assert "problems in 1 scenes" in text
    assert " b " in text


def test_missing_trajectory_is_named(root):
    for kind in ("pose", "intrinsics", "latent", "rgb", "depth"):
        next((root / "static" / "4" / kind).glob("a.*")).unlink()
    (problem,) = check_dataset(root).problems
    assert (problem.scene, problem.trajectory, problem.what) == ("a", None, "trajectories")
    assert "found none for [4]" in problem.message


@pytest.mark.slow
def test_held_out_paths_are_checked_too(root):
    (root / "novel/0/rgb/a.mp4").unlink()
    problems = check_dataset(root).problems
    assert {(problem.scene, problem.trajectory) for problem in problems} == {("a", NOVEL_FIRST_ID)}
    assert "novel 0" in check_dataset(root).as_text()


@pytest.mark.slow
def test_depth_may_be_left_out_when_not_required(root):
    (root / "static/3/depth/b.zip").unlink()
    assert check_dataset(root, depth_required=False).is_good
    truncate(root / "static/2/depth/b.zip")
    assert [p.trajectory for p in check_dataset(root, depth_required=False).problems] == [2]


@pytest.mark.slow
def test_manifest_and_folders_are_compared(root):
    listing = {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 3, 4, 5]}
    write_manifest(root, Manifest("linear", 17, 32, 48, listing, {"a": [0], "b": [0]}))
    assert check_dataset(root).is_good
    write_small_clip(root / "static", "c", 0, seed=1, cameras=straight_path((1, 0, 0)))
    (root / "static/5/pose/a.npz").unlink()
    listed = [(p.scene, p.trajectory) for p in check_dataset(root).problems if p.what == "listing"]
    assert listed == [("a", 5), ("c", 0)]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no numbered trajectory folders"):
        check_dataset(tmp_path)
