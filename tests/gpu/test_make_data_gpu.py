"""Data sets made on GPUs: as on the CPU up to rounding, with a process for each GPU that there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lyra_ns.data.check import check_dataset
from lyra_ns.data.store import LyraStore
from lyra_ns.make_data.run import RunOptions, make_data
from tests.helpers.small_make_data import SETTINGS, save_picture

pytestmark = pytest.mark.gpu


def test_one_process_and_several_make_the_same_as_the_cpu(tmp_path: Path) -> None:
    """Cameras and records to the byte; frames up to the order of sums in splatting."""
    for seed in range(3):
        save_picture(tmp_path / "pictures" / f"scene{seed}.png", seed)
    settings = replace(SETTINGS, height=96, width=160)
    runs = {
        "cpu": RunOptions(device="cpu"),
        "one": RunOptions(device="cuda", num_workers=1),
        "several": RunOptions(device="cuda", num_workers=max(2, torch.cuda.device_count())),
    }
    for name, options in runs.items():
        assert make_data(tmp_path / "pictures", tmp_path / name, settings, options).failures == {}
        assert check_dataset(tmp_path / name).is_good
    for other in ("one", "several"):
        for path in (tmp_path / "cpu" / "static").rglob("*.npz"):
            there = tmp_path / other / path.relative_to(tmp_path / "cpu")
            assert there.read_bytes() == path.read_bytes()
        expected, found = (LyraStore(tmp_path / name).clips("scene1")[4] for name in ("cpu", other))
        assert (found.rgb().float() - expected.rgb().float()).abs().mean() < 2.0
        same_depth = (found.depth() - expected.depth()).abs() < 0.01
        assert same_depth.float().mean() > 0.98
