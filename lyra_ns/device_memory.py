"""How much memory a device has left."""

from __future__ import annotations

import torch

GIB = 2**30
"""Bytes of a GiB."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes that tensors on `device` could still take; None for main memory, which is never measured.

    What the caching allocator holds without using it counts as free, so that steps of a run see the same.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused
