"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lyra_ns.plugin.optimizers import DecoderAdamWConfig, WarmupSchedulerConfig, learning_rate_factor


def test_only_matrices_decay() -> None:
    """Norms and biases are spared, unless the official behaviour is asked for."""
    parameters = [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))]
    for mode, expected in (("matrices", [0.01, 0.0]), ("all", [0.01])):
        groups = DecoderAdamWConfig(decay=mode).setup(parameters).param_groups
        assert [group["weight_decay"] for group in groups] == expected


def test_warm_up_then_constant() -> None:
    """Rises in equal steps, never 0, then stays."""
    config = WarmupSchedulerConfig(warmup_steps=4)
    factors = [learning_rate_factor(config, step) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_ends_at_its_final_fraction() -> None:
    """Half way it is half way, at the end and after it the final fraction."""
    config = WarmupSchedulerConfig(warmup_steps=0, decay="cosine", max_steps=10, final_fraction=0.2)
    factors = [learning_rate_factor(config, step) for step in (0, 5, 10, 99)]
    assert factors == pytest.approx([1.0, 0.6, 0.2, 0.2])


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_checkpoints_hold_python_numbers_only(tmp_path, decay: str) -> None:
    """torch.load refuses numpy scalars, which nerfstudio's own schedules leave behind."""
    optimizer = DecoderAdamWConfig(lr=1e-2).setup([nn.Parameter(torch.ones(2, 2))])
    config = WarmupSchedulerConfig(warmup_steps=2, decay=decay)
    scheduler = config.setup().get_scheduler(optimizer, 1e-2)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "state")
    loaded = torch.load(tmp_path / "state", weights_only=True)
    assert math.isclose(loaded["scheduler"]["_last_lr"][0], 1e-2 * learning_rate_factor(config, 5))
