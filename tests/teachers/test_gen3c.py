"""GEN3C as a teacher, on small random weights: what it shows the network, noise, texts, chunks, loading."""

from __future__ import annotations

import errno
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lyra_ns.cache3d.cache import SceneCache
from lyra_ns.depth.base import DepthPrediction, PlaneDepth
from lyra_ns.draws import generator_for
from lyra_ns.gen3c import memory
from lyra_ns.gen3c.inputs import UnsafeContent
from lyra_ns.gen3c.memory import POLICIES, SMALLEST, ClipSize
from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler
from lyra_ns.memory import DoesNotFit
from lyra_ns.teachers import text_embeddings
from lyra_ns.teachers.base import CameraVideoTeacher, TeacherRequest, cache_on
from lyra_ns.teachers.gen3c import (
    Gen3CSettings,
    Gen3CTeacher,
    chunk_paths,
    first_chunk,
    joined_video,
    load_gen3c,
    next_chunk,
)
from lyra_ns.teachers.text_embeddings import TextEmbeddings, encoder_digest
from tests.gen3c.test_pipeline import Checker, t5
from tests.helpers.small_dataset import straight_path
from tests.helpers.small_gen3c import (
    HEIGHT,
    STATE_ROUNDING,
    TEXT_CHANNELS,
    WIDTH,
    small_autoencoder,
    small_transformer,
)

NUM_FRAMES = 9
"""Of a chunk: two latent frames."""
SETTINGS = Gen3CSettings(steps=2, chunk_frames=NUM_FRAMES)
DEPTH = 2.0


