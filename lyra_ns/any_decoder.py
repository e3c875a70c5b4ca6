"""Where a decoder comes from: the package, our file, an official one, a nerfstudio run or the hub."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from lyra_ns.checkpoints import load_decoder
from lyra_ns.decoder import LatentGaussianDecoder
from lyra_ns.decoder_config import TINY_DECODER, DecoderConfig

logger = logging.getLogger(__name__)

SHIPPED_DECODER = "lyra_tiny.safetensors"
"""File in `lyra_ns.weights` of the decoder that ships with the package."""

NERFSTUDIO_PREFIX = "_model.decoder."
"""What stands before the decoder's names in a nerfstudio checkpoint."""
AVERAGED_PREFIX = "_model.averaged."
"""The same for the moving average of its weights (--pipeline.model.ema-decay)."""

PRETRAINED_NAME = "model.safetensors"
"""Our file in a folder that `Lyra.save_pretrained` wrote, and in a repository on the hub."""
OFFICIAL_REPOSITORY = "nvidia/Lyra"
"""Where the authors released theirs, under their own names."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""owner/name."""
DECODER_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
"""Endings of files, which no hub id has."""

MethodName = Literal["lyra", "lyra-dynamic", "lyra-tiny"]
"""Methods whose networks a checkpoint without a configuration may hold."""


def decoder_config_of(name: MethodName) -> DecoderConfig:
    """The configuration that `ns-train` gives the method's decoder; lyra-dynamic is lyra with times."""
    if name not in get_args(MethodName):
        raise ValueError(f"expected one of {', '.join(get_args(MethodName))} as --config, found {name!r}")
    if name == "lyra-tiny":
        return replace(TINY_DECODER)
    return DecoderConfig(use_time=name == "lyra-dynamic")


def load_any_decoder(
    checkpoint: str | Path = "shipped", config: MethodName | None = None, revision: str | None = None
) -> LatentGaussianDecoder:
    """The decoder `shipped`, or of a .safetensors, an official .pt, or a nerfstudio .ckpt or run folder.

    Or of a folder with model.safetensors, or of a hub id owner/name at `revision` (a branch, tag or commit),
    which is asked only where no file or folder has that name.

    `config` names the method whose network a file without a configuration holds: by default `lyra` for
    official files and `lyra-tiny` for nerfstudio's, whose config.yml is not read: that would run its code.
    FileNotFoundError; ValueError if the file is damaged or holds another network.
    """
    given = None if config is None else decoder_config_of(config)
    if str(checkpoint) == "shipped":
        if config not in (None, "lyra-tiny"):
            raise ValueError(
                f"the decoder that ships is one of lyra-tiny, found --config {config}: give its weights as "
                "--checkpoint, or leave --config out"
            )
        with as_file(files("lyra_ns.weights") / SHIPPED_DECODER) as path:
            return load_decoder(path, given)
    path = Path(checkpoint).expanduser()
    if _is_hub_id(str(checkpoint), path):
        path = _from_hub(str(checkpoint), config, revision)
    if path.is_dir():
        own = path / PRETRAINED_NAME
        path = own if own.is_file() else latest_checkpoint(path)
    if path.suffix != ".ckpt":
        return load_decoder(path, given)
    return _from_nerfstudio(path, config or "lyra-tiny")


def _is_hub_id(name: str, path: Path) -> bool:
    return not path.exists() and path.suffix not in DECODER_SUFFIXES and bool(HUB_ID.fullmatch(name))


def _from_hub(name: str, config: MethodName | None, revision: str | None) -> Path:
    """The file of a decoder on the hub, fetched unless it was before; FileNotFoundError if it cannot be."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    file = PRETRAINED_NAME
    if name == OFFICIAL_REPOSITORY:
        file = "lyra_dynamic.pt" if config == "lyra-dynamic" else "lyra_static.pt"
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except (OSError, ValueError) as error:  # HfHubHTTPError is an OSError, a bad id a ValueError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        if isinstance(error, LocalEntryNotFoundError):
            reason = "it cannot be reached"
        raise FileNotFoundError(
            f"no decoder {name}: no file or folder here has that name, and the hub gave no {file} "
            f"({reason}); give shipped, a path that is there, or a repository's id where there is a network"
        ) from error


def latest_checkpoint(folder: Path) -> Path:
    """The newest step-*.ckpt of a nerfstudio run, given its folder or its nerfstudio_models."""
    inner = folder / "nerfstudio_models"
    found = sorted((inner if inner.is_dir() else folder).glob("step-*.ckpt"))
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no step-*.ckpt, neither itself nor in nerfstudio_models: give the folder of one "
            "nerfstudio run (outputs/NAME/METHOD/TIMESTAMP), or a file"
        )
    return found[-1]


def _from_nerfstudio(path: Path, method: MethodName) -> LatentGaussianDecoder:
    tensors = nerfstudio_tensors(path)
    decoder = LatentGaussianDecoder(decoder_config_of(method))
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    differing = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{path} holds another network than that of {method}: {len(differing)} of {len(expected)} "
            f"tensors differ, the first is {name} (expected {expected.get(name)}, found {found.get(name)}); "
            f"say which it is with --config {' or '.join(get_args(MethodName))}"
        )
    decoder.load_state_dict(tensors)
    return decoder


def nerfstudio_tensors(path: Path) -> dict[str, Tensor]:
    """The decoder's tensors by its own names; the moving average of them where the run kept one."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give a step-*.ckpt or the folder of its run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a bad file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as a checkpoint of plain tensors ({reason}): copy it again, and do not "
            "trust a file that holds code"
        ) from error
    pipeline = content.get("pipeline") if isinstance(content, dict) else None
    # Trained by several processes, everything of the model stands one "module." deeper.
    names = {name.replace("_model.module.", "_model.", 1): name for name in pipeline or {}}
    is_averaged = any(short.startswith(AVERAGED_PREFIX) for short in names)
    if is_averaged:
        logger.info("%s holds a moving average of the weights, which is used", path)
    prefix = AVERAGED_PREFIX if is_averaged else NERFSTUDIO_PREFIX
    tensors = {
        short.removeprefix(prefix): pipeline[name]
        for short, name in names.items()
        if pipeline is not None and short.startswith(prefix)
    }
    if not tensors:
        raise ValueError(
            f"{path} is no checkpoint of `ns-train lyra`: expected names like {NERFSTUDIO_PREFIX}... under "
            f"pipeline, found {list(names)[:3] or 'no pipeline'}; give one that this plugin's methods wrote"
        )
    return tensors
