"""Devices by their full names."""

from __future__ import annotations

import torch


def numbered(device: torch.device | str) -> torch.device:
    """The device as tensors on it name it: `cuda` becomes `cuda:0`, or whichever is current.

    So that names can be compared; the device must be there.
    """
    return torch.empty(0, device=device).device
