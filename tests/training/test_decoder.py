"""The recipe that trains the small decoder, at a size that takes seconds."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lyra_ns.codec import load_codec
from lyra_ns.decoder.config import TINY_DECODER, DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.depth.base import PlaneDepth
from lyra_ns.gaussians import GaussianHeadConfig
from training.decoder.judge import judge_decoder
from training.decoder.photograph_scenes import PhotographRecipe, draw_recipe, photograph_scene
from training.decoder.scenes import CELL_SIZE, ScenePool, gather, load_scene, save_scene
from training.decoder.train import (
    DecoderTraining,
    DecoderTrainingConfig,
    draw_batch,
    fresh_start,
    run_training,
)

SIZE = (32, 48)
RECIPE = PhotographRecipe(*SIZE, num_frames=9)


@pytest.fixture(scope="module")
def photograph():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 18, generator=generator)
    return (torch.nn.functional.interpolate(coarse, (96, 144), mode="bilinear")[0] * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def scene(photograph):
    return photograph_scene(photograph, RECIPE, PlaneDepth(), load_codec("linear"))


def small_decoder():
    torch.manual_seed(0)
    head = GaussianHeadConfig(near=1.0, far=30.0, distance_law="logarithmic", scale_law="footprint")
    config = DecoderConfig(
        width=64,
        depth=1,
        pattern="M",
        num_heads=1,
        state_size=16,
        head_dim=32,
        cell_size=CELL_SIZE,
        head=head,
    )
    return LatentGaussianDecoder(config)


@pytest.mark.slow
def test_every_clip_begins_with_the_photograph(scene, photograph):
    wanted = torch.nn.functional.interpolate(photograph[None].float(), SIZE, mode="bilinear", antialias=True)
    for first in scene.rgb[:, 0]:
        assert (first.float() - wanted[0]).abs().mean() < 3
    assert (scene.rgb[1, -1].float() - wanted[0]).abs().mean() > 5


def test_all_paths_begin_at_the_origin_and_move(scene):
    torch.testing.assert_close(scene.camera_to_world[:, 0], torch.eye(4).expand(6, 4, 4), rtol=0, atol=1e-6)
    assert (scene.camera_to_world[:, 2, :3, 3].norm(dim=-1) > 0.03).all()


@pytest.mark.slow
def test_what_a_mirrored_recipe_shows_is_mirrored(photograph, scene):
    mirrored = photograph_scene(
        photograph, replace(RECIPE, is_mirrored=True), PlaneDepth(), load_codec("linear")
    )
    assert torch.equal(mirrored.rgb[0, 0].flip(-1), scene.rgb[0, 0])


@pytest.mark.slow
def test_a_cut_out_stands_before_the_photograph(photograph, scene):
    red = torch.zeros(4, 20, 20, dtype=torch.uint8)
    red[0], red[3] = 255, 255
    recipe = replace(RECIPE, cutouts=((0, 0.5, 0.5, 0.5, 0.6),))
    with_red = photograph_scene(photograph, recipe, PlaneDepth(), load_codec("linear"), [red])
    middle = (slice(None), SIZE[0] // 2, SIZE[1] // 2)
    assert (with_red.rgb[0, 0][middle].float() - torch.tensor([255.0, 0, 0])).abs().max() < 8
    assert with_red.depth[0, 0][middle[1:]] == pytest.approx(
        0.6 * float(scene.depth[0, 0][middle[1:]]), rel=0.05
    )


def test_recipes_are_drawn_for_every_size():
    draws = random.Random(0)
    for size in ((160, 256), (256, 160)):
        recipes = [draw_recipe(draws, size, 3) for _ in range(30)]
        assert all((recipe.height, recipe.width) == size for recipe in recipes)
        assert any(recipe.cutouts for recipe in recipes)
        assert not any(draw_recipe(draws, size, 0).cutouts for _ in range(30))


def test_a_stored_scene_is_read_back(scene, tmp_path):
    save_scene(scene, tmp_path / "scene.safetensors")
    again = load_scene(tmp_path / "scene.safetensors", "cpu")
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(scene).items())


def test_a_batch_holds_what_the_scenes_hold(scene):
    draws = random.Random(3)
    batch = gather([scene, scene], draws, num_views=2, num_targets=3)
    assert batch.latents.shape[:2] == (2, 2)
    assert batch.target_rgb.shape == (2, 3, *SIZE, 3)
    assert batch.cell_depth.shape[2:] == (9, SIZE[0] // CELL_SIZE, SIZE[1] // CELL_SIZE)
    frames = scene.rgb.flatten(0, 1).movedim(1, -1).float() / 255
    poses = scene.camera_to_world.flatten(0, 1)
    for image, pose in zip(batch.target_rgb[0], batch.target_cameras.camera_to_world[0], strict=True):
        same = [
            bool(torch.equal(image, frame)) and bool(torch.equal(pose, at))
            for frame, at in zip(frames, poses, strict=True)
        ]
        assert any(same)


@pytest.mark.slow
def test_batches_are_of_one_size_and_of_the_kinds_asked_for(photograph, scene):
    upright = photograph_scene(
        photograph, replace(RECIPE, height=48, width=32), PlaneDepth(), load_codec("linear")
    )
    pool = ScenePool([("photograph", scene), ("photograph", upright), ("rendered", scene)])
    draws = random.Random(0)
    assert pool.sizes == [(32, 48), (48, 32)]
    assert {s.size for s in pool.draw(draws, (48, 32), 4, {"photograph": 0.5, "rendered": 0.5})} == {(48, 32)}
    config = DecoderTrainingConfig(scenes_per_step=2)
    assert {draw_batch(pool, draws, config).target_rgb.shape[2:4] for _ in range(12)} == {(32, 48), (48, 32)}


@pytest.mark.slow
def test_training_learns_and_goes_on_where_it_stopped(scene, tmp_path):
    pool = ScenePool([("photograph", scene)])
    config = DecoderTrainingConfig(scenes_per_step=1, learning_rate=3e-3, warmup_steps=1, average_decay=0.5)
    training = DecoderTraining(small_decoder(), config)
    before = judge_decoder(training.average, {"scene": scene}, frames=(2, 5))["mean"]
    run_training(training, pool, tmp_path, seconds=1e6, total_seconds=1e9, max_steps=20)
    after = judge_decoder(training.average, {"scene": scene}, frames=(2, 5))["mean"]
    assert after["psnr"] > before["psnr"] + 0.2
    again = DecoderTraining(small_decoder(), config)
    again.resume(tmp_path)
    assert again.step == 20
    first, second = training.optimizer.state_dict()["state"], again.optimizer.state_dict()["state"]
    assert all(torch.equal(first[k]["exp_avg"], second[k]["exp_avg"]) for k in first)
    for own, other in zip(
        training.decoder.state_dict().values(), again.decoder.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other)
    assert (tmp_path / "lyra_tiny.safetensors").is_file()


@pytest.mark.slow
def test_a_fresh_decoder_is_of_the_shipped_sizes_and_knows_what_its_inputs_are_like(photograph):
    recipe = replace(RECIPE, height=80, width=128, num_frames=9)
    scene = photograph_scene(photograph, recipe, PlaneDepth(), load_codec("linear"))
    pool = ScenePool([("photograph", scene), ("rendered", scene)])
    config = DecoderTrainingConfig(scenes_per_step=2, footprint_limit=0.3)
    fresh, again = (fresh_start(pool, config, "cpu") for _ in range(2))
    other = fresh_start(pool, replace(config, seed=1), "cpu")
    shipped = LatentGaussianDecoder(TINY_DECODER)
    assert {name: value.shape for name, value in fresh.state_dict().items()} == {
        name: value.shape for name, value in shipped.state_dict().items()
    }
    assert fresh.config.head.footprint_limit == 0.3
    assert all(map(torch.equal, fresh.state_dict().values(), again.state_dict().values()))
    assert not all(map(torch.equal, fresh.state_dict().values(), other.state_dict().values()))
    changed = {
        name
        for name, buffer in fresh.named_buffers()
        if not torch.equal(buffer, dict(shipped.named_buffers())[name])
    }
    assert any("latent" in name for name in changed), changed


@pytest.mark.slow
def test_resuming_nothing_is_refused(tmp_path: Path):
    training = DecoderTraining(small_decoder(), DecoderTrainingConfig())
    with pytest.raises(FileNotFoundError, match="expected the state of a training"):
        training.resume(tmp_path)
