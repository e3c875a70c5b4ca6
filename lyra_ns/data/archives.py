"""Tars read in place: a tree of the files inside them, which readers use like folders on disk.

    ROOT/*.tar, ROOT/static/*.tar, or one tar        any layout that `lyra_ns.data.layout` can place

Members are found by one pass over the headers, kept beside each tar as .NAME.tar.index.json, and read by
their offset. A path inside travels to worker processes as the root's name and its own; the tree is opened
again there.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from lyra_ns.data.layout import FAMILIES, TOP_FILES, checked_parts, place_of
from lyra_ns.data.tar_index import TarIndex, read_index

__all__ = ["ArchivePath", "TarTree", "find_tars", "outer_folders", "tar_tree"]

logger = logging.getLogger(__name__)

TAR_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
BUFFER_BYTES = 2**17


class Member(NamedTuple):
    """Where the bytes of one file lie."""

    archive: int
    """Number of the tar."""
    offset: int
    """First byte in it."""
    size: int
    """Number of bytes."""


class TarTree:
    """The files of a data set that lie in tars, by their place in the official layout.

    ValueError, naming the tar and the member, for tars that are damaged, compressed, hold links, devices or
    names that lead out, or hold one clip twice; FileNotFoundError if they hold nothing of a data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        tars = find_tars(root)
        _refuse_compressed(root, tars)
        self.indices: list[TarIndex] = [read_index(path) for path in tars]
        """The tars."""
        self._folders: dict[str, dict[str, Member | None]] = {"": {}}
        """Entries of each folder; None stands for a folder."""
        self._fill()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as its root: another process opens it again from the stored index."""
        return tar_tree, (self.root,)

    @property
    def top(self) -> ArchivePath:
        """The folder that holds 0/ 1/ ..., static/ or dynamic/."""
        return ArchivePath(self, "")

    @property
    def home(self) -> Path:
        """Folder on disk for what belongs to the data set, such as splits.json."""
        folder = self.root if self.root.is_dir() else self.root.parent
        return folder.parent if folder.name in FAMILIES else folder

    def is_current(self) -> bool:
        """Whether the tars on disk are still those that were indexed."""
        paths = find_tars(self.root)
        return paths == [index.path for index in self.indices] and all(
            index.is_current() for index in self.indices
        )

    def entries(self, folder: str) -> dict[str, Member | None] | None:
        """Names in a folder; None if there is no such folder."""
        return self._folders.get(folder)

    def find(self, inner: str) -> Member | None:
        """The file at a path; None if there is none."""
        folder, _, name = inner.rpartition("/")
        return self._folders.get(folder, {}).get(name)

    def open(self, member: Member) -> io.BufferedReader:
        """One file of a tar, opened for itself; ValueError if the tar has changed since it was indexed."""
        index = self.indices[member.archive]
        file = open(index.path, "rb", buffering=0)  # noqa: SIM115  closed by the window
        if not index.is_of(file):
            file.close()
            raise ValueError(
                f"{index.path} has changed since it was opened: let nothing write to it, and start again"
            )
        return io.BufferedReader(_Window(file, member.offset, member.size), BUFFER_BYTES)

    def _fill(self) -> None:
        ambiguous, strays = set(), 0
        for number, index in enumerate(self.indices):
            outer = outer_folders(index.path, self.root)
            for name, offset, size in index.members:
                place = place_of(checked_parts(name, str(index.path)), outer)
                if place is None:
                    strays += 1
                elif self.find(str(place)) is not None and place.name in TOP_FILES:
                    ambiguous.add(str(place))
                else:
                    self._add(place, Member(number, offset, size))
        for name in ambiguous:
            del self._folders[""][name]
            logger.info("%s: several tars hold a %s, so none is read", self.root, name)
        if not self._folders[""]:
            examples = [name for index in self.indices for name, _, _ in index.members[:3]][:6]
            raise FileNotFoundError(
                f"the tars in {self.root} hold no file like 0/pose/CLIP.npz or static/0/rgb/CLIP.mp4, found "
                f"{strays} others, such as {examples}: give the tars of the data set"
            )
        logger.info("%s: %d tars, %d files outside the layout", self.root, len(self.indices), strays)
        # Everything is in the tree now; a large set has a million members.
        self.indices = [replace(index, members=[]) for index in self.indices]

    def _add(self, place: PurePosixPath, member: Member) -> None:
        earlier = self.find(str(place))
        # Within one tar the later entry replaces the earlier, as it does when the tar is unpacked.
        if earlier is not None and earlier.archive != member.archive:
            one, other = (self.indices[each.archive].path for each in (earlier, member))
            raise ValueError(f"both {one} and {other} hold {place}: keep one of the two tars")
        parts = place.parts
        for depth in range(len(parts) - 1):
            parent, folder = "/".join(parts[:depth]), "/".join(parts[: depth + 1])
            self._folders.setdefault(parent, {}).setdefault(parts[depth], None)
            self._folders.setdefault(folder, {})
        self._folders["/".join(parts[:-1])][parts[-1]] = member


@dataclass(frozen=True)
class ArchivePath:
    """A file or folder inside the tars of a tree; reads like a `pathlib.Path` (a `Source`)."""

    tree: TarTree
    """The tars."""
    inner: str
    """Path below the top of the data set, folders separated by a slash."""

    def __str__(self) -> str:
        """The tar and the place of the file, or the root and the place of what is not in it."""
        member = self.tree.find(self.inner)
        archive = self.tree.root if member is None else self.tree.indices[member.archive].path
        return f"{archive}!/{self.inner}" if self.inner else str(archive)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.inner.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Name without its suffix."""
        return PurePosixPath(self.inner).stem

    @property
    def suffix(self) -> str:
        """From the last dot of the name on."""
        return PurePosixPath(self.inner).suffix

    @property
    def parent(self) -> ArchivePath:
        """The folder that it lies in."""
        return ArchivePath(self.tree, self.inner.rpartition("/")[0])

    def __truediv__(self, name: str) -> ArchivePath:
        """The path `name` inside the folder."""
        return ArchivePath(self.tree, f"{self.inner}/{name}".lstrip("/"))

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return self.tree.find(self.inner) is not None

    def is_dir(self) -> bool:
        """Whether there is such a folder."""
        return self.tree.entries(self.inner) is not None

    def iterdir(self) -> Iterator[ArchivePath]:
        """What lies in the folder; FileNotFoundError if there is none."""
        entries = self.tree.entries(self.inner)
        if entries is None:
            raise FileNotFoundError(f"there is no folder {self}")
        return (self / name for name in entries)

    def glob(self, pattern: str) -> Iterator[ArchivePath]:
        """What of the folder has a name of this pattern; nothing where there is no folder."""
        return (self / name for name in self.tree.entries(self.inner) or {} if fnmatch(name, pattern))

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """The file, opened for reading at any position; FileNotFoundError if there is none."""
        member = self.tree.find(self.inner)
        if member is None:
            raise FileNotFoundError(f"there is no file {self}")
        return self.tree.open(member)

    def read_bytes(self) -> bytes:
        """The whole content."""
        with self.open() as file:
            return file.read()

    def __lt__(self, other: ArchivePath) -> bool:
        """By path, for sorting."""
        return self.inner < other.inner


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own."""

    def __init__(self, file: io.FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(f"cannot seek to {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(min(len(view), self._size - self._position), 0)
        self._file.seek(self._start + self._position)
        content = self._file.read(wanted)
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


_OPENED: dict[Path, TarTree] = {}


def tar_tree(root: Path) -> TarTree:
    """The tree of the tars in a folder, or of one tar; opened once per process while they do not change."""
    root = root.resolve()
    tree = _OPENED.get(root)
    if tree is None or not tree.is_current():
        tree = _OPENED[root] = TarTree(root)
    return tree


def find_tars(root: Path) -> list[Path]:
    """The tars in a folder and the folders below it, compressed ones too; or the one that `root` is."""
    if root.is_file():
        return [root] if _is_tar(root) else []
    return sorted(path for path in root.rglob("*") if _is_tar(path) and path.is_file())


def outer_folders(archive: Path, root: Path) -> list[str]:
    """Names of the folders around a tar, as far as they belong to the data, and of the tar without suffix."""
    base = root if root.is_dir() else root.parent
    name = archive.name
    for suffix in (*COMPRESSED_SUFFIXES, TAR_SUFFIX):
        name = name.removesuffix(suffix)
    named = [base.name] if base.name in FAMILIES else []
    return [*named, *archive.relative_to(base).parent.parts, name]


def _is_tar(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.endswith((TAR_SUFFIX, *COMPRESSED_SUFFIXES))


def _refuse_compressed(root: Path, tars: list[Path]) -> None:
    compressed = [path for path in tars if path.suffix != TAR_SUFFIX]
    if compressed:
        raise ValueError(
            f"{len(compressed)} of {len(tars)} tars in {root} are compressed ({compressed[0].name}), and "
            f"only plain ones can be read in place: unpack them with `ns-lyra unpack {root} --output FOLDER`"
        )
