"""Decoders on disk: our own file (safetensors with the configuration inside) and the official containers.

An official file holds no configuration, and the tensors of the static and of the dynamic model have the same
names and shapes. The files of nvidia/Lyra are recognised by their checksum; of any other file the caller says
which it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from lyra_ns.data.files import write_whole
from lyra_ns.decoder import DecoderConfig, LatentGaussianDecoder
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
