"""What killed runs leave in a data set: files under temporary names, and marks of the runs themselves.

    ROOT/.runs/HOST.PID    one per running `ns-lyra make-data`

Half-written files are swept away only when no other run is at work in the folder, whose own they might be.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = ".runs"
SILENT_SECONDS = 3600.0
"""A run on another machine whose mark was not touched for so long has died."""
SECONDS_BETWEEN_SIGNS = 300.0
"""A run touches its mark so often, however long a single job takes."""


@contextmanager
def registered_run(root: Path) -> Iterator[None]:
    """Marks this run as alive until the block ends, after sweeping up behind dead ones."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if not _others_alive(folder):
        for path in root.rglob(".*.partial"):
            path.unlink(missing_ok=True)
    mark = folder / f"{socket.gethostname()}.{os.getpid()}"
    mark.touch()
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


def _give_signs(mark: Path, ended: threading.Event) -> None:
    while not ended.wait(SECONDS_BETWEEN_SIGNS):
        with suppress(OSError):  # A full disk, say, is told by the run itself.
            mark.touch()


def _others_alive(folder: Path) -> bool:
    """Whether another run is at work; marks of dead ones are removed."""
    alive = False
    for mark in folder.iterdir():
        if _is_alive(mark):
            alive = True
        else:
            mark.unlink(missing_ok=True)
    return alive


def _is_alive(mark: Path) -> bool:
    host, _, number = mark.name.rpartition(".")
    if host == socket.gethostname() and number.isdecimal():
        return int(number) != os.getpid() and _process_exists(int(number))
    with suppress(FileNotFoundError):
        return time.time() - mark.stat().st_mtime < SILENT_SECONDS
    return False


def _process_exists(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
