"""Files and folders that appear whole or not at all, and what readers ask of a file wherever it lies."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable


def process_exists(number: int) -> bool:
    """Whether there is a process of that number, of any user."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def no_new_empty_folders(folder: Path) -> Iterator[None]:
    """If the block fails, removes `folder` and those above it that were not there before and hold nothing."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with suppress(OSError):  # From the first one on that holds something they stay.
            for path in new:
                path.rmdir()
        raise


COPY_BYTES = 2**20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that only writing meets."""


@runtime_checkable
class Source(Protocol):
    """A file or folder to read: a `pathlib.Path`, or an `ArchivePath` inside a tar."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        ...

    @property
    def stem(self) -> str:
        """Name without its suffix."""
        ...

    @property
    def suffix(self) -> str:
        """From the last dot of the name on."""
        ...

    @property
    def parent(self) -> Source:
        """The folder that it lies in."""
        ...

    def is_file(self) -> bool:
        """Whether there is such a file."""
        ...

    def is_dir(self) -> bool:
        """Whether there is such a folder."""
        ...

    def iterdir(self) -> Iterator[Source]:
        """What lies in the folder."""
        ...

    def glob(self, pattern: str, /) -> Iterator[Source]:
        """What of the folder has a name of this pattern; nothing where there is no folder."""
        ...

    def open(self, mode: Literal["rb"], /) -> io.BufferedReader:
        """The file, opened for reading at any position."""
        ...

    def read_bytes(self) -> bytes:
        """The whole content."""
        ...

    def __truediv__(self, name: str, /) -> Source:
        """The path `name` inside the folder."""
        ...


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes `content` under a temporary name beside `path`, flushes it to disk, then renames it."""
    with _partial(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def copy_whole(path: Path, source: io.BufferedIOBase, num_bytes: int) -> None:
    """Copies a stream as `write_whole` does, but leaves flushing to the system; ValueError if it is shorter.

    After a crash of the machine a copy may have another size, which a later run can see.
    """
    with _partial(path) as file:
        shutil.copyfileobj(source, file, COPY_BYTES)
        if file.tell() != num_bytes:
            raise ValueError(
                f"{path} must get {num_bytes} bytes, found {file.tell()} in its source: download it again"
            )


@contextmanager
def _partial(path: Path) -> Iterator[io.BufferedWriter]:
    """A file under a temporary name, which gets its true one if nothing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process numbers alone repeat on the machines of a cluster, most of all in containers.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        # The system names no file when a write fails, as on a full disk.
        if error.filename == os.fspath(partial) or (error.filename is None and error.errno in NO_ROOM):
            error.filename = os.fspath(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
