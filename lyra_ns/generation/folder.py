"""The folder of a result: it appears when all of it is done, or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lyra_ns.data.atomic import no_new_empty_folders, process_exists

PREVIEW = "preview"
"""Folder of a dry run, which a later run keeps."""
UNFINISHED = "unfinished"
"""Folder of what an interrupted run has made until then; it is gone when the result is there."""
OWN_NAMES = {
    "scene.ply",
    "scene.html",
    "instants",
    "video.mp4",
    "contact_sheet.png",
    "latents",
    "record.json",
    PREVIEW,
    UNFINISHED,
}
"""What a run writes; nothing else is ever replaced."""


def check_output(
    output: Path, input_path: Path | None, overwrite: bool, is_dry_run: bool, goes_on: bool = True
) -> None:
    """Refuse, before anything is computed, a folder that may not be written.

    FileExistsError if it holds more than a preview (and, for a run that `goes_on` with them, clips of an
    interrupted one) and `overwrite` is not given, or if it holds what no run has written; NotADirectoryError
    if it is a file; ValueError if the input lies in what would be replaced, or if the folder cannot be put in
    its place.
    """
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"output {output} is a file: give the name of a folder")
    _check_place(output / PREVIEW if is_dry_run else output)
    found = sorted(path.name for path in output.iterdir()) if output.exists() else []
    replaced = {PREVIEW} if is_dry_run else OWN_NAMES
    foreign = [name for name in found if name not in OWN_NAMES]
    if foreign and not is_dry_run:
        raise FileExistsError(
            f"output {output} holds {', '.join(foreign[:3])}, which this command has not written: give a "
            "folder that does not exist yet"
        )
    if UNFINISHED in found and not goes_on and not is_dry_run and not overwrite:
        raise FileExistsError(
            f"output {output} holds clips of an unfinished run, which this one would not use: give another "
            "folder, or --overwrite to lose them"
        )
    if set(found) - {PREVIEW, UNFINISHED} and not overwrite:
        raise FileExistsError(
            f"output {output} is there already and not empty: give another folder, or --overwrite"
        )
    if input_path is None:
        return
    given = input_path.resolve()
    if any(given.is_relative_to((output / name).resolve()) for name in replaced if name in found):
        raise ValueError(f"input {input_path} lies in the output {output}, which would be replaced")


def mend_output(output: Path) -> None:
    """Undo what a killed run has left beside `output`: half a result goes, what it moved aside comes back.

    The same for the preview in it.
    """
    output = Path(os.path.realpath(output))
    for folder in (output, output / PREVIEW):
        for path in _left_beside(folder, "partial"):
            shutil.rmtree(path)
        for path in _left_beside(folder, "earlier"):
            if folder.exists():
                shutil.rmtree(path)
            else:
                path.rename(folder)


def _left_beside(output: Path, ending: str) -> list[Path]:
    """Folders of runs that are dead, of those that `whole_folder` makes."""
    name = re.compile(rf"\.{re.escape(output.name)}\.(\d+)\.{ending}")
    beside = output.parent.iterdir() if output.parent.is_dir() else ()
    found = [(path, name.fullmatch(path.name)) for path in beside]
    return sorted(path for path, match in found if match and _is_dead(int(match[1])))


def _is_dead(number: int) -> bool:
    """Whether the run of a process is over; in containers the next run often has the number of the last."""
    return number == os.getpid() or not process_exists(number)


def _check_place(folder: Path) -> None:
    """ValueError if a finished folder could not be renamed to this one, after all the work."""
    if os.path.ismount(os.path.realpath(folder)):
        raise ValueError(
            f"output {folder} is a mount point, which cannot be replaced as a whole: give a folder in it"
        )
    parents = Path(os.path.realpath(folder)).parents
    place = next(parent for parent in parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"output {folder} must be in a folder that can be written to, found {place}")


def unfinished_folder(output: Path) -> Path:
    """Where a run keeps what it has made until all is done."""
    return Path(os.path.realpath(output)) / UNFINISHED


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """An empty folder beside `output` that takes its place at the end; after an error nothing of it is left.

    A preview that lies in `output` is moved over; what interrupted runs left there goes when all is done.
    Call `check_output` before.
    """
    # A link stays, and what it leads to is replaced.
    output = Path(os.path.realpath(output))
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    with no_new_empty_folders(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            _take_place(partial, output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, output: Path) -> None:
    """Moves the finished folder to its name; what was there is deleted only after that."""
    if not output.exists():
        partial.rename(output)
        return
    earlier = output.with_name(f".{output.name}.{os.getpid()}.earlier")
    output.rename(earlier)
    try:
        partial.rename(output)
    except OSError:
        earlier.rename(output)
        raise
    kept = earlier / PREVIEW
    if kept.is_dir() and not (output / PREVIEW).exists():
        kept.rename(output / PREVIEW)
    shutil.rmtree(earlier)
