"""Pipelines of diffusers and models of transformers from a folder or the hub, and where their weights lie.

A checkpoint that lacks tensors is an error: transformers draws these at random and only warns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from lyra_ns.device import MemoryName

NUM_NAMED = 3
"""Missing tensors that a message names."""
_PATCHING = RLock()


class MissingWeights(ValueError):
    """A checkpoint lacks tensors of its network; the message counts them and names some."""

    def __init__(self, names: Sequence[str]) -> None:
        shown = ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
        super().__init__(f"lack {len(names)} tensors of their network ({shown})")


@contextmanager
def refusing_missing_weights() -> Iterator[None]:
    """While it lasts, transformers raises MissingWeights instead of drawing numbers for what a file lacks.

    Pipelines of diffusers load some of their parts through transformers and do not hand on what these lacked,
    so that from_pretrained itself is replaced for the time.
    """
    from transformers import PreTrainedModel

    with _PATCHING:
        stock = PreTrainedModel.__dict__["from_pretrained"]

        def from_pretrained(kind: Any, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
            network, info = stock.__get__(None, kind)(*args, output_loading_info=True, **options)
            if missing := sorted(info["missing_keys"]):
                raise MissingWeights([f"{kind.__name__}.{name}" for name in missing])
            return (network, info) if output_loading_info else network

        PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            PreTrainedModel.from_pretrained = stock  # type: ignore[method-assign]


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
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

    `load` must look up from_pretrained when it is called, as a lambda does: see `refusing_missing_weights`.
    FileNotFoundError, in one sentence, if there are no weights, if some are missing (which transformers, too,
    would only warn of), or if they cannot be read or fetched; ModuleNotFoundError if reading them needs a
    package that is not installed.
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
        with refusing_missing_weights():
            loaded = load(str(folder) if folder.is_dir() else location)
        if missing := missing_weights(loaded):
            raise MissingWeights(missing)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{purpose}: the weights at {location} need a package that is missing ({first_line(error)})"
        ) from error
    except MissingWeights as error:
        raise FileNotFoundError(
            f"{purpose}: the weights at {location} {error}: convert or download them again"
        ) from error
    except torch.cuda.OutOfMemoryError:
        raise
    # RuntimeError: numbers of other shapes than the configuration says; SafetensorError: half a file.
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable(location, folder, purpose, error) from error
    return loaded


def _unreadable(location: str, folder: Path, purpose: str, error: Exception) -> FileNotFoundError:
    """What to say where a folder, or a hub id, gives no weights."""
    if not folder.is_dir():
        return FileNotFoundError(
            f"{purpose}: the weights at {location} could not be loaded ({_cause(error)}): download them "
            f"where there is a network with `hf download {location}` (gated ones after `hf auth login`), or "
            "give the path of a complete folder"
        )
    lacking = ", ".join(_missing_parts(folder))
    reason = f"it has no folder {lacking}" if lacking else first_line(error)
    return FileNotFoundError(
        f"{purpose}: the folder {folder} could not be loaded ({reason}): copy or convert it again, so that "
        "it is complete"
    )


def _cause(error: Exception) -> str:
    """Why a hub id gives no weights; where no hub was reached diffusers speaks of a missing file."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    chain: list[BaseException] = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None and earlier not in chain:
        chain.append(earlier)
    if any(isinstance(link, LocalEntryNotFoundError) for link in chain):
        return f"the hub cannot be reached: {first_line(chain[-1])}"
    return first_line(error)


def _missing_parts(folder: Path) -> list[str]:
    """Folders that a pipeline's index names and that are not there; none for a folder of one network."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError):
        return []
    parts = (name for name, kind in index.items() if isinstance(kind, list) and kind and kind[0] is not None)
    return [name for name in parts if not (folder / name).is_dir()]


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


def first_line(error: BaseException) -> str:
    """What an error says, without what follows its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def default_dtype(device: torch.device | str, dtype: torch.dtype | None) -> torch.dtype:
    """The given precision, or bfloat16 on a GPU and float32 on a CPU."""
    if dtype is not None:
        return dtype
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def place(pipeline: Any, device: torch.device | str, memory: MemoryName) -> Any:
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
