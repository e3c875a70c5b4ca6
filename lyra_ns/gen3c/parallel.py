"""GEN3C on several GPUs: guidance on two processes, one video's tokens over several, clips side by side.

All of it needs an initialised torch.distributed: `run_on_processes` starts processes that know each other on
one machine, torchrun or Ray may do it elsewhere. For many clips, clips side by side is fastest, as nothing is
exchanged; the other two make one clip sooner.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
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


Item = TypeVar("Item")


@dataclass(frozen=True)
class GuidanceHalves:
    """Two processes: the first computes the conditional view, the second the other one.

    Both hold the whole network and the same latents; they exchange one prediction per step.
    """

    group: Any = None
    """Process group of two; None for all processes."""

    def __post_init__(self) -> None:
        if (found := dist.get_world_size(self.group)) != 2:
            raise ValueError(f"guidance has two views for two processes, found {found}: give a group of two")

    @property
    def is_conditional(self) -> bool:
        """Whether this process computes the view with 3D buffers and text."""
        return dist.get_rank(self.group) == 0

    def exchange(
        self, own: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """(conditional, unconditional), each from the process that has computed it."""
        views = [torch.empty_like(own), torch.empty_like(own)]
        dist.all_gather(views, own, group=self.group)
        return views[0], views[1]


def agreed(tensor: Float[Tensor, "*shape"], group: Any = None) -> Float[Tensor, "*shape"]:
    """The tensor of the group's first process: noise that each has drawn for itself may differ."""
    tensor = tensor.contiguous()
    source = dist.get_global_rank(group, 0) if group is not None else 0
    dist.broadcast(tensor, source, group=group)
    return tensor


def context_parallel_plan() -> dict[str, Any]:
    """Where diffusers' hooks split the tokens of a CosmosTransformer3DModel, and gather them."""
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    split_rotation = ContextParallelInput(split_dim=0, expected_dims=2, split_output=True)
    return {
        "rope": {0: split_rotation, 1: split_rotation},
        "learnable_pos_embed": {0: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True)},
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }


def split_tokens(transformer: Any, device: torch.device) -> None:
    """Splits the tokens of every later evaluation over all processes (Ulysses), in place.

    Each process holds the whole network and gets the whole result; it computes its tokens, and in attention
    its heads. As diffusers' `enable_parallelism`, which finds no device where there is no accelerator.
    ValueError if heads do not divide by the number of processes; the tokens must, too.
    """
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    from lyra_ns.gen3c.layers import Gen3CAttnProcessor

    num_processes, num_heads = dist.get_world_size(), transformer.config.num_attention_heads
    if num_processes < 2 or num_heads % num_processes:
        raise ValueError(
            f"{num_heads} heads cannot be split over {num_processes} processes: take a number from 2 on that "
            "divides them"
        )
    processors = [
        module.processor
        for module in transformer.modules()
        if isinstance(getattr(module, "processor", None), Gen3CAttnProcessor)
    ]
    if not processors:
        raise ValueError(
            "diffusers' attention cannot be split: call use_own_attention or use_own_blocks first"
        )
    if any(getattr(block, "step_cache", None) is not None for block in transformer.transformer_blocks):
        raise ValueError("processes would predict different steps: call remove_step_cache first")
    mesh = init_device_mesh(device.type, (1, num_processes), mesh_dim_names=("ring", "ulysses"))
    context = ContextParallelConfig(ulysses_degree=num_processes, mesh=mesh)
    config = ParallelConfig(context_parallel_config=context)
    config.setup(dist.get_rank(), num_processes, device, mesh=mesh)
    for processor in processors:
        processor._parallel_config = config
    transformer._parallel_config = config
    apply_context_parallel(transformer, context, context_parallel_plan())


def share_of(items: Sequence[Item], rank: int, num_processes: int) -> list[Item]:
    """The items of one process, as even as can be: clips side by side need nothing more."""
    if not 0 <= rank < num_processes:
        raise ValueError(f"expected a process from 0 to {num_processes - 1}, found {rank}")
    return list(items[rank::num_processes])


def in_order(shares: Sequence[Sequence[Item]]) -> list[Item]:
    """The results of all processes in the order of the items that `share_of` has dealt out."""
    num_items = sum(map(len, shares))
    return [shares[place % len(shares)][place // len(shares)] for place in range(num_items)]
