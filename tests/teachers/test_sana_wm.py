"""SANA-WM as a teacher, end to end with a small pipeline of the real classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lyra_ns.codec.registry import load_codec
from lyra_ns.teachers.base import CameraVideoTeacher, TeacherClip, TeacherRequest, latents_of_frames
from lyra_ns.teachers.sana_wm import SanaWmSettings, SanaWmTeacher, load_sana_wm
from tests.helpers.cache_scenes import FOCAL, picture
from tests.helpers.small_pipelines import small_sana_wm, small_wan_vace
from tests.helpers.teacher_requests import (
    NUM_FRAMES,
    path_to_the_right,
    request_for_a_box,
    same_from_elsewhere,
)

SETTINGS = SanaWmSettings(steps=2, height=64, width=96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved weights."""
    folder = tmp_path_factory.mktemp("weights") / "sana"
    small_sana_wm().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> SanaWmTeacher:
    """The teacher, loaded through our API."""
    return load_sana_wm(str(folder), load_codec("linear"), settings=SETTINGS)


def request_without_cache(**changes: object) -> TeacherRequest:
    """A request that comes with nothing but a picture and cameras."""
    return request_for_a_box(cache=None, **changes)


@pytest.fixture(scope="module")
def clip(teacher: SanaWmTeacher) -> TeacherClip:
    """The clip of the plain request."""
    return teacher.generate([request_without_cache()])[0]


def test_clip_fits_the_request(teacher: SanaWmTeacher, clip: TeacherClip) -> None:
    """Frames of the size and number of the cameras, and the latents that our codec makes of them."""
    assert isinstance(teacher, CameraVideoTeacher)
    assert not teacher.needs_cache
    assert clip.video.shape == (NUM_FRAMES, 3, 40, 56)
    assert clip.video.float().std() > 5
    assert torch.equal(clip.z, latents_of_frames(teacher.codec, clip.video, "cpu"))
    assert clip.depth is None
    assert (clip.notes["made_height"], clip.notes["made_width"]) == (64, 96)


def test_cameras_are_relative_to_the_first_and_in_the_models_pixels(teacher: SanaWmTeacher) -> None:
    """The world of the request does not matter, its scale does; intrinsics are those of stretched frames."""
    request = request_without_cache()
    poses, intrinsics = teacher.cameras(request)
    moved, _ = teacher.cameras(replace(request, cameras=same_from_elsewhere(request.cameras)))
    doubled, _ = replace(teacher, settings=replace(SETTINGS, pose_scale=2.0)).cameras(request)
    assert poses.shape == (NUM_FRAMES, 4, 4)
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-6)
    np.testing.assert_allclose(poses[-1, :3, 3], [0.4 * 8 / 9, 0, 0], atol=1e-6)
    np.testing.assert_allclose(moved, poses, atol=1e-5)
    np.testing.assert_allclose(doubled[-1, :3, 3], 2 * poses[-1, :3, 3], atol=1e-6)
    np.testing.assert_allclose(intrinsics[3], [FOCAL * 96 / 56, FOCAL * 64 / 40, 48, 32], rtol=1e-5)


@pytest.mark.slow
def test_clips_depend_on_their_request_alone(teacher: SanaWmTeacher, clip: TeacherClip) -> None:
    """The same request gives the same clip, whatever is made before it or beside it."""
    beside = request_without_cache(seed=2, prompt="a green field")
    together = teacher.generate([beside, request_without_cache()])
    assert torch.equal(together[1].video, clip.video)
    assert torch.equal(together[0].video, teacher.generate([beside])[0].video)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"prompt": "a green field"},
        {"negative_prompt": "green"},
        {"image": picture(1).float()},
        {"cameras": path_to_the_right(-0.8)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_clip_depends_on(
    teacher: SanaWmTeacher, clip: TeacherClip, changes: dict[str, object]
) -> None:
    """Seed, texts, picture and cameras reach the pipeline."""
    other = teacher.generate([request_without_cache(**changes)])[0]
    assert not torch.equal(other.video, clip.video)


def test_progress_over_all_clips(teacher: SanaWmTeacher) -> None:
    """Steps count over all requests."""
    seen: list[tuple[int, int]] = []
    teacher.generate([request_without_cache()] * 2, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_sizes_that_cannot_be_served(teacher: SanaWmTeacher, folder: Path) -> None:
    """Another aspect than the model's, before anything is made; a size that its autoencoder cannot take."""
    square = replace(path_to_the_right(), height=40, width=40)
    request = request_without_cache(cameras=square, image=torch.rand(3, 40, 40))
    with pytest.raises(ValueError, match=r"64x96 .* found 40x40"):
        teacher.generate([request_without_cache(), request])
    with pytest.raises(ValueError, match="multiples of 32, found 60x96"):
        load_sana_wm(str(folder), load_codec("linear"), settings=replace(SETTINGS, height=60))


def test_weights_of_another_model(tmp_path: Path) -> None:
    """Named before they are read."""
    small_wan_vace().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected the weights of a SanaWMPipeline .* WanVACEPipeline"):
        load_sana_wm(str(tmp_path), load_codec("linear"))
