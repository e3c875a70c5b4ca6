"""Tars of a data set to folders on disk: nothing outside them, whole files only, resumable."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lyra_ns.data.archives import find_tars, outer_folders
from lyra_ns.data.files import copy_whole
from lyra_ns.data.layout import checked_parts, place_of
from lyra_ns.data.tar_index import each_member, naming_damage

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
