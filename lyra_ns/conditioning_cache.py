"""Encoded maps kept by content: in memory while a process runs, and in a folder from one run to the next.

Keys are digests of everything that an entry depends on, so an entry can be missing but never be out of date.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lyra_ns.data.files import write_whole

logger = logging.getLogger(__name__)

FOLDER_BYTES = 16 * 2**30
"""Size of the default folder; one trajectory of 121 x 704 x 1280 takes 29 MB."""
SUFFIX = ".safetensors"
ABANDONED_AFTER = 24 * 3600.0
"""Seconds after which a file that was never renamed counts as left behind by a process that died."""


class LatentCache:
    """Encoded maps by content, the least recently used thrown out first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Tensor | None:
        """The entry under `key`, None if it is not there."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: str, latents: Tensor) -> None:
        """Keep `latents`, and let go of older entries until all fit."""
        if key in self._entries:
            self.num_bytes -= self._entries.pop(key).nbytes
        self._entries[key] = latents
        self.num_bytes += latents.nbytes
        while self.num_bytes > self.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.nbytes


class LatentFolder:
    """The same in files of a folder, which any number of processes may share.

    A file appears whole or not at all, carries its own checksum and is deleted with a warning when that does
    not match; the least recently read files go when the folder grows beyond `max_bytes`. A folder that cannot
    be written is said once and left alone: a cache must not stop the work.
    """

    def __init__(self, folder: Path, max_bytes: int = FOLDER_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._is_refused = False

    def get(self, key: str) -> Tensor | None:
        """The entry under `key` on the CPU, None if it is not there or was damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)  # its turn to be thrown out counts from now
        except FileNotFoundError:
            return None
        except OSError as error:
            self._refuse(error)
            return None
        latents = _latents_of(content)
        if latents is None:
            logger.warning("%s is damaged: deleted, and its maps are encoded again", path)
            path.unlink(missing_ok=True)
        return latents

    def put(self, key: str, latents: Tensor) -> None:
        """Write an entry, and delete older ones until all fit."""
        if self._is_refused:
            return
        latents = latents.detach().cpu().contiguous()
        content = save({"latents": latents, "sha256": _checksum(latents)})
        try:
            write_whole(self._path(key), content)
            self._make_room()
        except OSError as error:
            self._refuse(error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _make_room(self) -> None:
        entries = sorted(self._files(), key=lambda entry: entry[1].st_mtime_ns)
        num_bytes = sum(status.st_size for _, status in entries)
        for path, status in entries:
            is_abandoned = path.suffix != SUFFIX and time.time() - status.st_mtime > ABANDONED_AFTER
            if is_abandoned or (num_bytes > self.max_bytes and path.suffix == SUFFIX):
                path.unlink(missing_ok=True)
                num_bytes -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Our files, finished or not, that no other process deletes meanwhile."""
        for path in self.folder.iterdir():
            if path.suffix not in (SUFFIX, ".partial"):
                continue
            try:
                yield path, path.stat()
            except FileNotFoundError:
                continue

    def _refuse(self, error: OSError) -> None:
        if not self._is_refused:
            logger.warning(
                "encoded maps cannot be kept in %s (%s): each run encodes anew", self.folder, error
            )
        self._is_refused = True


def default_cache_folder() -> Path:
    """Where encoded maps are kept unless a folder is named: below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lyra_ns" / "ray_maps"


def _latents_of(content: bytes) -> Tensor | None:
    """The latents of a file, None if it is not one of ours or has changed."""
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, RuntimeError):
        return None
    latents, checksum = tensors.get("latents"), tensors.get("sha256")
    if latents is None or checksum is None or not torch.equal(_checksum(latents), checksum):
        return None
    return latents


def _checksum(latents: Tensor) -> Tensor:
    """SHA-256 of type, shape and numbers, 32 bytes."""
    digest = sha256(f"{latents.dtype} {tuple(latents.shape)}".encode())
    digest.update(latents.view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
