"""The moving average of the weights: its values, its place in checkpoints, and who reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lyra_ns.decoder.checkpoints import nerfstudio_tensors
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.plugin.components import averaged_copy, decay_at, fitting_state, update_average
from tests.helpers.wall_scenes import tiny_pipeline_config, write_wall_scenes
from tests.plugin.test_training import run_trainer

SMALL = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8, "head_dim": 16}


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small scenes on disk."""
    return write_wall_scenes(tmp_path_factory.mktemp("walls"))


def test_an_average_follows_the_weights() -> None:
    """Value of the recurrence; the decoder's own weights and its gradients are left alone."""
    decoder = LatentGaussianDecoder(DecoderConfig(**SMALL, input_statistics=True))
    average = averaged_copy(decoder, 0.9)
    first = decoder.deconv.weight.detach().clone()
    with torch.no_grad():
        decoder.deconv.weight.add_(1.0)
        decoder.latent_mean.fill_(3.0)
    for _ in range(2):
        update_average(average, decoder, 0.9)
    torch.testing.assert_close(average.deconv.weight, first + 1.0 - 0.9**2)
    torch.testing.assert_close(decoder.deconv.weight.detach(), first + 1.0)
    assert average.latent_mean.eq(3.0).all()
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def test_the_first_steps_count_more() -> None:
    """So that random weights are soon forgotten."""
    shares = [decay_at(step, 0.99) for step in range(2000)]
    assert shares[0] == pytest.approx(0.1)
    assert shares == sorted(shares)
    assert shares[-1] == 0.99


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    """With the range in the message."""
    with pytest.raises(ValueError, match="between 0"):
        averaged_copy(LatentGaussianDecoder(DecoderConfig(**SMALL)), decay)


def test_checkpoints_with_and_without_average_fit_both_kinds_of_model() -> None:
    """What is missing starts from the weights, what nobody reads is left out, and both are said."""
    plain: dict[str, Tensor] = {
        "decoder.a": torch.ones(2, dtype=torch.bfloat16),
        "device_indicator_param": torch.ones(0),
    }
    averaged = plain | {"averaged.a": torch.zeros(2)}
    assert fitting_state(plain, averages=False) == (plain, "")
    assert fitting_state(averaged, averages=True) == (averaged, "")
    assert fitting_state(averaged, averages=False)[0] == plain
    started, sentence = fitting_state(plain, averages=True)
    assert started["averaged.a"].dtype == torch.float32
    assert started["averaged.a"].tolist() == [1.0, 1.0]
    assert "starts from its weights" in sentence


@pytest.mark.slow
def test_the_average_is_resumed_exactly_and_evaluated(walls: Path, tmp_path: Path) -> None:
    """Two and two steps give the average of four; what is shown comes from it and not from the weights."""
    changes = {"ema_decay": 0.9}
    whole = run_trainer(walls, tmp_path / "whole", 4, **changes)
    first = run_trainer(walls, tmp_path / "first", 2, **changes)
    second = run_trainer(walls, tmp_path / "second", 2, load_dir=first.checkpoint_dir, **changes)
    model, state = second.pipeline.model, whole.pipeline.state_dict()
    (checkpoint,) = second.checkpoint_dir.glob("step-*.ckpt")
    torch.testing.assert_close(nerfstudio_tensors(checkpoint), dict(model.averaged.state_dict()))
    torch.testing.assert_close(second.pipeline.state_dict(), state)
    assert not torch.equal(state["_model.averaged.deconv.weight"], state["_model.decoder.deconv.weight"])
    assert len(model.get_param_groups()["decoder"]) == len(list(model.decoder.parameters()))
    assert any("moving average" in line for line in model.describe_parts())
    assert any(line.startswith("attention: ") for line in model.describe_parts())
    model.eval()
    shown = model.gauss_params["means"]
    with torch.no_grad():
        model.decoder.deconv.weight.add_(1.0)
    model._cache.clear()
    assert torch.equal(model.gauss_params["means"], shown)
    with torch.no_grad():
        model.averaged.deconv.weight.add_(1.0)
    model._cache.clear()
    assert not torch.equal(model.gauss_params["means"], shown)


@pytest.mark.slow
def test_input_statistics_and_first_weights_are_averaged_from_the_start(walls: Path) -> None:
    """They are set after the copy was made."""
    config = tiny_pipeline_config(walls, ema_decay=0.9)
    model = config.setup(device="cpu", test_mode="val").model
    assert model.decoder.config.input_statistics
    torch.testing.assert_close(model.averaged.state_dict(), model.decoder.state_dict(), rtol=0, atol=0)
    assert not model.decoder.latent_std.eq(1.0).all()
