"""GEN3C's official files: tensors out of checkpoints, TorchScript and statistics. No code in them is run."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lyra_ns.generation.gen3c.names import NOT_OF_THE_NETWORK, num_official_layers

RELEASED_MD5 = "38644bf823aa5272acef60cfad8bc0f7"
"""md5 of model.pt in nvidia/GEN3C-Cosmos-7B (docs/reference/gen3c.md, "Names of tensors")."""
CONTAINERS = ("model", "state_dict", "module")
"""Keys under which a checkpoint may keep its tensors."""
BLOCK_BYTES = 2**20


def is_released(path: Path) -> bool:
    """Whether the file is the released GEN3C-Cosmos-7B, by its content."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == RELEASED_MD5


def read_network(path: str | Path) -> dict[str, Tensor]:
    """Tensors by official names without `net.`, mapped from the file where its format allows.

    They may lie at the top or under one of CONTAINERS. What is known as no weight (NOT_OF_THE_NETWORK) is
    left out. FileNotFoundError; ValueError if anything else is no tensor or this is no checkpoint of GEN3C.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of GEN3C's model.pt")
    content = _plain_content(path)
    for container in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
            break
    if not isinstance(content, dict) or not num_official_layers(_short(name) for name in content):
        found = [str(name) for name in content][:3] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is no checkpoint of GEN3C: expected names like net.blocks.block0..., at the top or "
            f"under {', '.join(CONTAINERS)}, found {found}"
        )
    values = {_short(name): value for name, value in content.items()}
    if len(values) < len(content):
        raise ValueError(f"{path} holds a name with and without `net.`: keep one of the two")
    kept = {name: value for name, value in values.items() if not NOT_OF_THE_NETWORK.search(name)}
    odd = [name for name, value in kept.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(f"{path} holds something that is no tensor as {odd[0]}: download it again")
    return kept


def read_script(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript file; its program is loaded and not run."""
    try:
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot be read as TorchScript ({_first_line(error)}): download it again"
        ) from error


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Means and deviations [256] of mean_std.pt: channel x latent frame of a clip of 121 frames."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: put the tokenizer's mean_std.pt beside its .jit files")
    content = _plain_content(path)
    pair = tuple(content) if isinstance(content, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair) or pair[0].shape != pair[1].shape:
        raise ValueError(
            f"{path} must hold two tensors of one shape, means and deviations: download it again"
        )
    mean, std = (part.float().flatten() for part in pair)
    return mean, std


def _plain_content(path: Path) -> Any:
    """What torch.save wrote; TransformerEngine's states are byte streams, which are let through."""
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a bad file
        raise ValueError(
            f"{path} cannot be read as a file of plain tensors ({_first_line(error)}): download it again, "
            "and do not trust a file that holds code"
        ) from error


def _is_archive(path: Path) -> bool:
    """Whether torch can map the file: it is a zip, as torch writes since 1.6."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _short(name: Any) -> str:
    return str(name).removeprefix("net.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
