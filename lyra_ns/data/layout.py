"""Where a file of the official layout belongs, and in which order its trajectories are read.

The released set ships as tars whose inner layout is not written down, so the end of a name decides:
.../[static|dynamic|novel/...]NUMBER/KIND/CLIP.suffix, with any folders (and the tar's own name) before it.
Decoders are trained to read trajectories in one order; the poses of the first are the reference. Light on
purpose: commands read the order before torch is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

KINDS = ("pose", "intrinsics", "latent", "rgb", "depth")
"""Folders of a trajectory that are read."""
FAMILIES = ("static", "dynamic")
NOVEL_FOLDER = "novel"
TOP_FILES = ("manifest.json", "splits.json")
"""Files of a data set that stand at its top."""
MAX_TRAJECTORY = 99
"""Largest number that is taken for a trajectory; official ones go to 11."""


def checked_parts(name: str, archive: str) -> list[str]:
    """The folders and the file of a member's name; ValueError if it leads out of the folder it belongs in."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    is_absolute = name.startswith(("/", "\\")) or bool(re.match(r"[A-Za-z]:", name))
    if is_absolute or ".." in parts or "\\" in name or "\0" in name:
        raise ValueError(
            f"{archive} holds a file named {name!r}, which leads out of the folder it is unpacked in: do not "
            "trust this archive, get it from its source again"
        )
    return parts


def place_of(parts: list[str], outer: list[str]) -> PurePosixPath | None:
    """Path of a file below the data set's top, like static/0/rgb/CLIP.mp4; None if it is none of the set.

    `parts` is its name inside an archive; `outer` are the folders around that archive and its own name
    without suffix, which count like folders.
    """
    if not parts or parts[-1].startswith("."):
        return None
    folders, name = [*outer, *parts[:-1]], parts[-1]
    if name in TOP_FILES:
        return PurePosixPath(name)
    kind = folders.pop() if folders and folders[-1] in KINDS else None
    while folders and folders[-1] in KINDS:
        folders.pop()
    if kind is None or not folders or not folders[-1].isdecimal() or int(folders[-1]) > MAX_TRAJECTORY:
        return None
    inside = PurePosixPath(str(int(folders.pop())), kind, name)
    family = _family_of(folders)
    return inside if family is None else family / inside


def _family_of(folders: list[str]) -> PurePosixPath | None:
    """static, dynamic or novel, from the innermost folder or archive whose name says it."""
    for folder in reversed(folders):
        if folder == NOVEL_FOLDER:
            return PurePosixPath(NOVEL_FOLDER)
        named = set(re.split(r"[^a-z]+", folder.lower())) & set(FAMILIES)
        if len(named) == 1:
            return PurePosixPath(named.pop())
    return None


READING_ORDER = (5, 0, 1, 2, 3, 4)
"""The usual six, as in the official demonstrations."""


def in_reading_order(trajectories: Iterable[int]) -> list[int]:
    """The usual ones first and in their order, then all others as they came."""
    found = list(trajectories)
    usual = [number for number in READING_ORDER if number in found]
    return [*usual, *(number for number in found if number not in usual)]
