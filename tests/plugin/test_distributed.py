"""Two processes with one scene each train as one process with both, on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.shared_batch import batch_of, compare_with_one_process
from tests.helpers.wall_scenes import write_wall_scenes


@pytest.mark.slow
def test_two_processes_train_as_one_with_their_scenes(tmp_path: Path) -> None:
    """Loss, gradients and weights after two steps, in which static time embeddings have no part.

    Gradients differ by up to 1.2e-4 of the largest since the CPU renderer adds up lanes by halves and skips
    rows; why so much, and not 1e-5 as before, is not known yet. A share that is not averaged is off by half.
    """
    batch = batch_of(write_wall_scenes(tmp_path / "walls"), num_scenes=2)
    compare_with_one_process(tmp_path, batch, "gloo", tolerance=5e-4)
