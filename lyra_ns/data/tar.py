"""Tars of a data set: read in place like folders on disk, or unpacked to them.

    ROOT/*.tar, ROOT/static/*.tar, or one tar        any layout that `lyra_ns.data.layout` can place

Members are found by one pass over the headers (names, offsets, sizes), kept in a small JSON file beside each
tar, .NAME.tar.index.json, and read by their offset. A path inside travels to worker processes as the root's
name and its own; the tree is opened again there. Unpacking writes nothing outside the given folder and whole
files only, and goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, cast

from lyra_ns.data.atomic import copy_whole, write_whole
from lyra_ns.data.layout import FAMILIES, TOP_FILES, checked_parts, place_of

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


SPARE_BYTES = 2**28
"""Free space that unpacking leaves."""

OnFile = Callable[[Path, int], None]
"""Told the tar and the bytes of each member that is done with, for progress."""


@dataclass(frozen=True)
class UnpackReport:
    """What `unpack` did."""

    num_written: int
    """Files written."""
    num_kept: int
    """Files that were there already, with the size that they should have."""
    strays: list[str]
    """Names of members outside the layout, which were left out."""


def tars_of(given: Sequence[Path]) -> list[tuple[Path, list[str]]]:
    """Each tar among files and folders, with the names around it that tell where its files belong.

    FileNotFoundError for a path that does not exist or holds no tar, and where none is given.
    """
    if not given:
        raise FileNotFoundError("no tar was given: give .tar, .tar.gz or .tgz files, or a folder with some")
    tars: list[tuple[Path, list[str]]] = []
    for path in given:
        root = path.expanduser()
        found = find_tars(root) if root.exists() else []
        if not found:
            raise FileNotFoundError(
                f"no tar at {path}: give .tar, .tar.gz or .tgz files, or a folder with some"
            )
        tars += [(tar, outer_folders(tar, root)) for tar in found]
    return tars


def unpack(
    given: Sequence[Path], output: Path, on_file: OnFile | None = None, keep_spare: int = SPARE_BYTES
) -> UnpackReport:
    """Writes the clips of tars as OUTPUT[/static|/dynamic]/NUMBER/KIND/CLIP.suffix.

    A file that is there with the right size is kept, so that a call that was interrupted goes on when it is
    repeated. Members outside the layout are left out and named. ValueError, naming the member, for links,
    devices and names that lead out (files before it are written by then), for damaged tars, and if less
    than `keep_spare` bytes would stay free on the disk.
    """
    tars = tars_of(given)
    _check_space([tar for tar, _ in tars], output, keep_spare)
    num_written, num_kept, strays = 0, 0, []
    for path, outer in tars:
        for tar, member in each_member(path):
            place = place_of(checked_parts(member.name, str(path)), outer)
            if place is None:
                strays.append(member.name)
            elif _is_complete(output / place, member.size):
                num_kept += 1
            else:
                _check_free(output, member.size, keep_spare, member.name)
                source = cast("io.BufferedReader", tar.extractfile(member))  # plain files have content
                _remove_partial(output / place)
                with naming_damage(path):
                    copy_whole(output / place, source, member.size)
                num_written += 1
            if on_file:
                on_file(path, member.size)
    if not num_written + num_kept:
        raise ValueError(
            f"the tars hold no file like 0/pose/CLIP.npz or static/0/rgb/CLIP.mp4, found {len(strays)} "
            f"others, such as {strays[:6]}: give the tars of the data set"
        )
    return UnpackReport(num_written, num_kept, strays)


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _remove_partial(path: Path) -> None:
    """What a killed call has left of this file."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        partial.unlink(missing_ok=True)


def _check_space(tars: list[Path], output: Path, keep_spare: int) -> None:
    """Before the first file: videos and latents hardly compress, so the tars' size is what is needed."""
    present = (
        sum(file.stat().st_size for file in output.rglob("*") if file.is_file()) if output.is_dir() else 0
    )
    _check_free(output, sum(tar.stat().st_size for tar in tars) - present, keep_spare, f"{len(tars)} tars")


def _check_free(output: Path, needed: int, keep_spare: int, what: str) -> None:
    existing = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free - keep_spare:
        raise ValueError(
            f"unpacking {what} to {output} needs {needed / 1e9:.2f} GB and leaves {keep_spare / 1e9:.2f} GB "
            f"spare, found {free / 1e9:.2f} GB free: make room, or read the tars in place by giving their "
            "folder as the data"
        )
