"""Batches for training and whole runs of nerfstudio's trainer: cache, workers, resume."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.engine.trainer import Trainer

from lyra_ns.codec import load_codec
from lyra_ns.data.batch import PendingBatch
from lyra_ns.data.view_sampling import SamplingConfig
from lyra_ns.method_configs.tiny import lyra_tiny
from lyra_ns.plugin import scenes as scenes_module
from lyra_ns.plugin.datamanager import BatchSettings, CachedBatches, StreamedBatches
from lyra_ns.plugin.errors import DataError
from lyra_ns.plugin.scenes import SceneLibrary, load_scenes, open_scenes
from lyra_ns.plugin.trainer import LyraTrainer
from tests.helpers.wall_scenes import tiny_pipeline_config, write_wall_scenes

SAMPLING = SamplingConfig(num_target_frames=2, num_trajectories_max=3, warm_start=True)
SETTINGS = BatchSettings(batch_size=2, seed=3, rank=0, world_size=1, device="cpu")


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small scenes on disk."""
    return write_wall_scenes(tmp_path_factory.mktemp("walls"))


@pytest.fixture(scope="module")
def scenes(walls: Path) -> SceneLibrary:
    """The same, opened."""
    return open_scenes(walls, (5, 0, 1))


def contents(pending: PendingBatch) -> dict:
    """The completed batch as comparable values."""
    batch = vars(pending.complete(load_codec("linear")))
    cameras = {name: batch.pop(name).camera_to_world for name in ("cameras", "target_cameras")}
    return {name: value for name, value in (batch | cameras).items() if value is not None}


def assert_same(left: dict, right: dict) -> None:
    """Equal keys and equal values."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, right[name])
        else:
            assert value == right[name], name


@pytest.mark.slow
def test_streamed_batches_do_not_depend_on_workers_or_on_what_came_before(scenes: SceneLibrary) -> None:
    """So that a resumed run goes on with the batches that an uninterrupted one would have seen."""
    alone = StreamedBatches(scenes.store, scenes.split.train, SETTINGS, num_workers=0)
    helped = StreamedBatches(scenes.store, scenes.split.train, SETTINGS, num_workers=1)
    in_order = [contents(alone.batch(index, SAMPLING)) for index in range(3)]
    for index in (1, 2):
        assert_same(contents(helped.batch(index, SAMPLING)), in_order[index])


@pytest.mark.parametrize("target_frames", ["latents", "rgb"])
def test_cached_batches_hold_what_is_on_disk(scenes: SceneLibrary, target_frames: str) -> None:
    """Same contents as batches read from disk, up to half precision, once the same scenes are drawn."""
    sampling = SamplingConfig(
        num_target_frames=9,
        num_trajectories_min=3,
        num_trajectories_max=3,
        target_frames=target_frames,
        warm_start=True,
    )
    settings = BatchSettings(batch_size=1, seed=3, rank=0, world_size=1, device="cpu")
    cached = CachedBatches(load_scenes(scenes.store, ["wall_1"], sampling, "cpu"), settings)
    streamed = StreamedBatches(scenes.store, ["wall_1"], settings, num_workers=0)
    left, right = (contents(batches.batch(4, sampling)) for batches in (cached, streamed))
    assert left["target_ids"] == right["target_ids"]
    for name in ("target_rgb", "target_depth", "input_depth", "input_rgb", "latents"):
        torch.testing.assert_close(left[name], right[name], rtol=2e-3, atol=2e-3)


def test_cached_batches_are_repeatable_and_show_every_scene(scenes: SceneLibrary) -> None:
    """Each round goes over all scenes once."""
    cached = CachedBatches(load_scenes(scenes.store, scenes.split.train, SAMPLING, "cpu"), SETTINGS)
    assert_same(contents(cached.batch(5, SAMPLING)), contents(cached.batch(5, SAMPLING)))
    names = [name for index in range(3) for name in contents(cached.batch(index, SAMPLING))["names"]]
    assert sorted(names) == sorted(2 * scenes.split.train)


def test_unreadable_scenes_are_left_out_of_the_cache(tmp_path: Path) -> None:
    """One is named and skipped; when none is left that is an error."""
    root = write_wall_scenes(tmp_path, num_scenes=3)
    scenes = open_scenes(root, (5, 0, 1))
    (root / "static/0/latent/wall_0.pkl").write_bytes(b"not a latent")
    loaded = load_scenes(scenes.store, scenes.split.train, SAMPLING, "cpu")
    assert [scene.name for scene in loaded] == ["wall_1"]
    (root / "static/0/latent/wall_1.pkl").write_bytes(b"not a latent")
    with pytest.raises(DataError, match="none of the 2 training scenes can be read"):
        load_scenes(scenes.store, scenes.split.train, SAMPLING, "cpu")


def test_processes_load_what_one_process_does(scenes: SceneLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scenes in the same order."""
    alone = load_scenes(scenes.store, scenes.split.train, SAMPLING, "cpu")
    asked = []

    def two(num_scenes: int) -> int:
        asked.append(num_scenes)
        return 2

    monkeypatch.setattr(scenes_module, "loading_processes", two)
    together = load_scenes(scenes.store, scenes.split.train, SAMPLING, "cpu")
    assert asked == [len(alone)]
    assert [scene.name for scene in together] == [scene.name for scene in alone]
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(found.input_latents, expected.input_latents)
        assert torch.equal(found.camera_paths.camera_to_world, expected.camera_paths.camera_to_world)


