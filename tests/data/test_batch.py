"""Batches: what is drawn, how often, in which frame of reference, and all repeatably."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from lyra_ns.codec import load_codec
from lyra_ns.data.batch import evaluation_batch, gather, make_batch
from lyra_ns.data.scenes import LoadedScene, StoredScene, load_scene
from lyra_ns.data.store import LyraStore
from lyra_ns.data.types import NOVEL_FIRST_ID
from lyra_ns.data.view_sampling import (
    SamplingConfig,
    batch_generator,
    draw_num_trajectories,
    draw_plans,
    target_frame_weights,
)
from tests.helpers.small_dataset import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    assert_equal_batches,
    straight_path,
    write_small_clip,
    write_small_dataset,
)

OFFICIAL = SamplingConfig(num_target_frames=3)
ACROSS = SamplingConfig(
    num_target_frames=2, cross_view_targets=True, num_target_trajectories=4, include_novel_paths=True
)


@pytest.fixture(scope="module")
def codec():
    return load_codec("linear")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return LyraStore(write_small_dataset(tmp_path_factory.mktemp("data"), num_scenes=4))


@pytest.fixture(scope="module")
def loaded(store):
    return [load_scene(store.scene(name), store.novel_clips(name), with_rgb=True) for name in store.names]


class WholeVideoCodec:
    """The linear codec without its way to decode single frames, like the Cosmos tokenizer."""

    def __init__(self, codec):
        self.spec, self.encode, self.decode = codec.spec, codec.encode, codec.decode
        self.to_diffusion, self.from_diffusion = codec.to_diffusion, codec.from_diffusion

    def to(self, device):
        return self


def frames_drawn(config, num_frames, count):
    weights = target_frame_weights(num_frames, config)
    return torch.multinomial(
        weights, count, replacement=True, generator=torch.Generator().manual_seed(0)
    ).float()


def test_exponential_targets_have_the_official_statistics():
    weights = target_frame_weights(121, "exponential")
    assert float(weights[-1] / weights[0]) == pytest.approx(20.1, abs=0.05)
    positions = torch.arange(121.0)
    assert float((weights * positions).sum() / weights.sum()) == pytest.approx(86.7, abs=0.1)
    assert float(frames_drawn("exponential", 121, 40_000).mean()) == pytest.approx(86.7, abs=0.7)
    assert float(frames_drawn("uniform", 121, 40_000).mean()) == pytest.approx(60.0, abs=0.7)


@pytest.mark.slow
def test_number_of_trajectories_is_uniform(loaded):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_num_trajectories(loaded, OFFICIAL, generator) for _ in range(3000)])
    counts = torch.bincount(drawn, minlength=7)[1:]
    assert counts.sum() == 3000
    assert 400 < counts.min() <= counts.max() < 600
    assert draw_num_trajectories(loaded, replace(OFFICIAL, num_trajectories_max=1), generator) == 1


def test_order_of_trajectories_is_random_and_without_repetition(loaded):
    firsts = torch.zeros(6)
    for step in range(600):
        (plan,) = draw_plans(loaded[:1], OFFICIAL, batch_generator(0, step), num_trajectories=3)
        assert len(set(plan.inputs)) == 3
        firsts[plan.inputs[0]] += 1
    assert 60 < firsts.min() <= firsts.max() < 145


def test_official_targets_are_the_same_frames_of_every_input(loaded):
    plans = draw_plans(loaded[:2], OFFICIAL, batch_generator(0, 0), num_trajectories=4)
    for plan in plans:
        by_trajectory = {each: [f for t, f in plan.targets if t == each] for each in plan.inputs}
        frames = by_trajectory[plan.inputs[0]]
        assert len(set(frames)) == 3
        assert all(found == frames for found in by_trajectory.values())
        assert len(plan.targets) == 12


def test_cross_view_targets_come_from_anywhere_with_their_own_frames(loaded):
    seen, alike = set(), []
    for step in range(60):
        for plan in draw_plans(loaded[:2], ACROSS, batch_generator(0, step), num_trajectories=1):
            trajectories = list(dict.fromkeys(t for t, _ in plan.targets))
            assert len(trajectories) == 4
            seen |= set(trajectories) - set(plan.inputs)
            frames = [sorted(f for t, f in plan.targets if t == each) for each in trajectories]
            alike.append(all(found == frames[0] for found in frames))
    assert seen == {0, 1, 2, 3, 4, 5, NOVEL_FIRST_ID}
    assert not all(alike)
    held_out = replace(ACROSS, include_novel_paths=False)
    plans = [draw_plans(loaded[:1], held_out, batch_generator(0, step))[0] for step in range(60)]
    assert all(t < NOVEL_FIRST_ID for plan in plans for t, _ in plan.targets)


def test_batch_shapes_and_reference_frame(loaded, codec):
    batch = make_batch(loaded[:2], OFFICIAL, codec, batch_generator(0, 0), num_trajectories=2)
    assert batch.latents.shape == (2, 2, 16, 3, 4, 6)
    assert batch.target_rgb.shape == (2, 6, HEIGHT, WIDTH, 3)
    assert batch.target_depth.shape == (2, 6, HEIGHT, WIDTH)
    assert batch.cameras.shape == (2, 2, NUM_FRAMES)
    assert batch.target_cameras.shape == (2, 6)
    assert batch.target_time is None
    assert batch.input_depth is None
    for scene, poses, trajectories in zip(
        loaded, batch.cameras.camera_to_world, batch.trajectories, strict=False
    ):
        torch.testing.assert_close(poses[0, 0], torch.eye(4), atol=1e-6, rtol=0)
        stored = [scene.cameras(trajectory).camera_to_world for trajectory in trajectories]
        relative = torch.linalg.inv(stored[0][0]) @ stored[1][9]
        torch.testing.assert_close(poses[1, 9], relative, atol=1e-5, rtol=0)


def turned(scene: LoadedScene, angles: torch.Tensor) -> LoadedScene:
    """The scene with each trajectory's cameras turned and moved by its own angle."""
    turn = torch.eye(4).repeat(len(angles), 1, 1, 1)
    turn[:, 0, 0, 0] = turn[:, 0, 2, 2] = angles.cos()
    turn[:, 0, 0, 2], turn[:, 0, 2, 0] = angles.sin(), -angles.sin()
    turn[:, 0, 1, 3] = angles
    paths = scene.camera_paths
    return replace(scene, camera_paths=replace(paths, camera_to_world=turn @ paths.camera_to_world))


