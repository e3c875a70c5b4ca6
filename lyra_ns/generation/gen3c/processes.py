"""Processes on one machine that know each other through torch.distributed, without torchrun."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def run_on_processes(
    work: Callable[..., Any], num_processes: int, *arguments: Any, device_type: str = "cuda"
) -> list[Any]:
    """Results of `work(device, *arguments)` on new processes, by rank.

    Each process has a device of its own (on the CPU they share it) and an initialised torch.distributed, nccl
    on CUDA and gloo elsewhere. `work` must lie at the top of a module; results must be what torch.save
    stores: tensors, numbers, texts and containers of them. ValueError if there are too few devices; what a
    process raises ends all of them and is raised here.
    """
    if device_type == "cuda" and torch.cuda.device_count() < num_processes:
        raise ValueError(
            f"{num_processes} processes need as many CUDA devices, found {torch.cuda.device_count()}: "
            "start fewer"
        )
    with TemporaryDirectory() as folder:
        spawn(
            _process,
            (work, num_processes, free_port(), device_type, folder, arguments),
            nprocs=num_processes,
        )
        return [torch.load(_result(folder, rank), weights_only=True) for rank in range(num_processes)]


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _process(
    rank: int,
    work: Callable[..., Any],
    num_processes: int,
    port: int,
    device_type: str,
    folder: str,
    arguments: tuple[Any, ...],
) -> None:
    """One process."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    if device_type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", rank=rank, world_size=num_processes)
    try:
        torch.save(work(device, *arguments), _result(folder, rank))
    finally:
        dist.destroy_process_group()


def _result(folder: str, rank: int) -> Path:
    return Path(folder) / f"{rank}.pt"
