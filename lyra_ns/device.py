"""Devices by the names that options and tensors give them. Importing this loads no torch."""

from __future__ import annotations

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
