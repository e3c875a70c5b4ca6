"""What a user is told of an error that ends a command."""

from __future__ import annotations

import errno
import os

WHAT_TO_DO = {
    errno.EACCES: "give another path, or get the permission",
    errno.EPERM: "give another path, or get the permission",
    errno.EROFS: "give a path on a disk that can be written to",
    errno.ENOSPC: "free some space, then give the same command again",
    errno.EDQUOT: "free some space, then give the same command again",
    errno.EEXIST: "give another path, since a folder is needed there",
    errno.ENOTDIR: "give another path, since a folder is needed there",
    errno.EISDIR: "give another path, since a file is needed there",
}
"""Advice by the system's error number."""


def error_text(error: Exception) -> str:
    """Its own sentence; path, reason and advice where the system refuses a file or folder."""
    if not isinstance(error, OSError) or error.errno is None or error.strerror is None:
        return str(error)
    # Of a renaming the second path is the one that the user knows.
    path = error.filename2 or error.filename
    place = "" if path is None else f"{os.fsdecode(path)}: "
    return f"{place}{error.strerror}: {WHAT_TO_DO.get(error.errno, 'check the path and the disk')}"
