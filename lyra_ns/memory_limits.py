"""What a device has left, and clear words where that is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lyra_ns.device_memory import free_bytes
from lyra_ns.memory_estimate import MemoryEstimate, gib

MEMINFO = Path("/proc/meminfo")
"""Where Linux says what main memory has left."""


class DoesNotFit(ValueError):
    """The pass needs more memory than there is; the message gives the numbers and what to try."""


def available_bytes(device: torch.device) -> int | None:
    """Bytes that tensors on `device` could still take; None where nothing says it."""
    if device.type == "cuda":
        return free_bytes(device)
    if device.type != "cpu" or not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None


def too_large(estimate: MemoryEstimate, free: int, device: torch.device) -> DoesNotFit:
    """The refusal of a pass that cannot fit even in its smallest way."""
    return DoesNotFit(
        f"this scene needs about {estimate} even in the chunked way, and {gib(free)} of {device} are free: "
        f"{_advice(device, is_chunked=True)}"
    )


@contextmanager
def explaining_exhaustion(
    device: torch.device,
    estimate: MemoryEstimate | None = None,
    free: int | None = None,
    is_chunked: bool = False,
) -> Iterator[None]:
    """Turns torch's out-of-memory errors, of a GPU or of main memory, into DoesNotFit.

    `estimate` and `free` are what was said and found before the pass, if anything.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_exhaustion(error):
            raise
        expected = f"; the estimate was {estimate}" if estimate else ""
        found = "" if free is None else f", and {gib(free)} were free at the start"
        raise DoesNotFit(
            f"{device} ran out of memory{expected}{found}: {_advice(device, is_chunked)}"
        ) from error


def _is_exhaustion(error: Exception) -> bool:
    # Main memory has no error class of its own.
    is_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return is_host or isinstance(error, torch.cuda.OutOfMemoryError)


def _advice(device: torch.device, is_chunked: bool) -> str:
    """What the user can do, without what was done already."""
    steps = ["read fewer trajectories (such as --trajectories 5 0 1)"]
    if not is_chunked:
        steps.append("take the chunked way (--memory chunked)")
    if device.type == "cuda":
        steps += ["end other programs on the GPU", "run on the processor (--device cpu)"]
    return f"{', '.join(steps[:-1])} or {steps[-1]}" if len(steps) > 1 else steps[0]
