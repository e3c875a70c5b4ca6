"""A step that does not fit into memory: estimate, message, and a checkpoint of the step before."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.engine.trainer import Trainer

from lyra_ns.data.types import SceneBatch
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.device import GIB, free_bytes
from lyra_ns.method_configs.lyra import lyra
from lyra_ns.plugin.model_config import LyraModelConfig
from lyra_ns.plugin.optimizers import DecoderAdamWConfig
from lyra_ns.plugin.pipeline import BatchSize, advice, batch_size_of, expected_bytes
from lyra_ns.plugin.trainer import LyraTrainer
from lyra_ns.rendering import RenderSettings
from tests.helpers.wall_scenes import tiny_pipeline_config, write_wall_scenes
from tests.plugin.test_training import run_trainer

LAST_STAGE = BatchSize(1, 6, 337_920, 10_222_080, 2_044_415, 54, 704, 1280)


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small scenes on disk."""
    return write_wall_scenes(tmp_path_factory.mktemp("walls"))


def out_of_memory_in(monkeypatch: pytest.MonkeyPatch, failing_step: int) -> None:
    """Let the training step of this number fail in its backward pass, as a full card would."""
    train_iteration = Trainer.train_iteration

    def fails(trainer: Trainer, step: int) -> Any:
        if step == failing_step:
            trainer.pipeline.get_train_loss_dict(step)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return train_iteration(trainer, step)

    monkeypatch.setattr(Trainer, "train_iteration", fails)


@pytest.mark.slow
def test_the_run_ends_with_one_message_and_the_last_step_saved(
    walls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is that of a run that stopped before the step, and going on from it works."""
    whole = run_trainer(walls, tmp_path / "whole", 3)
    with monkeypatch.context() as patched:
        out_of_memory_in(patched, 2)
        with pytest.raises(SystemExit) as caught:
            run_trainer(walls, tmp_path / "failed", 3)
    message = str(caught.value)
    for part in ("training step 2", "tokens", "Gaussians", "targets of 48x64", "expected to need"):
        assert part in message
    for option in ("--pipeline.model.decoder.recompute all", "--pipeline.model.render.views-at-once 1"):
        assert option in message
    (saved,) = (tmp_path / "failed").rglob("step-*.ckpt")
    assert saved.name == "step-000000001.ckpt"
    assert str(saved) in message
    resumed = run_trainer(walls, tmp_path / "resumed", 1, load_dir=saved.parent)
    torch.testing.assert_close(resumed.pipeline.state_dict(), whole.pipeline.state_dict())


@pytest.mark.slow
def test_nothing_is_saved_before_the_first_step(
    walls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to lose then, which is said."""
    out_of_memory_in(monkeypatch, 0)
    with pytest.raises(SystemExit, match="No step was finished yet"):
        run_trainer(walls, tmp_path, 3)
    assert not list(tmp_path.rglob("step-*.ckpt"))


def test_the_method_uses_this_trainer() -> None:
    """Or the message would never be seen."""
    assert lyra.config._target is LyraTrainer


def test_each_process_works_on_its_own_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels launch on the current device, so that of a process of several must be its own."""
    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    config = deepcopy(lyra.config)
    config.machine.device_type, config.output_dir, config.timestamp = "cuda", tmp_path, "run"
    config.experiment_name = "cards"
    LyraTrainer(config, local_rank=1, world_size=2)
    assert chosen == ["cuda:1"]


@pytest.mark.slow
def test_the_size_of_a_batch(walls: Path) -> None:
    """Counts of a real batch, as the decoder and the pruning give them."""
    pipeline = tiny_pipeline_config(walls, prune_ratio=0.5).setup(device="cpu", test_mode="val")
    batch: SceneBatch = pipeline.model.complete(pipeline.datamanager.next_train(0)[1]["pending"])
    size = batch_size_of(batch, pipeline.model.decoder.config, 0.5)
    raw_latents, conditioning = pipeline.model.condition(batch)
    gaussians = pipeline.model.decoder(raw_latents, conditioning)
    tokens = pipeline.model.decoder.embed(raw_latents, conditioning.plucker, None)
    assert size.num_tokens == tokens.shape[0] * tokens.shape[1]
    assert size.num_gaussians == gaussians.opacities.numel()
    assert size.num_drawn == size.num_gaussians // 2
    assert (size.num_targets, size.height, size.width) == tuple(batch.target_rgb.shape[1:4])


def test_the_estimate_of_the_last_stage() -> None:
    """Fits 80 GB with attention kept, and every option that is advised lowers it."""
    config = LyraModelConfig(prune_ratio=0.8)
    usual = expected_bytes(LAST_STAGE, config, "scans", "mamba_ssm")
    assert 30 * GIB < sum(usual.values()) < 75 * GIB
    assert sum(expected_bytes(LAST_STAGE, config, "all", "mamba_ssm").values()) < sum(usual.values())
    one_view = LyraModelConfig(prune_ratio=0.8, render=RenderSettings(views_at_once=1))
    assert expected_bytes(LAST_STAGE, one_view, "scans", "mamba_ssm")["renders"] < usual["renders"] / 10
    options = advice(LAST_STAGE, config, "scans")
    assert any("num-trajectories-max 5" in option for option in options)
    assert not any("recompute" in option for option in advice(LAST_STAGE, one_view, "all"))


def test_free_memory_is_asked_of_cards_only() -> None:
    """Main memory is never measured."""
    assert free_bytes(torch.device("cpu")) is None


def test_only_float32_weights_are_optimised() -> None:
    """The bfloat16 weights of the parity regime would lose most steps."""
    coarse = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="float32, found \\['bfloat16'\\]"):
        DecoderAdamWConfig().setup([coarse])
    assert DecoderConfig().parity is False
