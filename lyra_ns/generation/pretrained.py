"""Pipelines of diffusers and models of transformers from a folder or the hub, and where their weights lie."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Memory = Literal["fast", "balanced", "low"]
"""fast: all weights on the device. balanced: the part that runs. low: the layer that runs."""
Loaded = TypeVar("Loaded")


def diffusers_class(name: str, purpose: str) -> Any:
    """A class of diffusers; ModuleNotFoundError if the installed version does not have it."""
    import diffusers

    try:
        return getattr(diffusers, name)
    except (AttributeError, RuntimeError, ImportError) as error:
        raise ModuleNotFoundError(
            f"{purpose} needs a diffusers with {name}, found diffusers {diffusers.__version__} without it: "
            "install a newer one with `pip install -U diffusers`"
        ) from error


def load_pipeline(
    class_name: str, location: str, precision: torch.dtype | dict[str, torch.dtype], purpose: str
) -> Any:
    """The pipeline of that class of diffusers from a folder or hub id, on the CPU.

    Errors as from `diffusers_class` and `load_pretrained`; ValueError, before the weights are read, if they
    were saved as a pipeline of another class.
    """
    kind = diffusers_class(class_name, purpose)
    found = load_pretrained(kind.load_config, location, purpose)["_class_name"]
    if found != class_name:
        raise ValueError(
            f"{purpose}: expected the weights of a {class_name} at {location}, found those of a {found}: "
            "give other weights or choose another model"
        )

    def load(place: str) -> Any:
        return kind.from_pretrained(place, torch_dtype=precision)

    return load_pretrained(load, location, purpose)


def load_pretrained(
    load: Callable[[str], Loaded], location: str, purpose: str, config_name: str = "model_index.json"
) -> Loaded:
    """What `load` makes of a folder with `config_name`, or of a hub id owner/name.

    FileNotFoundError, in one sentence, if there are no weights, if some are missing, or if they cannot be
    read or fetched; ModuleNotFoundError if reading them needs a package that is not installed.
    """
    folder = Path(location).expanduser()
    if not folder.is_dir() and not HUB_ID.fullmatch(location):
        raise FileNotFoundError(
            f"{purpose}: expected a folder with {config_name} or a hub id owner/name, found neither at "
            f"{location!r}: give one of the two"
        )
    if folder.is_dir() and not (folder / config_name).is_file():
        raise FileNotFoundError(
            f"{purpose}: expected {config_name} in the folder {folder}, found none: give the folder that "
            "save_pretrained wrote, or one downloaded from the hub as a whole"
        )
    try:
        loaded = load(str(folder) if folder.is_dir() else location)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{purpose}: the weights at {location} need a package that is missing ({first_line(error)})"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"{purpose}: the weights at {location} could not be loaded ({first_line(error)}): download them "
            f"where there is a network with `hf download {location}` (gated ones after `hf auth login`), or "
            "give the path of a complete folder"
        ) from error
    if missing := missing_weights(loaded):
        raise FileNotFoundError(
            f"{purpose}: the weights at {location} lack {len(missing)} tensors of their network, the first "
            f"is {missing[0]}: convert or download them again"
        )
    return loaded


def missing_weights(loaded: Any) -> list[str]:
    """Names of the weights that the files of a pipeline or network did not hold.

    diffusers only logs a warning about them and leaves them without numbers, on the device `meta`.
    """
    parts = getattr(loaded, "components", {"": loaded})
    return [
        f"{part}.{name}".removeprefix(".")
        for part, network in parts.items()
        if isinstance(network, torch.nn.Module)
        for name, weight in network.named_parameters()
        if weight.is_meta
    ]


def first_line(error: Exception) -> str:
    """What an error says, without what follows its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def default_dtype(device: torch.device | str, dtype: torch.dtype | None) -> torch.dtype:
    """The given precision, or bfloat16 on a GPU and float32 on a CPU."""
    if dtype is not None:
        return dtype
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def place(pipeline: Any, device: torch.device | str, memory: Memory) -> Any:
    """The pipeline of diffusers, ready to run on `device` with as much of its weights there as `memory` says.

    On a CPU there is nothing to save, and all three are the same. `low` also decodes in tiles, which blends
    their edges. ValueError for another name.
    """
    if memory not in ("fast", "balanced", "low"):
        raise ValueError(f"memory must be fast, balanced or low, found {memory!r}: choose one of them")
    if memory == "fast" or torch.device(device).type == "cpu":
        return pipeline.to(device)
    if memory == "balanced":
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    pipeline.enable_sequential_cpu_offload(device=device)
    enable_tiling = getattr(getattr(pipeline, "vae", None), "enable_tiling", None)
    if enable_tiling is not None:
        enable_tiling()
    return pipeline
