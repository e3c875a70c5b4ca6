"""Two processes with one scene each train as one process with both, on the CPU."""

from __future__ import annotations

from pathlib import Path

from shared_batch import batch_of, compare_with_one_process
from wall_scenes import write_wall_scenes


def test_two_processes_train_as_one_with_their_scenes(tmp_path: Path) -> None:
    """Loss, gradients and weights after two steps, in which static time embeddings have no part.

    The bias of the deconvolution has the sum over all cells as its gradient, whose terms cancel; processes
    of other numbers of threads add them up in another order, which leaves some 1e-4 of it.
    """
    batch = batch_of(write_wall_scenes(tmp_path / "walls"), num_scenes=2)
    compare_with_one_process(tmp_path, batch, "gloo", tolerance=1e-4)