def test_a_turned_world_gives_the_same_batch(loaded, codec):
    scene = turned(loaded[0], torch.full((7,), 0.8))
    one, other = (make_batch([each], OFFICIAL, codec, batch_generator(0, 3)) for each in (loaded[0], scene))
    for name in ("cameras", "target_cameras"):
        first, second = (getattr(batch, name).camera_to_world for batch in (one, other))
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_the_reference_is_the_first_listed_trajectory(loaded, codec):
    scene = turned(loaded[0], torch.linspace(0.0, 1.2, 7))
    for step in range(4):
        batch = make_batch([scene], OFFICIAL, codec, batch_generator(0, step), num_trajectories=3)
        inverse = torch.linalg.inv(scene.cameras(batch.trajectories[0][0]).camera_to_world[0])
        for index, trajectory in enumerate(batch.trajectories[0]):
            expected = inverse @ scene.cameras(trajectory).camera_to_world
            torch.testing.assert_close(batch.cameras.camera_to_world[0, index], expected, atol=1e-5, rtol=0)
        for slot, (trajectory, frame) in enumerate(batch.target_ids[0]):
            expected = inverse @ scene.cameras(trajectory).camera_to_world[frame]
            torch.testing.assert_close(
                batch.target_cameras.camera_to_world[0, slot], expected, atol=1e-5, rtol=0
            )