@pytest.fixture(scope="module")
def pipeline() -> Gen3CPipeline:
    pipeline = Gen3CPipeline(small_transformer(), small_autoencoder(), gen3c_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def teacher(pipeline: Gen3CPipeline) -> Gen3CTeacher:
    return Gen3CTeacher(pipeline, SETTINGS)


def image() -> torch.Tensor:
    return torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def request(trajectory: int = 0, num_frames: int = NUM_FRAMES, **changes: Any) -> TeacherRequest:
    cameras = straight_path((0.1 * (trajectory + 1), 0.05, 0.0), num_frames)
    cache = SceneCache.from_image(image(), torch.full((HEIGHT, WIDTH), DEPTH), cameras[0])
    return replace(TeacherRequest("hall", trajectory, cameras, image(), cache), **changes)


@pytest.mark.slow
def test_a_clip_is_what_the_pipeline_makes_of_the_warped_cache(
    teacher: Gen3CTeacher, pipeline: Gen3CPipeline
) -> None:
    assert isinstance(teacher, CameraVideoTeacher)
    asked = request(1, seed=7)
    (clip,) = teacher.generate([asked])
    warps = asked.cache.render(asked.cameras)
    colours, masks = warps.in_video_range()
    expected = pipeline(
        asked.image[None] * 2 - 1,
        pipeline.encode_buffers(colours[None], masks[None]),
        num_inference_steps=2,
        generator=[generator_for("gen3c noise", 7, "hall", 1, 0)],
    )
    torch.testing.assert_close(clip.z, expected[0], atol=STATE_ROUNDING, rtol=1e-5)
    decoded = pipeline.decode_latents(expected)[0].transpose(0, 1)
    assert ((clip.video.float() - (decoded.clamp(-1, 1) + 1) * 127.5).abs() < 0.6).all()
    assert torch.equal(clip.depth, warps.depth[:, 0])
    assert clip.notes["seed"] == 7
    assert clip.notes["share_seen"] == pytest.approx(masks.mean().item())


@pytest.mark.slow
def test_clips_do_not_depend_on_their_neighbours(pipeline: Gen3CPipeline, teacher: Gen3CTeacher) -> None:
    together = Gen3CTeacher(pipeline, replace(SETTINGS, samples_at_once=2))
    steps: list[tuple[int, int]] = []
    requests = [request(0), request(1), request(2)]
    clips = together.generate(requests, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for asked, clip in zip(requests, clips, strict=True):
        (alone,) = teacher.generate([asked])
        torch.testing.assert_close(alone.z, clip.z, atol=STATE_ROUNDING, rtol=1e-5)
    (other_seed,) = teacher.generate([request(0, seed=1)])
    (other_scene,) = teacher.generate([request(0, scene="yard")])
    for other in (other_seed, other_scene):
        assert (other.z - clips[0].z).abs().mean() > 0.01


@pytest.mark.slow
def test_all_trajectories_may_share_their_noise(pipeline: Gen3CPipeline) -> None:
    asked = request(0)
    for is_shared in (True, False):
        teacher = Gen3CTeacher(pipeline, replace(SETTINGS, shared_noise=is_shared))
        one, other = teacher.generate([asked, replace(asked, trajectory=1)])
        assert torch.equal(one.z, other.z) == is_shared


def test_long_paths_are_cut_into_chunks_that_share_a_camera() -> None:
    path = straight_path((1.0, 0.0, 0.0), 49)
    parts = chunk_paths(path, 17)
    assert [part.shape[0] for part in parts] == [17, 17, 17]
    for k, part in enumerate(parts):
        assert torch.equal(part.camera_to_world, path.camera_to_world[16 * k : 16 * k + 17])
        assert (part.times[0], part.times[-1]) == (0, 1)
    assert chunk_paths(path[:9], 17)[0].shape == (9,)
    with pytest.raises(
        ValueError, match=r"must have 16k \+ 1, found 41: cut the camera path to 33 or extend"
    ):
        chunk_paths(path[:41], 17)


class Estimator:
    """A plane in other units, which counts its calls."""

    name = "counting"

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def predict(self, image: torch.Tensor, intrinsics: torch.Tensor | None = None) -> DepthPrediction:
        self.images.append(image)
        return PlaneDepth(3 * DEPTH).predict(image, intrinsics)


@pytest.mark.slow
def test_a_long_video_goes_on_from_its_last_frame(pipeline: Gen3CPipeline) -> None:
    estimator = Estimator()
    teacher = Gen3CTeacher(pipeline, SETTINGS, estimator)
    asked, steps = request(0, 17), []
    (chunks,) = teacher.generate_chunks([asked], lambda *done: steps.append(done))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    first, second = chunks
    (alone,) = teacher.generate([replace(asked, cameras=asked.cameras[:9])])
    assert torch.equal(first.z, alone.z)
    last = first.video[-1].float() / 255
    assert torch.equal(estimator.images[0], last)
    assert second.notes["chunk"] == 1
    # The camera has turned a little, so that a plane before it is not quite the plane of the cache.
    assert second.notes["depth_scale"] == pytest.approx(3, rel=0.05)
    known = pipeline.encode_video(last[None, :, None] * 2 - 1)
    assert (second.z[:, :1] - known[0]).abs().max() < 0.05
    joined = joined_video([clip.video for clip in chunks])
    assert joined.shape == (17, 3, HEIGHT, WIDTH)
    assert torch.equal(joined[9:], second.video[1:])
    # What the second chunk was shown: the new frame as the first buffer.
    assert second.depth[0].gt(0).float().mean() > 0.8


def test_the_last_frame_joins_the_cache_in_its_scale() -> None:
    asked, frame = request(0, 17), (image() * 255).to(torch.uint8)
    following = next_chunk(first_chunk(asked, chunk_paths(asked.cameras, 9)), frame, Estimator())
    frames = following.cache.frames
    assert len(frames) == 2
    assert torch.equal(frames.rgb[0], frame.float() / 255)
    assert torch.equal(frames.cameras.camera_to_world[0], asked.cameras.camera_to_world[8])
    # The camera has turned a little before the plane, which the estimator takes for one that faces it.
    assert (frames.depth[0] - DEPTH).abs().max() < 0.3
    assert following.start == 8


@pytest.mark.slow
def test_a_long_video_of_a_video_needs_no_depth(teacher: Gen3CTeacher) -> None:
    cameras = straight_path((0.1, 0.0, 0.0), 20)
    rgb = torch.rand(20, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    cache = SceneCache.from_video(rgb, torch.full((20, HEIGHT, WIDTH), DEPTH), cameras)
    asked = TeacherRequest("walk", 0, cameras[3:], rgb[3], cache, start=3)
    (chunks,) = teacher.generate_chunks([asked])
    assert len(chunks) == 2
    expected = cache.render(cameras[11:], start=11).depth[:, 0]
    torch.testing.assert_close(chunks[1].depth, expected)


@pytest.mark.slow
def test_prompts_are_embedded_once(pipeline: Gen3CPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, tokenizer = t5()
    reading = Gen3CPipeline(pipeline.transformer, pipeline.vae, gen3c_scheduler(), encoder, tokenizer)
    reading.set_progress_bar_config(disable=True)
    texts: list[str] = []
    plain = reading.encode_prompt

    def counted(given: list[str | None]) -> torch.Tensor:
        texts.extend(text for text in given if text is not None)
        return plain(given)

    monkeypatch.setattr(reading, "encode_prompt", counted)
    teacher = Gen3CTeacher(reading, SETTINGS)
    asked = [request(k, prompt="a red room", negative_prompt="room") for k in range(2)]
    with_text = teacher.generate(asked)
    assert sorted(texts) == ["a red room", "room"]
    without = Gen3CTeacher(pipeline, SETTINGS).generate([request(0)])[0]
    assert (with_text[0].z - without.z).abs().mean() > 1e-4
    teacher.generate([request(0, prompt="a red room")])
    assert len(texts) == 3
    assert texts[-1].startswith("The video captures a series of frames showing ugly scenes")


@pytest.fixture
def t5_folder(tmp_path: Path) -> str:
    encoder, tokenizer = t5()
    encoder.save_pretrained(tmp_path / "t5" / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "t5" / "tokenizer")
    return str(tmp_path / "t5")


@pytest.mark.slow
def test_embeddings_are_kept_on_disk(
    pipeline: Gen3CPipeline, t5_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TextEmbeddings(pipeline, t5_folder, tmp_path / "cache").of(["a room", "red"])
    assert first["red"].shape == (1, 512, TEXT_CHANNELS)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    loaded: list[str] = []
    load = text_embeddings.load_t5
    monkeypatch.setattr(text_embeddings, "load_t5", lambda *given: loaded.append(given[0]) or load(*given))
    again = TextEmbeddings(pipeline, t5_folder, tmp_path / "cache").of(["red"])
    assert torch.equal(again["red"], first["red"])
    assert not loaded
    TextEmbeddings(pipeline, t5_folder, tmp_path / "cache").of(["room"])
    assert len(loaded) == 1
    # A damaged file is computed again.
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"damaged")
    repaired = TextEmbeddings(pipeline, t5_folder, tmp_path / "cache").of(["a room"])
    torch.testing.assert_close(repaired["a room"], first["a room"], atol=0, rtol=0)
    # Other weights are another encoder.
    before = encoder_digest(t5_folder)
    weights = Path(t5_folder) / "text_encoder" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert encoder_digest(t5_folder) != before


@pytest.mark.parametrize("missing", ["tokenizer", "text_encoder/config.json"])
def test_an_encoder_that_is_not_whole_is_told(
    pipeline: Gen3CPipeline, t5_folder: str, tmp_path: Path, missing: str
) -> None:
    """Also where embeddings are kept, for which it is looked at before it is loaded."""
    (Path(t5_folder) / missing).rename(tmp_path / "away")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(FileNotFoundError, match=r"text encoder of GEN3C: expected .* found") as caught:
            TextEmbeddings(pipeline, t5_folder, cache).of(["red"])
        assert "\n" not in str(caught.value)


def test_an_encoder_that_may_not_be_read_is_told(t5_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoder_digest(t5_folder)

    def refused(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(FileNotFoundError, match=r"config\.json cannot be read \(Permission denied\)"):
        encoder_digest(t5_folder)
    monkeypatch.undo()
    assert encoder_digest(t5_folder) == before


@pytest.mark.slow
def test_a_text_that_is_refused_is_not_taken_from_disk_either(
    pipeline: Gen3CPipeline, t5_folder: str, tmp_path: Path
) -> None:
    TextEmbeddings(pipeline, t5_folder, tmp_path).of(["red"])
    safe = Gen3CPipeline(pipeline.transformer, pipeline.vae, gen3c_scheduler(), safety_checker=Checker())
    with pytest.raises(UnsafeContent):
        TextEmbeddings(safe, t5_folder, tmp_path).of(["red"])


def test_bad_requests_are_told_before_anything_is_made(teacher: Gen3CTeacher) -> None:
    good, steps = request(), []
    wide = torch.full((HEIGHT, WIDTH + 8), DEPTH)
    cameras = replace(good.cameras, width=WIDTH + 8)
    wider = {
        "cameras": cameras,
        "image": torch.zeros(3, HEIGHT, WIDTH + 8),
        "cache": SceneCache.from_image(torch.zeros(3, HEIGHT, WIDTH + 8), wide, cameras[0]),
    }
    three = replace(good.cache, settings=replace(good.cache.settings, max_buffers=3))
    for requests, message in [
        ([good, replace(good, cache=None)], "expected a 3D cache, found none"),
        ([replace(good, **wider)], "multiples of 16, found 32x56"),
        ([replace(good, cache=three)], "reads 2 3D buffers, found a cache of up to 3"),
        ([good, request(1, 1)], "one length and size"),
        ([request(0, 17)], "GEN3C makes 9 frames at once, found a path of 17"),
        ([replace(good, prompt="a room")], "the pipeline has no T5"),
    ]:
        with pytest.raises(ValueError, match=message):
            teacher.generate(requests, lambda *done: steps.append(done))
    with pytest.raises(
        ValueError, match=r"hall, trajectory 0: a video of 17 frames .* needs a depth estimator"
    ):
        teacher.generate_chunks([request(0, 17)])
    large = torch.zeros(3, 2 * HEIGHT, 2 * WIDTH)
    finer = SceneCache.from_image(
        large, torch.full(large.shape[1:], DEPTH), good.cameras[0].resized(*large.shape[1:])
    )
    chunked = Gen3CTeacher(teacher.pipeline, SETTINGS, Estimator())
    with pytest.raises(ValueError, match=r"of its own size, \(32, 48\) .*, found \(64, 96\)"):
        chunked.generate_chunks([request(0, 17, cache=finer)], lambda *done: steps.append(done))
    assert not steps
    with pytest.raises(ValueError, match="expected steps"):
        Gen3CSettings(steps=0)
    for chunk_frames in (1, 120):
        with pytest.raises(ValueError, match=f"found {chunk_frames}: take one"):
            Gen3CSettings(chunk_frames=chunk_frames)


@pytest.fixture
def folder(pipeline: Gen3CPipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "gen3c")
    return tmp_path / "gen3c"


@pytest.mark.slow
def test_a_converted_folder_is_loaded(teacher: Gen3CTeacher, folder: Path, t5_folder: str) -> None:
    loaded = load_gen3c(folder, settings=SETTINGS, text_encoder=t5_folder)
    (clip,), (expected,) = loaded.generate([request()]), teacher.generate([request()])
    torch.testing.assert_close(clip.z, expected.z, atol=STATE_ROUNDING, rtol=1e-5)
    assert clip.notes["weights"] == "gen3c"
    assert loaded.generate([request(prompt="a room", negative_prompt="")])[0].z.isfinite().all()


def test_weights_that_lack_a_tensor_are_told(folder: Path) -> None:
    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    del tensors["proj_out.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(FileNotFoundError, match=r"lack 1 tensors .* \(transformer\.proj_out\.weight\)"):
        load_gen3c(folder)


def test_a_cache_that_is_there_is_not_moved() -> None:
    """A device without a number is the current one of its kind."""
    cache = request().cache
    assert cache_on(cache, "cpu:0") is cache
    moved = cache_on(cache, "meta")
    assert moved.frames.rgb.is_meta
    assert cache_on(moved, "meta") is moved


@pytest.mark.slow
def test_memory_is_checked_for_the_size_that_is_asked_for(
    pipeline: Gen3CPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Gen3CTeacher(pipeline, replace(SETTINGS, samples_at_once=2), Estimator())
    views = SceneCache.from_views(
        image().expand(3, -1, -1, -1),
        torch.full((3, HEIGHT, WIDTH), DEPTH),
        straight_path((0.1, 0.0, 0.0), 3),
    )
    checked: list[ClipSize] = []
    monkeypatch.setattr(memory, "check_memory", lambda _, size: checked.append(size))
    steps = [
        (teacher.generate, [request()], ClipSize(9, HEIGHT, WIDTH, 1, 1)),
        (teacher.generate, [request(k) for k in range(3)], ClipSize(9, HEIGHT, WIDTH, 2, 1)),
        (teacher.generate, [request(cache=views)], ClipSize(9, HEIGHT, WIDTH, 1, 2)),
        (teacher.generate_chunks, [request(0, 17)], ClipSize(9, HEIGHT, WIDTH, 1, 2)),
    ]
    for generate, requests, _ in steps:
        generate(requests)
    # The last one was known to fit.
    assert checked == [size for _, _, size in steps[:3]]
    assert teacher.generate([]) == []

    def refuse(_: Any, size: ClipSize) -> None:
        raise DoesNotFit("too large")

    monkeypatch.setattr(memory, "check_memory", refuse)
    done: list[int] = []
    with pytest.raises(DoesNotFit, match="too large"):
        teacher.generate([request()], lambda *count: done.extend(count))
    assert not done


@pytest.mark.slow
def test_the_policy_decides_where_t5_encodes(
    pipeline: Gen3CPipeline, t5_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[weakref.ref[Any]] = []
    load, placed = text_embeddings.load_t5, []

    def watched(*given: Any) -> tuple[Any, Any]:
        tokenizer, encoder = load(*given)
        encoders.append(weakref.ref(encoder))
        encoder.register_forward_hook(
            lambda module, *_: placed.append(
                any(hasattr(part, "_diffusers_hook") for part in module.modules())
            )
        )
        return tokenizer, encoder

    monkeypatch.setattr(text_embeddings, "load_t5", watched)
    found = {
        policy: TextEmbeddings(pipeline, t5_folder, memory=policy).of(["a room", "red"])
        for policy in POLICIES
    }
    assert placed == [False, False, True, True, True, True]
    for policy in POLICIES:
        for text in ("a room", "red"):
            torch.testing.assert_close(found[policy][text], found["fast"][text])
    assert all(encoder() is None for encoder in encoders)


def test_loading_checks_the_weights_alone(
    folder: Path, t5_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of the clips is not known yet."""
    given: list[Any] = []
    monkeypatch.setattr(memory, "apply_memory_policy", lambda *all, size: given.append((*all[1:], size)))
    teacher = load_gen3c(folder, "cuda", memory="low", text_encoder=t5_folder)
    assert given == [("low", "cuda", SMALLEST)]
    assert teacher.texts._memory == "low"
    assert load_gen3c(folder, memory="low").texts._memory == "fast"
    assert len(given) == 1


def test_folders_that_are_no_gen3c_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"teacher gen3c: expected a folder with model_index.json"):
        load_gen3c(tmp_path / "none")
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="has to be converted first: run `ns-lyra convert --config gen3c`"):
        load_gen3c(tmp_path / "official")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="needs a folder of Gen3CPipeline, found WanPipeline"):
        load_gen3c(folder)
    index.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load_gen3c(folder)
