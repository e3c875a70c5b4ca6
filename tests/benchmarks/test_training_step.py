"""The benchmark of the training step, at a size that a CPU can run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import training_step
from benchmarks.training_step import (
    Step,
    StepSettings,
    StepSize,
    print_table,
    random_batch,
    settings_of,
    training_rows,
)
from lyra_ns.decoder.config import DecoderConfig

TINY = StepSize(num_views=2, num_targets=4, prune_ratio=0.5, num_frames=9, height=64, width=64)
SMALL = DecoderConfig(width=32, depth=2, pattern="1M1T", num_heads=2, state_size=8, head_dim=16)
SETTINGS = StepSettings(decoder=SMALL, lpips_net="alex", lpips_dtype=None)
CPU = torch.device("cpu")


@pytest.mark.slow
def test_both_ways_take_the_same_steps_and_say_what_they_cost() -> None:
    """Every part has a time, and fast and plain settings find equal losses before and after weights moved."""
    fast, plain = training_rows(TINY, SETTINGS, device="cpu", repetitions=1)
    assert (fast["way"], plain["way"], plain["recompute"]) == ("fast", "plain", "all")
    assert all(fast[f"{part}_ms"] > 0 for part in training_step.PARTS)
    assert fast["step_s"] == pytest.approx(
        sum(fast[f"{part}_ms"] for part in training_step.PARTS) / 1000, abs=2e-3
    )
    assert (fast["tokens"], fast["Gaussians"]) == (2 * 2 * 16, 2 * 9 * 64)
    for name in ("first_loss", "loss"):
        assert fast[name] == pytest.approx(plain[name], rel=1e-4)
    assert fast["loss"] != fast["first_loss"]
    lines: list[str] = []
    print_table([fast, plain], lines.append)
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1


def test_plain_settings_are_plain() -> None:
    """Nothing of the fast way is left in them."""
    plain = settings_of("plain", StepSettings())
    assert (plain.decoder.recompute, plain.render.views_at_once) == ("all", 1)
    assert (plain.lpips_dtype, plain.lpips_images_at_once) == (None, 1)
    assert settings_of("fast", SETTINGS) is SETTINGS


def test_every_parameter_of_a_static_decoder_but_the_times_is_trained() -> None:
    """The measured backward pass is the whole one."""
    step = Step(TINY, SETTINGS, CPU)
    step.run()
    without = [name for name, parameter in step.decoder.named_parameters() if parameter.grad is None]
    assert without
    assert all("time" in name for name in without)


def test_targets_are_the_frames_of_the_paths() -> None:
    """Equally many of each trajectory; others are refused."""
    batch, conditioning = random_batch(TINY, SMALL, CPU)
    assert batch.target_cameras.shape == (1, 4)
    torch.testing.assert_close(
        batch.target_cameras.camera_to_world[0, 0], batch.cameras.camera_to_world[0, 0, 0]
    )
    torch.testing.assert_close(
        batch.target_cameras.camera_to_world[0, 3], batch.cameras.camera_to_world[0, 1, 8]
    )
    assert conditioning.plucker.shape[2] == 32
    with pytest.raises(ValueError, match="give a multiple"):
        random_batch(StepSize(num_views=2, num_targets=3), SMALL, CPU)


def test_a_step_that_does_not_fit_is_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way is measured all the same."""

    def fails(size: StepSize, settings: StepSettings, way: str, *others: Any) -> dict[str, Any]:
        if way == "fast":
            raise torch.cuda.OutOfMemoryError("no room")
        return {"way": way}

    monkeypatch.setattr(training_step, "training_row", fails)
    rows = training_rows(TINY, SETTINGS, device="cpu")
    assert rows == [{"way": "fast", "V": 2, "targets": 4, "error": "no room"}, {"way": "plain"}]
