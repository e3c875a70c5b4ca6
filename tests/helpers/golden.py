"""The deterministic numbers behind the golden values of docs/reference/decoder.md, "Golden numbers"."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lyra_ns.cameras import RayGrid

LATENTS, PLUCKER, TIME, ORIGINS, DIRECTIONS = 1000, 1001, 1002, 1003, 1004


def uniform(shape: tuple[int, ...], stream: int) -> Tensor:
    """Float64 numbers of [0, 1) that depend on their position and `stream` alone (splitmix64)."""
    with np.errstate(over="ignore"):
        x = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = x + np.uint64(stream) * np.uint64(0xD1B54A32D192ED03)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return torch.from_numpy((x >> np.uint64(11)).astype(np.float64) / 2.0**53).reshape(shape)


def signed(shape: tuple[int, ...], stream: int) -> Tensor:
    """Float64 numbers of [-1, 1)."""
    return 2 * uniform(shape, stream) - 1


def weights(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """A state dict whose values depend on the names and shapes of its tensors alone."""
    return {
        key: _weight(key, tuple(shapes[key]), stream).float() for stream, key in enumerate(sorted(shapes))
    }


def _weight(key: str, shape: tuple[int, ...], stream: int) -> Tensor:
    numbers = signed(shape, stream)
    if key.endswith("A_log"):
        return torch.log(1 + 15 * uniform(shape, stream))
    if key.endswith("dt_bias"):
        return numbers - 4
    if key.endswith(".D") or (len(shape) == 1 and key.endswith("weight")):
        return 1 + 0.1 * numbers
    return (0.02 if len(shape) == 1 else 0.06) * numbers


def latents() -> Tensor:
    """[1, 2, 16, 3, 8, 8]."""
    return _by_view(signed((1, 6, 16, 8, 8), LATENTS))


def plucker() -> Tensor:
    """[1, 2, 32, 3, 8, 8]."""
    return _by_view(signed((1, 6, 32, 8, 8), PLUCKER))


def time() -> Tensor:
    """[1, 16, 4, 8, 8]: three source frames and the target frame."""
    return signed((1, 4, 16, 8, 8), TIME).float().transpose(1, 2)


def rays() -> RayGrid:
    """Rays [1, 2, 17, 8, 8]."""
    origins = 0.1 * signed((1, 34, 3, 8, 8), ORIGINS)
    directions = torch.nn.functional.normalize(signed((1, 34, 3, 8, 8), DIRECTIONS), dim=2)
    origins, directions = (
        tensor.float().unflatten(1, (2, 17)).movedim(3, -1) for tensor in (origins, directions)
    )
    return RayGrid(origins, directions, torch.ones(1, 2, 17, 8, 8))


def _by_view(frames: Tensor) -> Tensor:
    """[1, V T, C, h, w] as [1, V, C, T, h, w]."""
    return frames.float().unflatten(1, (2, 3)).transpose(2, 3)
