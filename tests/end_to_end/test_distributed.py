"""Two processes that train together, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.wall_scenes import tiny_pipeline_config, write_wall_scenes

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]

WORKER = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.append(sys.argv[3])
from tests.helpers.wall_scenes import tiny_pipeline_config

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
pipeline = tiny_pipeline_config(Path(sys.argv[1])).setup(device="cpu", test_mode="val", local_rank=rank)
# nerfstudio's own wrapping wants CUDA devices.
pipeline._model = DistributedDataParallel(pipeline.model, find_unused_parameters=True)
pipeline.train()
pipeline.model.update_to_step(10_000)
names = pipeline.datamanager.next_train(3)[1]["pending"].ready["names"]
_, losses, _ = pipeline.get_train_loss_dict(3)
sum(losses.values()).backward()
gradients = {name: p.grad for name, p in pipeline.model.named_parameters() if p.grad is not None}
mse = losses["mse"].detach()
output = {"names": names, "gradients": gradients, "state": pipeline.state_dict(), "loss": mse}
torch.save(output, Path(sys.argv[2]) / f"{rank}.pt")
"""


def test_two_processes_share_gradients_but_not_scenes(tmp_path: Path) -> None:
    """Each has its own scenes; both get the same gradients; their checkpoint loads into one process."""
    walls = write_wall_scenes(tmp_path / "walls")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-W", "ignore", "-c", WORKER, str(walls), str(tmp_path), root]
    processes = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    left, right = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert set(left["names"]).isdisjoint(right["names"])
    assert float(left["loss"]) != float(right["loss"])
    torch.testing.assert_close(left["gradients"], right["gradients"])
    alone = tiny_pipeline_config(walls).setup(device="cpu", test_mode="test")
    alone.load_pipeline(left["state"], step=3)
    bias = "_model.module.decoder.deconv.bias"
    torch.testing.assert_close(alone.model.decoder.deconv.bias.data, left["state"][bias])