def test_targets_belong_to_their_cameras(loaded, codec):
    batch = make_batch(loaded[:2], ACROSS, codec, batch_generator(0, 5), num_trajectories=3)
    for index, scene in enumerate(loaded[:2]):
        reference = torch.linalg.inv(scene.cameras(batch.trajectories[index][0]).camera_to_world[0])
        for slot, (trajectory, frame) in enumerate(batch.target_ids[index]):
            pose = reference @ scene.cameras(trajectory).camera_to_world[frame]
            torch.testing.assert_close(
                batch.target_cameras.camera_to_world[index, slot], pose, atol=1e-5, rtol=0
            )
            depth = scene.depth(trajectory, [frame])[0].float()
            torch.testing.assert_close(batch.target_depth[index, slot], depth)
            image = batch.target_rgb[index, slot].permute(2, 0, 1)
            if trajectory in scene.input_ids:
                raw = codec.from_diffusion(scene.latents(trajectory)[None])
                expected = ((codec.decode(raw)[0, :, frame] + 1) / 2).clamp(0, 1)
            else:
                expected = scene.rgb(trajectory, [frame])[0] / 255
            torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [OFFICIAL, ACROSS, replace(ACROSS, warm_start=True)])
def test_codecs_without_single_frames_give_the_same_batch(loaded, codec, config, monkeypatch):
    # Two clips at a time, so that chunks end inside a scene.
    monkeypatch.setattr("lyra_ns.data.batch.DECODED_NUMBERS_AT_ONCE", 2 * 3 * NUM_FRAMES * HEIGHT * WIDTH)
    one = make_batch(loaded[:2], config, codec, batch_generator(0, 7), num_trajectories=3)
    other = make_batch(loaded[:2], config, WholeVideoCodec(codec), batch_generator(0, 7), num_trajectories=3)
    torch.testing.assert_close(one.target_rgb, other.target_rgb, atol=1e-5, rtol=0)
    if config.warm_start:
        torch.testing.assert_close(one.input_rgb, other.input_rgb, atol=1e-5, rtol=0)


@pytest.mark.parametrize("target_frames", ["latents", "rgb"])
def test_warm_start_gives_the_cells_of_the_inputs(loaded, codec, target_frames):
    config = replace(OFFICIAL, warm_start=True, target_frames=target_frames, cell_size=8)
    batch = make_batch(loaded[:2], config, codec, batch_generator(0, 2), num_trajectories=2)
    assert batch.input_depth.shape == (2, 2, NUM_FRAMES, 4, 6)
    assert batch.input_rgb.shape == (2, 2, NUM_FRAMES, 4, 6, 3)
    trajectory = batch.trajectories[1][1]
    depth = loaded[1].depth(trajectory, range(NUM_FRAMES)).float()
    assert torch.equal(batch.input_depth[1, 1, 9, 2, 5], depth[9, 20, 44])
    video = loaded[1].rgb(trajectory, range(NUM_FRAMES)) / 255
    if target_frames == "latents":
        video = codec.decode(codec.from_diffusion(loaded[1].latents(trajectory)[None]))[0].transpose(0, 1)
        video = ((video + 1) / 2).clamp(0, 1)
    expected = functional.avg_pool2d(video, 8).permute(0, 2, 3, 1)
    torch.testing.assert_close(batch.input_rgb[1, 1], expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="must divide the image size 32x48, found 5"):
        make_batch(loaded[:1], replace(config, cell_size=5), codec, batch_generator(0, 2))


def test_batches_repeat_under_their_seed_and_differ_otherwise(loaded, codec):
    def batch(*numbers):
        return make_batch(loaded, OFFICIAL, codec, batch_generator(*numbers))

    assert_equal_batches(batch(0, 5, 1), batch(0, 5, 1))
    ids = {str(batch(*numbers).target_ids) for numbers in ((0, 5, 1), (1, 5, 1), (0, 6, 1), (0, 5, 0))}
    assert len(ids) == 4


def test_disk_and_memory_give_the_same_batch(store, loaded, codec):
    stored = [StoredScene(store.scene(name), store.novel_clips(name)) for name in store.names]
    for config in (OFFICIAL, ACROSS, replace(ACROSS, target_frames="rgb", warm_start=True)):
        one = make_batch(loaded[:2], config, codec, batch_generator(0, 1))
        other = make_batch(stored[:2], config, codec, batch_generator(0, 1))
        torch.testing.assert_close(one.target_depth, other.target_depth, atol=2e-3, rtol=0)
        half = {"target_depth": None, "input_depth": None}
        assert_equal_batches(replace(one, **half), replace(other, **half))


