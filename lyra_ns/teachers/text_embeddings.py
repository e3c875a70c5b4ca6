"""Embeddings of GEN3C's prompts, computed once, so that T5 (4.9 billion weights) is loaded at most once.

A folder may keep them from run to run, a file for each text and encoder.
Shape letters: S tokens, E channels.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lyra_ns.data.atomic import write_whole
from lyra_ns.device import MemoryName
from lyra_ns.gen3c.inputs import check_texts, encode_texts
from lyra_ns.pretrained import default_dtype, load_pretrained

logger = logging.getLogger(__name__)

KEY = "embedding"
SAMPLED_BYTES = 2**20
"""Of a large file its size, and so much of its start and of its end, tell it from others."""


class TextEmbeddings:
    """Embeddings of texts by the T5 at `encoder`, which computes on `device` and then is dropped.

    It is loaded into main memory. Where `memory` is `fast` all of it goes to the device, if there is room
    beside what is there, such as the network; else, and for `balanced` and `low`, layer by layer.
    `encoder` is a folder or hub id with T5 and its tokenizer, or a pipeline's folder with both in it; `cache`
    a folder to keep embeddings in. Without an encoder the pipeline's own T5 encodes, if it has one.
    """

    def __init__(
        self,
        pipeline: Any,
        encoder: str | None = None,
        cache: Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        memory: MemoryName = "fast",
    ) -> None:
        self._memory: MemoryName = memory
        self._pipeline, self._encoder, self._cache = pipeline, encoder, cache
        self._device, self._dtype = device, default_dtype(device, dtype)
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def of(self, texts: Sequence[str]) -> dict[str, Float[Tensor, "1 S E"]]:
        """The embeddings by text, on the CPU; ValueError if there is a new text and no T5.

        UnsafeContent if the pipeline has a safety checker and it refuses a text.
        """
        if self._pipeline.safety_checker is not None:
            check_texts(self._pipeline.safety_checker, sorted(set(texts)))
        missing = sorted(text for text in set(texts) - set(self._known) if not self._read(text))
        if missing:
            for text, embedding in zip(missing, self._encoded(missing), strict=True):
                self._known[text] = embedding
                self._write(text)
        return {text: self._known[text] for text in texts}

    def _encoded(self, texts: list[str]) -> list[Tensor]:
        """Embeddings on the CPU; T5 is gone afterwards."""
        if self._encoder is None:
            return [self._pipeline.encode_prompt([text]).cpu() for text in texts]
        from lyra_ns.gen3c.memory import place_text_encoder

        tokenizer, encoder = load_t5(self._encoder, self._dtype)
        place_text_encoder(encoder, self._memory, self._device)
        try:
            return [encode_texts([text], tokenizer, encoder, self._device).cpu() for text in texts]
        finally:
            del encoder
            gc.collect()  # What fetches layers holds them and is held by them.

    def _read(self, text: str) -> bool:
        """Whether the folder has the embedding, which then is known."""
        path = self._path(text)
        if path is None or not path.is_file():
            return False
        try:
            self._known[text] = load(path.read_bytes())[KEY]
        except (SafetensorError, KeyError) as error:
            logger.warning("text embedding %s is damaged (%s): computing it again", path, error)
            return False
        return True

    def _write(self, text: str) -> None:
        path = self._path(text)
        if path is not None:
            write_whole(path, save({KEY: self._known[text].contiguous()}, {"text": text}))

    def _path(self, text: str) -> Path | None:
        if self._cache is None or self._encoder is None:
            return None
        key = f"{encoder_digest(self._encoder)}/{self._dtype}/{text}"
        return self._cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def load_t5(location: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and encoder of a folder or hub id; FileNotFoundError, in one sentence, without weights."""
    from transformers import AutoTokenizer, T5EncoderModel

    parts = _parts(location)
    tokenizer = load_pretrained(
        AutoTokenizer.from_pretrained, parts[0], "text encoder of GEN3C", "tokenizer_config.json"
    )
    encoder = load_pretrained(
        lambda place: T5EncoderModel.from_pretrained(place, dtype=dtype),
        parts[1],
        "text encoder of GEN3C",
        "config.json",
    )
    return tokenizer, encoder.eval()


def encoder_digest(location: str) -> str:
    """A fingerprint of an encoder's files without loading them; of a hub id the id itself.

    FileNotFoundError, in one sentence, if tokenizer or encoder are missing or cannot be read.
    """
    folders = [Path(part).expanduser() for part in _parts(location)]
    if not folders[1].is_dir():
        return location
    digest = hashlib.sha256()
    try:
        for path in sorted({file for folder in folders for file in folder.iterdir() if file.is_file()}):
            digest.update(f"{path.name} {path.stat().st_size} ".encode())
            digest.update(_ends(path))
    except OSError as error:
        raise FileNotFoundError(
            f"text encoder of GEN3C: expected tokenizer and text_encoder in {location}, found that "
            f"{error.filename} cannot be read ({error.strerror}): give a complete folder, as save_pretrained "
            "writes it"
        ) from error
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    """The start and the end of a file."""
    with open(path, "rb") as file:
        head = file.read(SAMPLED_BYTES)
        file.seek(max(0, path.stat().st_size - SAMPLED_BYTES))
        return head + file.read(SAMPLED_BYTES)


def _parts(location: str) -> tuple[str, str]:
    """Where the tokenizer and the encoder are: side by side in a pipeline's folder, or together."""
    folder = Path(location).expanduser()
    if (folder / "text_encoder").is_dir():
        return str(folder / "tokenizer"), str(folder / "text_encoder")
    return location, location