def run_trainer(
    root: Path,
    output: Path,
    num_steps: int,
    load_dir: Path | None = None,
    device: str = "cpu",
    **model_changes: Any,
) -> Trainer:
    """A run of nerfstudio's own trainer without viewer; in 1.1.5 `num_steps` are extra ones when resuming."""
    config = deepcopy(lyra_tiny.config)
    config.pipeline = tiny_pipeline_config(root, **{"warm_start_steps": 2, **model_changes})
    config._target = LyraTrainer
    config.max_num_iterations, config.steps_per_save = num_steps, 100
    config.output_dir, config.timestamp, config.vis = output, "run", "tensorboard"
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 100
    config.machine.device_type = device
    config.viewer.quit_on_train_completion = True
    config.load_dir = load_dir
    torch.manual_seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    return trainer


@pytest.mark.slow
def test_resumed_training_goes_on_where_it_stopped(walls: Path, tmp_path: Path) -> None:
    """Three and three steps give the weights of six: optimiser, schedule, step and batches all continue."""
    whole = run_trainer(walls, tmp_path / "whole", 6)
    first = run_trainer(walls, tmp_path / "first", 3)
    # Newer versions count the total.
    extra = 3
    second = run_trainer(walls, tmp_path / "second", extra, load_dir=first.checkpoint_dir)
    assert second.step == whole.step == 5
    torch.testing.assert_close(second.pipeline.state_dict(), whole.pipeline.state_dict())
    assert not torch.equal(
        first.pipeline.model.decoder.deconv.weight, whole.pipeline.model.decoder.deconv.weight
    )


@pytest.mark.slow
def test_checkpoints_load_without_trusting_them(walls: Path, tmp_path: Path) -> None:
    """With weights_only, which every ns-* command uses from torch 2.6 on; and they hold no frozen network."""
    trainer = run_trainer(walls, tmp_path, 1)
    (path,) = trainer.checkpoint_dir.iterdir()
    state = torch.load(path, weights_only=True)
    assert {key.split(".")[1] for key in state["pipeline"]} == {"decoder", "device_indicator_param"}
    num_bytes = sum(value.numel() * value.element_size() for value in state["pipeline"].values())
    # Weights and two moments, nothing else.
    assert path.stat().st_size < 3 * num_bytes + 200_000