def test_clips_are_cut_to_the_wanted_length(store, codec):
    scene = load_scene(store.scene("a"), num_frames=9, with_rgb=True)
    assert scene.input_latents.shape == (6, 16, 2, 4, 6)
    assert scene.camera_paths.shape == (6, 9)
    assert scene.all_rgb.shape[1] == scene.all_depth.shape[1] == 9
    assert float(scene.camera_paths.times[0, -1]) == 1.0
    batch = make_batch([scene], OFFICIAL, codec, batch_generator(0, 0))
    assert batch.cameras.shape[-1] == 9
    with pytest.raises(ValueError, match=r"scene a, trajectory 0 must have at least 25 frames, found 17"):
        load_scene(store.scene("a"), num_frames=25)


def test_evaluation_is_fixed_and_official(loaded, codec):
    batch = evaluation_batch(loaded[0], codec, num_trajectories=4)
    assert batch.trajectories == [[5, 0, 1, 2]]
    trajectories = [0, 1, 2, 3, 4, 5, NOVEL_FIRST_ID]
    assert batch.target_ids == [[(trajectory, frame) for trajectory in trajectories for frame in (9, 16)]]
    first = loaded[0].rgb(0, [9])[0].permute(1, 2, 0) / 255
    torch.testing.assert_close(batch.target_rgb[0, 0], first)
    assert_equal_batches(batch, evaluation_batch(loaded[0], codec, num_trajectories=4))
    teacher = evaluation_batch(loaded[0], codec, frames=[16], target_frames="latents", with_novel_paths=False)
    assert teacher.target_rgb.shape[1] == 6
    assert not torch.equal(teacher.target_rgb[0, 0], batch.target_rgb[0, 1])
    with pytest.raises(ValueError, match=r"has 6 of the trajectories .* expected 7"):
        evaluation_batch(loaded[0], codec, num_trajectories=7)


def test_latents_may_be_held_in_half_precision(store, codec):
    scene = load_scene(store.scene("a"), latent_dtype=torch.float16, with_depth=False)
    assert scene.input_latents.dtype == torch.float16
    batch = make_batch([scene], replace(OFFICIAL, with_depth=False), codec, batch_generator(0, 0))
    assert batch.latents.dtype == torch.float32
    assert batch.target_depth is None


def test_what_is_missing_is_named(loaded, codec, store):
    bare = replace(loaded[0], all_rgb=None, all_depth=None)
    with pytest.raises(ValueError, match="scene a was loaded without depth"):
        make_batch([bare], OFFICIAL, codec, batch_generator(0, 0))
    with pytest.raises(ValueError, match="scene a was loaded without rgb"):
        make_batch(
            [bare], replace(OFFICIAL, target_frames="rgb", with_depth=False), codec, batch_generator(0, 0)
        )
    with pytest.raises(ValueError, match="at most the 17 frames of scene a, found 18"):
        make_batch(loaded, replace(OFFICIAL, num_target_frames=18), codec, batch_generator(0, 0))
    with pytest.raises(ValueError, match="expected at least 7"):
        make_batch(loaded, SamplingConfig(7, 8), codec, batch_generator(0, 0))
    with pytest.raises(ValueError, match="ascending from 1, found 3 and 2"):
        make_batch(loaded, SamplingConfig(3, 2), codec, batch_generator(0, 0))
    with pytest.raises(ValueError, match="only static or only dynamic"):
        make_batch([loaded[0], replace(loaded[1], is_dynamic=True)], OFFICIAL, codec, batch_generator(0, 0))
    short = load_scene(store.scene("b"), num_frames=9)
    with pytest.raises(ValueError, match="latents of one batch must have one shape"):
        make_batch([loaded[0], short], OFFICIAL, codec, batch_generator(0, 0), num_trajectories=2)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    root = tmp_path_factory.mktemp("dynamic")
    for trajectory in range(12):
        path = straight_path((1.0 + trajectory % 6, 0.2, 0.0))
        if trajectory >= 6:
            path = replace(path, camera_to_world=path.camera_to_world.flip(0))
        write_small_clip(root / "dynamic", "s", trajectory, seed=trajectory, cameras=path)
    return load_scene(LyraStore(root).scene("s"), with_rgb=True)


