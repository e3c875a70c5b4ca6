"""Wan VACE as a teacher, end to end with a small pipeline of the real classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lyra_ns.codec.registry import load_codec
from lyra_ns.pretrained import diffusers_class
from lyra_ns.teachers.base import CameraVideoTeacher, TeacherClip, latents_of_frames
from lyra_ns.teachers.wan_vace import WanVaceSettings, WanVaceTeacher, load_wan_vace
from lyra_ns.teachers.warp import warped_frames
from tests.helpers.cache_scenes import picture
from tests.helpers.checked_types import unchecked
from tests.helpers.small_pipelines import small_stable_diffusion, small_wan_vace
from tests.helpers.teacher_requests import NUM_FRAMES, path_to_the_right, request_for_a_box

SETTINGS = WanVaceSettings(steps=2, smallest_area=64 * 96)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> WanVaceTeacher:
    """The teacher, saved and loaded through our API."""
    folder = tmp_path_factory.mktemp("weights") / "vace"
    small_wan_vace().save_pretrained(folder)
    return load_wan_vace(str(folder), load_codec("linear"), settings=SETTINGS)


@pytest.fixture(scope="module")
def clip(teacher: WanVaceTeacher) -> TeacherClip:
    """The clip of the plain request."""
    return teacher.generate([request_for_a_box()])[0]


def test_clip_fits_the_request(teacher: WanVaceTeacher, clip: TeacherClip) -> None:
    """Frames of the size and number of the cameras, and the latents that our codec makes of them."""
    assert isinstance(teacher, CameraVideoTeacher)
    assert clip.video.shape == (NUM_FRAMES, 3, 40, 56)
    assert clip.video.dtype == torch.uint8
    assert clip.video.float().std() > 5
    assert torch.equal(clip.z, latents_of_frames(teacher.codec, clip.video, "cpu"))
    assert clip.depth is None
    assert (clip.notes["made_height"], clip.notes["made_width"]) == (64, 96)
    assert 0.5 < clip.notes["share_seen"] < 1


def test_control_shows_the_cache_and_marks_its_holes(teacher: WanVaceTeacher) -> None:
    """The picture first, all known; then what the cache shows, grey and to be made where it shows nothing."""
    own_size = replace(teacher, settings=replace(SETTINGS, smallest_area=0))
    request = request_for_a_box()
    wide = replace(
        request, cameras=replace(request.cameras, height=48, width=64), image=torch.rand(3, 48, 64)
    )
    video, unknown = own_size.control(wide)
    shown = warped_frames(wide.cache, wide.cameras, image=wide.image)
    assert video.shape == (NUM_FRAMES, 3, 48, 64)
    assert not unknown[0].any()
    assert (video[0] - wide.image).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(unknown, ~shown.mask)
    assert 0.02 < unknown[-1].float().mean() < 0.5
    assert (video[unknown.expand_as(video)] == 0.5).all()
    known = shown.mask.expand_as(video)
    assert torch.equal(video[known], (shown.video.float() / 255)[known])


def test_control_is_stretched_with_what_is_known(teacher: WanVaceTeacher) -> None:
    """At another size a pixel is unknown where its nearest one was, and grey only there."""
    video, unknown = teacher.control(request_for_a_box())
    assert video.shape[-2:] == unknown.shape[-2:] == (64, 96)
    shown = warped_frames(request_for_a_box().cache, request_for_a_box().cameras)
    assert abs(unknown[1:].float().mean() - (~shown.mask[1:]).float().mean()) < 0.02
    assert (video[unknown.expand_as(video)] == 0.5).all()
    assert (video[(~unknown).expand_as(video)] == 0.5).float().mean() < 0.01


@pytest.mark.slow
def test_clips_depend_on_their_request_alone(teacher: WanVaceTeacher, clip: TeacherClip) -> None:
    """The same request gives the same clip, whatever is made before it or beside it."""
    beside = request_for_a_box(seed=2, prompt="a green field")
    together = teacher.generate([beside, request_for_a_box()])
    assert torch.equal(together[1].video, clip.video)
    assert torch.equal(together[0].video, teacher.generate([beside])[0].video)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"prompt": "a green field"},
        {"negative_prompt": "green"},
        {"image": picture(1).float()},
        {"cameras": path_to_the_right(0.0)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_clip_depends_on(
    teacher: WanVaceTeacher, clip: TeacherClip, changes: dict[str, object]
) -> None:
    """Seed, texts and picture reach the pipeline, and so does what the cache shows to the cameras."""
    other = teacher.generate([request_for_a_box(**changes)])[0]
    assert not torch.equal(other.video, clip.video)


@pytest.mark.slow
def test_reference_picture(teacher: WanVaceTeacher, clip: TeacherClip) -> None:
    """Given as a reference, too, the first frame changes the clip but not its length."""
    with_reference = replace(teacher, settings=replace(SETTINGS, shows_reference=True))
    other = with_reference.generate([request_for_a_box()])[0]
    assert other.video.shape == clip.video.shape
    assert not torch.equal(other.video, clip.video)


def test_embeddings_are_those_of_the_pipeline(
    teacher: WanVaceTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours need no ftfy, and are equal to the pipeline's with it."""
    from diffusers.pipelines.wan import pipeline_wan_vace

    own_cleaning = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr(pipeline_wan_vace, "ftfy", own_cleaning, raising=False)
    text = " a  red &amp;amp; green\nroom"
    theirs = teacher.pipeline._get_t5_prompt_embeds(text, max_sequence_length=512)
    ours = teacher._embeddings([request_for_a_box(prompt=text)])[text]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_progress_over_all_clips(teacher: WanVaceTeacher) -> None:
    """Steps count over all requests."""
    seen: list[tuple[int, int]] = []
    teacher.generate([request_for_a_box()] * 2, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_requests_that_cannot_be_served(teacher: WanVaceTeacher) -> None:
    """Named before anything is made: without a cache, or of a size that rounds to another aspect."""
    seen: list[tuple[int, int]] = []
    good = request_for_a_box()
    flat = replace(good.cameras, height=8)
    bad_size = replace(good, cameras=flat, image=torch.rand(3, 8, 56), trajectory=3)
    own_size = replace(teacher, settings=replace(SETTINGS, smallest_area=0))
    with pytest.raises(ValueError, match="3D cache, found none"):
        teacher.generate([good, replace(good, cache=None)], lambda *step: seen.append(step))
    with pytest.raises(ValueError, match="trajectory 3: expected cameras of about the aspect of 16x64"):
        own_size.generate([good, bad_size], lambda *step: seen.append(step))
    assert not seen


def test_loading_fails_in_one_sentence(tmp_path: Path) -> None:
    """Missing folders, weights of other models and an old diffusers."""
    codec = load_codec("linear")
    with pytest.raises(FileNotFoundError, match="teacher wan-vace: expected a folder"):
        load_wan_vace(str(tmp_path / "nothing"), codec)
    small_stable_diffusion().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected the weights of a WanVACEPipeline .* StableDiffusion"):
        load_wan_vace(str(tmp_path), codec)
    with pytest.raises(ModuleNotFoundError, match="needs a diffusers with FuturePipeline"):
        diffusers_class("FuturePipeline", "teacher future")


def test_memory_and_flow_shift(tmp_path: Path) -> None:
    """An unknown memory policy is named; the sampler's shift is replaced when asked for."""
    small_wan_vace().save_pretrained(tmp_path)
    codec = load_codec("linear")
    with pytest.raises(ValueError, match="memory must be fast, balanced or low"), unchecked():
        load_wan_vace(str(tmp_path), codec, memory="tiny")
    shifted = load_wan_vace(str(tmp_path), codec, memory="low", flow_shift=5.0)
    assert shifted.pipeline.scheduler.config.flow_shift == 5.0
    assert shifted.settings.smallest_area == 480 * 832
