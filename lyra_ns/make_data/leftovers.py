"""What runs leave in a data set: killed ones files under temporary names, refused ones a plan of nothing.

    ROOT/.runs/HOST.PID    one per running `ns-lyra make-data`

Either is removed only when no other run is at work in the folder, whose own it might be.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lyra_ns.data.atomic import no_new_empty_folders, process_exists
from lyra_ns.make_data.plan import FILE_NAME as PLAN_NAME
from lyra_ns.make_data.plan import is_unused

FOLDER = ".runs"
SILENT_SECONDS = 3600.0
"""A run on another machine whose mark was not touched for so long has died."""
SECONDS_BETWEEN_SIGNS = 300.0
"""A run touches its mark so often, however long a single job takes."""


@contextmanager
def registered_run(root: Path) -> Iterator[None]:
    """Marks this run as alive until the block ends."""
    folder, mark = root / FOLDER, _own_mark(root)
    _leave(mark)
    ended = threading.Event()
    signs = threading.Thread(target=_give_signs, args=(mark, ended), daemon=True)
    signs.start()
    try:
        yield
    finally:
        ended.set()
        signs.join()
        mark.unlink(missing_ok=True)
        with suppress(OSError):  # Another run may have its mark there.
            folder.rmdir()


def others_at_work(root: Path) -> bool:
    """Whether another run is at work in the folder; marks of dead ones are removed."""
    own = _own_mark(root)
    alive = False
    for mark in (root / FOLDER).glob("*"):
        if mark == own:
            continue
        if _is_alive(mark):
            alive = True
        else:
            mark.unlink(missing_ok=True)
    return alive


def sweep_up(root: Path) -> None:
    """Removes what dead runs left half-written; for a registered run.

    Runs that start together see each other or, by the time of the mark, leave each other's files alone.
    """
    began = _own_mark(root).stat().st_mtime
    if others_at_work(root):
        return
    for path in root.rglob(".*.partial"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime <= began:
                path.unlink()


@contextmanager
def no_trace_if_refused(root: Path) -> Iterator[None]:
    """Removes the plan and the folders that the block wrote if it fails before anything was made."""
    with no_new_empty_folders(root):
        try:
            yield
        except BaseException:
            if is_unused(root) and not others_at_work(root):
                (root / PLAN_NAME).unlink(missing_ok=True)
            raise


def _own_mark(root: Path) -> Path:
    return root / FOLDER / f"{socket.gethostname()}.{os.getpid()}"


def _leave(mark: Path) -> None:
    while True:
        mark.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # A run that ended has just removed the folder.
            mark.touch()
            return


def _give_signs(mark: Path, ended: threading.Event) -> None:
    while not ended.wait(SECONDS_BETWEEN_SIGNS):
        with suppress(OSError):  # A full disk, say, is told by the run itself.
            mark.touch()


def _is_alive(mark: Path) -> bool:
    host, _, number = mark.name.rpartition(".")
    if host == socket.gethostname() and number.isdecimal():
        return process_exists(int(number))
    with suppress(FileNotFoundError):
        return time.time() - mark.stat().st_mtime < SILENT_SECONDS
    return False