@pytest.mark.slow
def test_dynamic_targets_show_one_moment_from_all_twelve_views(dynamic, codec):
    assert dynamic.input_ids == [0, 1, 2, 3, 4, 5]
    moments = set()
    for step in range(30):
        batch = make_batch([dynamic], OFFICIAL, codec, batch_generator(0, step))
        trajectories, frames = zip(*batch.target_ids[0], strict=True)
        assert sorted(trajectories) == list(range(12))
        assert len(set(frames)) == 1
        assert float(batch.target_time) == pytest.approx(frames[0] / 16)
        assert batch.is_dynamic
        assert all(trajectory < 6 for trajectory in batch.trajectories[0])
        moments.add(frames[0])
    assert len(moments) > 10


def test_reversed_views_show_their_files(dynamic, codec):
    batch = make_batch([dynamic], OFFICIAL, codec, batch_generator(0, 0))
    slot = [trajectory for trajectory, _ in batch.target_ids[0]].index(8)
    frame = batch.target_ids[0][slot][1]
    expected = dynamic.rgb(8, [frame])[0].permute(1, 2, 0) / 255
    torch.testing.assert_close(batch.target_rgb[0, slot], expected)
    fixed = evaluation_batch(dynamic, codec, frames=[8])
    assert float(fixed.target_time) == 0.5
    with pytest.raises(ValueError, match=r"one moment, found frames \[1, 2\]"):
        evaluation_batch(dynamic, codec, frames=[1, 2])


def test_axis_mistakes_in_latents_are_named(tmp_path):
    from lyra_ns.data.latent_files import write_latents

    write_small_dataset(tmp_path, num_scenes=1)
    path = tmp_path / "static/2/latent/a.pkl"
    z = LyraStore(tmp_path).scene("a").clips[2].latents()
    for wrong, message in (
        (
            z.transpose(0, 1),
            r"scene a, trajectory 2 must have 16 channels in \[C, T, h, w\], found shape \(3, 16, 4, 6\)",
        ),
        (z.transpose(2, 3), "must be 4x6 for a 32x48 video, found 6x4"),
        (z[:, :2], "must have 3 latent frames for 17 frames, found 2"),
        (z[:12], r"16 channels .*found shape \(12, 3, 4, 6\)"),
    ):
        write_latents(path, wrong.contiguous())
        with pytest.raises(ValueError, match=message):
            load_scene(LyraStore(tmp_path).scene("a"))


def test_pending_batches_are_completed_after_moving(loaded, codec):
    plans = draw_plans(loaded, ACROSS, batch_generator(0, 0))
    pending = gather(loaded, plans, ACROSS)
    assert_equal_batches(pending.complete(codec), pending.to("cpu").complete(codec))


def test_loaded_scene_moves_all_but_its_cameras(loaded):
    on_meta = loaded[0].to("meta")
    assert isinstance(on_meta, LoadedScene)
    assert on_meta.device.type == on_meta.all_rgb.device.type == on_meta.all_depth.device.type == "meta"
    assert on_meta.camera_paths.camera_to_world.device.type == "cpu"


ENCODED = SamplingConfig(
    num_trajectories_max=2,
    num_target_frames=4,
    target_frames="rgb",
    inputs="encoded",
    image_size=(16, 32),
    num_input_frames=9,
    frame_gap_min=8,
    frame_gap_max=12,
)


