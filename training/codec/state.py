"""The state of a training run in files of at most 15 MiB, which appear together or not at all.

Weights and their average are kept in float16: the rounding is far below the noise of a step. Of the
optimiser's moments the first begins anew (it is forgotten within ten steps) and of the second the means over
rows and columns are kept, whose product stands for it: they take less than a hundredth of the room.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from lyra_ns.codec.base import LatentStatistics
from lyra_ns.codec.learned import LearnedNetwork

MANIFEST = "state.json"
PART_BYTES = 15 * 2**20
FORMAT = "lyra_ns learned codec training 1"
SMALLEST_MOMENT = 1e-30


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Seconds spent on them, all pieces together."""


def write_state(
    folder: Path,
    network: LearnedNetwork,
    average: LearnedNetwork,
    optimizer: torch.optim.Optimizer,
    statistics: LatentStatistics,
    progress: Progress,
) -> None:
    """Writes the state; one that was there before stays valid until the new one is whole."""
    tensors = {f"network.{key}": value.detach().half() for key, value in network.named_parameters()}
    tensors |= {f"average.{key}": value.detach().half() for key, value in average.named_parameters()}
    for key, parameter in network.named_parameters():
        rows, columns = _factors(optimizer.state[parameter].get("exp_avg_sq", torch.zeros_like(parameter)))
        tensors |= {f"rows.{key}": rows, f"columns.{key}": columns}
    tensors |= {"latent_mean": statistics.mean, "latent_std": statistics.std}
    content = save({key: value.contiguous().cpu() for key, value in tensors.items()})
    folder.mkdir(parents=True, exist_ok=True)
    parts = [content[start : start + PART_BYTES] for start in range(0, len(content), PART_BYTES)]
    names = [f"state-{progress.step:07d}-{number}.part" for number in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        (folder / name).write_bytes(part)
    manifest = {
        "format": FORMAT,
        "config": asdict(network.config),
        "progress": asdict(progress),
        "parts": names,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    unfinished = folder / f"{MANIFEST}.partial"
    unfinished.write_text(json.dumps(manifest, indent=1) + "\n")
    os.replace(unfinished, folder / MANIFEST)
    for path in folder.glob("state-*.part"):
        if path.name not in names:
            path.unlink()


@dataclass(frozen=True)
class SavedState:
    """What `write_state` wrote."""

    config: dict[str, Any]
    """Sizes of the network."""
    progress: Progress
    """How far the run had come."""
    tensors: dict[str, Tensor]
    """Weights, averages and moments."""

    def weights(self, kind: str) -> dict[str, Tensor]:
        """`network` or `average` weights as a state dict, float32."""
        prefix = f"{kind}."
        return {
            key.removeprefix(prefix): tensor.float()
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }

    @property
    def statistics(self) -> LatentStatistics:
        """Statistics of the averaged network's latents."""
        return LatentStatistics(self.tensors["latent_mean"], self.tensors["latent_std"], repeat_last=True)

    def restore_moments(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Gives the optimiser of `network` its second moments back, and first moments of zero."""
        is_fused = bool(optimizer.defaults.get("fused"))
        for key, parameter in network.named_parameters():
            rows, columns = (
                self.tensors[f"{name}.{key}"].to(parameter.device) for name in ("rows", "columns")
            )
            moment = _product(rows, columns).view(parameter.shape)
            # As AdamW keeps it: in the memory order of the weight.
            second = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(moment)
            optimizer.state[parameter] = {
                # A fused optimiser counts on the device.
                "step": torch.tensor(
                    float(self.progress.step), device=parameter.device if is_fused else None
                ),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": second,
            }


def read_state(folder: Path) -> SavedState:
    """The state in `folder`; FileNotFoundError if there is none, ValueError if it is not whole."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: give the folder that --output named before")
    try:
        manifest = json.loads(path.read_text())
        parts, digest = manifest["parts"], manifest["sha256"]
        content = b"".join((folder / name).read_bytes() for name in parts)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{path} names parts that cannot be read ({error}): copy the whole folder"
        ) from error
    if manifest.get("format") != FORMAT or hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{folder} is no whole state of this training (format {manifest.get('format')!r}, checksum of "
            f"{len(parts)} parts compared): copy the whole folder again"
        )
    return SavedState(manifest["config"], Progress(**manifest["progress"]), load(content))


def _factors(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the columns and over the rows of a second moment taken as a matrix."""
    matrix = moment.detach().float().reshape(len(moment), -1)
    return matrix.mean(1), matrix.mean(0)


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    return rows[:, None] * columns / rows.mean().clamp(min=SMALLEST_MOMENT)
