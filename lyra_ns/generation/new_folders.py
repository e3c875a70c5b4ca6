"""Folders that a run which fails must not leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