def test_encoded_inputs_are_the_codecs_latents_of_the_resized_frames(loaded, codec):
    scenes, generator = loaded[:2], batch_generator(0, 4)
    plans = draw_plans(scenes, ENCODED, generator, num_trajectories=2)
    pending = gather(scenes, plans, ENCODED)
    assert "latents" not in pending.ready
    batch = pending.complete(codec)
    assert batch.latents.shape == (2, 2, 16, 2, 2, 4)
    assert batch.cameras.shape == (2, 2, 9)
    assert batch.target_rgb.shape == (2, 8, 16, 32, 3)
    assert batch.target_depth.shape == (2, 8, 16, 32)
    for index, (scene, plan) in enumerate(zip(scenes, plans, strict=True)):
        frames = plan.input_frames
        assert all(frames[0] <= frame <= frames[-1] for _, frame in plan.targets)
        reference = torch.linalg.inv(scene.cameras(plan.inputs[0]).camera_to_world[frames[0]])
        for place, trajectory in enumerate(plan.inputs):
            # The middle 24 of 32 rows become 16, so 48 columns become 32.
            video = functional.interpolate(
                scene.rgb(trajectory, range(NUM_FRAMES))[frames][..., 4:28, :].float(),
                (16, 32),
                mode="bilinear",
                antialias=True,
            )
            raw = codec.encode((video.round() / 127.5 - 1).transpose(0, 1)[None])[0]
            found = codec.from_diffusion(batch.latents[index, place])
            torch.testing.assert_close(found, raw, atol=1e-4, rtol=1e-4)
            poses = reference @ scene.cameras(trajectory).camera_to_world[frames]
            torch.testing.assert_close(batch.cameras.camera_to_world[index, place], poses)
        trajectory, frame = plan.targets[5]
        depth = scene.depth(trajectory, [frame])[0].float()[4:28]
        expected = functional.interpolate(depth[None, None], (16, 32), mode="nearest-exact")[0, 0]
        assert torch.equal(batch.target_depth[index, 5], expected)
    assert_equal_batches(batch, pending.to("cpu").complete(codec))


def test_encoding_everything_gives_the_stored_latents_up_to_the_video_files(loaded, codec):
    config = SamplingConfig(num_target_frames=3, target_frames="rgb")
    stored = make_batch(loaded[:1], config, codec, batch_generator(0, 1))
    encoded = make_batch(loaded[:1], replace(config, inputs="encoded"), codec, batch_generator(0, 1))
    assert torch.equal(stored.target_rgb, encoded.target_rgb)
    error = (stored.latents - encoded.latents).square().mean()
    assert 0 < error < 0.01 * stored.latents.square().mean()


def test_encoded_inputs_can_warm_start_too(store, loaded, codec):
    config = replace(ENCODED, warm_start=True, cell_size=8, num_target_frames=2)
    batch = make_batch(loaded[:1], config, codec, batch_generator(0, 2), num_trajectories=2)
    assert batch.input_rgb.shape == (1, 2, 9, 2, 4, 3)
    assert batch.input_depth.shape == (1, 2, 9, 2, 4)
    from_disk = make_batch(
        [StoredScene(store.scene("a"))], config, codec, batch_generator(0, 2), num_trajectories=2
    )
    torch.testing.assert_close(batch.input_depth, from_disk.input_depth, atol=2e-3, rtol=0)
    half = {"target_depth": None, "input_depth": None}
    assert_equal_batches(replace(batch, **half), replace(from_disk, **half))


def test_clips_shorter_than_asked_for_are_mirrored(loaded, codec):
    config = replace(ENCODED, num_input_frames=25, num_target_frames=17)
    batch = make_batch(loaded[:1], config, codec, batch_generator(0, 0), num_trajectories=1)
    assert batch.latents.shape == (1, 1, 16, 4, 2, 4)
    assert sorted(frame for _, frame in batch.target_ids[0]) == list(range(17))
    with pytest.raises(ValueError, match="at most the 17 frames of scene a, found 18"):
        make_batch(loaded, replace(config, num_target_frames=18), codec, batch_generator(0, 0))


def test_contradictions_are_refused(dynamic, codec):
    with pytest.raises(ValueError, match=r"stored latents belong to whole clips .*set inputs to encoded"):
        SamplingConfig(image_size=(16, 16))
    with pytest.raises(ValueError, match=r"found target_frames latents: set target_frames to rgb"):
        SamplingConfig(inputs="encoded")
    with pytest.raises(ValueError, match="ascending from 1, found 9 and 8"):
        SamplingConfig(frame_gap_min=9, frame_gap_max=8)
    with pytest.raises(ValueError, match="its times run over whole clips, found num_input_frames 9"):
        make_batch([dynamic], ENCODED, codec, batch_generator(0, 0))


def test_seeds_are_not_confused():
    def first(*numbers):
        return float(torch.rand(1, generator=batch_generator(*numbers)))

    assert first(1, 23, 4) != first(12, 3, 4)
    assert first(0, 0, 0) == first(0, 0, 0)
    assert math.isclose(first(5, 1), first(5, 1, 0))
