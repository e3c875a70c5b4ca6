"""Decoders on disk: our own file, the official containers, a nerfstudio run, the hub, and the one that ships.

Our file is safetensors with the configuration inside. An official file holds no configuration, and the
tensors of the static and of the dynamic model have the same names and shapes. The files of nvidia/Lyra are
recognised by their checksum; of any other file the caller says which it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict, dataclass, fields, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from lyra_ns.data.atomic import write_whole
from lyra_ns.decoder.config import TINY_DECODER, DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import GaussianHeadConfig

logger = logging.getLogger(__name__)

FORMAT = "lyra_ns decoder"
FORMAT_VERSION = "1"
MACHINE_FIELDS = ("trunk_dtype", "ssd_backend", "attention", "recompute")
"""Fields that say how to compute on one machine, not what: they are not stored."""
BLOCK_BYTES = 2**20
NUM_LISTED = 5
"""Names of each kind that an error lists before it says how many more there are."""

StoredDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class OfficialFile:
    """A checkpoint that the authors released in the repository nvidia/Lyra."""

    name: str
    """Its name there."""
    use_time: bool
    """Whether it is the dynamic model."""


OFFICIAL_FILES = {
    "28ddd05011b33350c70edab02c23c602": OfficialFile("lyra_static.pt", use_time=False),
    "91c1b3920332287ed161bc47a1fd7077": OfficialFile("lyra_dynamic.pt", use_time=True),
}
"""Released checkpoints by md5 (docs/reference/decoder.md, "Checkpoint files")."""


def recognise(path: str | Path) -> OfficialFile | None:
    """Which released checkpoint a file is, by its content; None if it is none of them."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return OFFICIAL_FILES.get(digest.hexdigest())


def load_decoder(path: str | Path, config: DecoderConfig | None = None) -> LatentGaussianDecoder:
    """The decoder stored at `path`, on the CPU with float32 weights (bfloat16 for `parity`).

    A .safetensors file brings its configuration. Any other file is read as an official checkpoint: a released
    one is recognised, another one is taken for the static model, which is logged. A given `config` replaces
    all that. FileNotFoundError; ValueError if the file is damaged or its tensors do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no decoder at {path}: give the path of a .safetensors or official .pt file")
    if path.suffix == ".safetensors":
        stored_config, codec_digest, tensors = _read_own(path)
        config = config or stored_config
    else:
        codec_digest, tensors = "", _read_official(path)
        config = config or _official_config(path)
    with torch.device("meta"):  # drawing random weights would take longer than reading the stored ones
        decoder = LatentGaussianDecoder(config)
    expected = decoder.state_dict()
    _check_tensors(path, tensors, expected)
    # Copies, because the tensors of an official file may be parts of one buffer.
    own = {key: value.to(expected[key].dtype, copy=True).contiguous() for key, value in tensors.items()}
    decoder.load_state_dict(own, assign=True)
    assert not any(tensor.is_meta for tensor in (*decoder.parameters(), *decoder.buffers()))
    decoder.codec_digest = codec_digest
    return decoder


def save_decoder(decoder: LatentGaussianDecoder, path: str | Path, dtype: StoredDtype = "float32") -> Path:
    """Writes the decoder as one safetensors file, whole or not at all, and returns its path."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"a decoder is saved as a .safetensors file, found {path.name}")
    kind = getattr(torch, dtype)
    tensors = {key: value.detach().cpu().to(kind).contiguous() for key, value in decoder.state_dict().items()}
    metadata = {"format": FORMAT, "version": FORMAT_VERSION, "config": config_to_json(decoder.config)}
    if decoder.codec_digest:
        metadata["codec_digest"] = decoder.codec_digest
    write_whole(path, save(tensors, metadata))
    return path


def config_to_json(config: DecoderConfig) -> str:
    """The configuration as it is stored in a file, without what belongs to one machine."""
    stored = {key: value for key, value in asdict(config).items() if key not in MACHINE_FIELDS}
    return json.dumps(stored, sort_keys=True)


def _config_from_json(path: Path, text: str) -> DecoderConfig:
    """The configuration in a file; a field younger than the file keeps its default, which changes nothing."""
    stored: dict[str, Any] = json.loads(text)
    head: dict[str, Any] = stored.pop("head", {})
    known = {field.name for field in fields(DecoderConfig)}
    known_head = {field.name for field in fields(GaussianHeadConfig)}
    unknown = sorted((stored.keys() - known) | (head.keys() - known_head))
    if unknown:
        raise ValueError(
            f"{path} has settings that this version does not know ({', '.join(unknown)}): update lyra-ns"
        )
    return replace(DecoderConfig(**stored), head=GaussianHeadConfig(**head))


def _read_own(path: Path) -> tuple[DecoderConfig, str, dict[str, Tensor]]:
    """Configuration, digest of the codec (empty where the file says none) and tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != FORMAT_VERSION:
                raise ValueError(
                    f"{path} is no decoder of format version {FORMAT_VERSION}, its header says "
                    f"{metadata.get('format')!r} version {metadata.get('version')!r}: give a file that "
                    "save_decoder wrote"
                )
        config = _config_from_json(path, metadata["config"])
        return config, metadata.get("codec_digest", ""), load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): copy or download it again") from error


def _official_config(path: Path) -> DecoderConfig:
    official = recognise(path)
    if official is None:
        logger.warning(
            "%s is none of nvidia/Lyra's released files and does not say whether it is the static or the "
            "dynamic model: taken for the static one",
            path,
        )
    return DecoderConfig(use_time=official is not None and official.use_time)


def _read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of {"module": ...}, {"state_dict": ...} or a bare state dict, "module." cut off names."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a bad file
        raise ValueError(
            f"{path} cannot be read as a checkpoint of plain tensors ({_first_line(error)}): download it "
            "again, and do not trust a file that holds code"
        ) from error
    for container in ("module", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path} holds no state dict: expected tensors by name at the top, under 'module' or under "
            "'state_dict'"
        )
    return {key.removeprefix("module."): value for key, value in content.items()}


def _check_tensors(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """ValueError with missing, unexpected and misshapen tensors, a few names each."""
    misshapen = [
        f"{key} {list(found[key].shape)} instead of {list(expected[key].shape)}"
        for key in sorted(found.keys() & expected.keys())
        if found[key].shape != expected[key].shape
    ]
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": misshapen,
    }
    parts = [f"{len(names)} {kind} ({_shorten(names)})" for kind, names in problems.items() if names]
    if parts:
        raise ValueError(
            f"{path} does not fit the decoder's {len(expected)} tensors: {'; '.join(parts)}. Is the "
            "DecoderConfig the one that it was trained with?"
        )


def _shorten(names: list[str]) -> str:
    more = len(names) - NUM_LISTED
    return ", ".join(names[:NUM_LISTED]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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
