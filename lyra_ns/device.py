"""Devices by the names that options and tensors give them, their free memory, and one thread for torch.

Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

MemoryName = Literal["fast", "balanced", "low"]
"""What of a video model lies on the device. fast: all weights. balanced: the part that runs. low: the layer
that runs."""


def chosen_device(name: str) -> torch.device:
    """The device called `name`, where auto is CUDA if there is any; ValueError if it is none or not here."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but this machine has none that torch can use: give cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected auto, cpu or cuda as --device, found {name!r}") from error


def numbered(device: torch.device | str) -> torch.device:
    """The device as tensors on it name it: `cuda` becomes `cuda:0`, or whichever is current.

    So that names can be compared; the device must be there.
    """
    import torch

    return torch.empty(0, device=device).device


GIB = 2**30
"""Bytes of a GiB."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes that tensors on `device` could still take; None for main memory, which is never measured.

    What the caching allocator holds without using it counts as free, so that steps of a run see the same.
    """
    if device.type != "cuda":
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch inside a with block; as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
