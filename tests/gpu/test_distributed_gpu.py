"""Two GPUs with one scene each train as one GPU with both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.shared_batch import batch_of, compare_with_one_process
from tests.helpers.wall_scenes import write_wall_scenes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]


def test_two_gpus_train_as_one_with_their_scenes(tmp_path: Path) -> None:
    """Loss, gradients and weights after two steps over NCCL."""
    batch = batch_of(write_wall_scenes(tmp_path / "walls"), num_scenes=2)
    compare_with_one_process(tmp_path, batch, "nccl", tolerance=1e-2)
