"""What a tar holds: names, offsets and sizes, found once and kept in a small JSON file beside it."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lyra_ns.data.files import write_whole
from lyra_ns.data.layout import checked_parts

logger = logging.getLogger(__name__)

FORMAT = "lyra_ns tar index 1"
INDEX_SUFFIX = ".index.json"
READ_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error)
"""What tarfile raises for a damaged archive; OSError of the disk is among them."""


@dataclass(frozen=True)
class TarIndex:
    """The plain files of one uncompressed tar."""

    path: Path
    """The tar."""
    size: int
    """Its bytes when it was indexed."""
    modified: int
    """Its time of modification then, in nanoseconds."""
    members: list[tuple[str, int, int]]
    """Name, first byte and number of bytes of each file, in the order of the tar."""

    def is_current(self) -> bool:
        """Whether the tar on disk is still the one that was indexed."""
        return _stamp(os.stat(self.path)) == (self.size, self.modified)

    def is_of(self, file: io.FileIO) -> bool:
        """Whether an open file is the tar that was indexed."""
        return _stamp(os.fstat(file.fileno())) == (self.size, self.modified)


def read_index(path: Path) -> TarIndex:
    """The index of a tar: the stored one if it fits size and time of the tar, or a new one, which is stored.

    ValueError, naming the member, if the tar is damaged, compressed or holds what no data set holds.
    """
    size, modified = _stamp(path.stat())
    for place in _places(path):
        members = _stored_members(place, size, modified)
        if members is not None:
            return TarIndex(path, size, modified, members)
    members = []
    for _, member in each_member(path, "r:"):
        if member.issparse():
            raise ValueError(
                f"{path} holds {member.name!r} as a sparse file, which cannot be read in place: unpack it "
                f"with `ns-lyra unpack {path} --output FOLDER`"
            )
        members.append((member.name, member.offset_data, member.size))
    index = TarIndex(path, size, modified, members)
    _store(index)
    return index


def each_member(
    path: Path, mode: Literal["r:", "r:*"] = "r:*"
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The plain files of a tar in its order, each with the open tar.

    ValueError if it cannot be read to its end, or at the first member that is no plain file or whose name
    leads out of the folder it is unpacked in.
    """
    compressed = "" if mode == "r:*" else ", or a compressed one, which `ns-lyra unpack` reads"
    with naming_damage(path, compressed), tarfile.open(path, mode) as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # or a million of them stay in memory
            checked_parts(member.name, str(path))
            if not member.isreg() and not member.isdir():
                raise ValueError(
                    f"{path} holds {_kind(member)} named {member.name!r}, which no data set needs: do not "
                    "trust this archive, get it from its source again"
                )
            if member.isreg():
                yield tar, member
        _check_end(path, tar)


@contextmanager
def naming_damage(path: Path, or_else: str = "") -> Iterator[None]:
    """What tarfile raises for a damaged tar becomes one ValueError; errors of the disk stay what they are."""
    try:
        yield
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise ValueError(
            f"{path} must be a tar, found one that is damaged or cut short ({reason}){or_else}: "
            "download it again"
        ) from error


def _check_end(path: Path, tar: tarfile.TarFile) -> None:
    """Python takes a broken header, or a file that just stops, for the end; a tar ends with zeros."""
    file: Any = tar.fileobj
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"no end mark at byte {tar.offset}")


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym():
        return "a symbolic link"
    return "a hard link" if member.islnk() else "a device or pipe"


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _places(path: Path) -> list[Path]:
    """Where an index may lie: beside the tar, or in the user's cache where that folder cannot be written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lyra_ns" / "tars"
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return [path.with_name(f".{path.name}{INDEX_SUFFIX}"), cache / f"{path.name}.{digest}{INDEX_SUFFIX}"]


def _stored_members(place: Path, size: int, modified: int) -> list[tuple[str, int, int]] | None:
    """Members of a stored index; None if there is none that is whole and fits."""
    try:
        content = json.loads(place.read_bytes())
        if (content["format"], content["size"], content["modified"]) != (FORMAT, size, modified):
            return None
        members = [(str(name), int(offset), int(count)) for name, offset, count in content["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_inside = all(min(offset, count) >= 0 and offset + count <= size for _, offset, count in members)
    return members if is_inside else None


def _store(index: TarIndex) -> None:
    stamp = {"format": FORMAT, "size": index.size, "modified": index.modified}
    text = json.dumps({**stamp, "members": index.members}, separators=(",", ":")).encode()
    for place in _places(index.path):
        try:
            write_whole(place, text)
        except OSError as error:
            logger.info("the index of %s cannot be stored at %s (%s)", index.path, place, error)
        else:
            return
