"""The list of pictures of the pack: of each its name, the file that it is made from, and which part of that.

The list is a file, so that the pack that the shipped weights learned from can be made again for as long as
the packages can be had. By package and licence it names files with their sha256, and for each the pictures
that are made from it: null, or for a photograph left, top, right and bottom of its view, width and height of
the picture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lyra_ns.data.picture_pack import KINDS, Kind
from training.photographs.pictures import View
from training.photographs.sources import Package

LIST_FILE = Path(__file__).with_name("pictures.json")


@dataclass(frozen=True)
class Entry:
    """One picture of the list."""

    name: str
    """In the pack, with the folder of its kind."""
    package: str
    """Name of the package."""
    licence: str
    """Of the file."""
    file: str
    """Path inside the package."""
    file_sha256: str
    """Of the file."""
    view: View | None
    """Of photographs: the part that is shown; textures and cut-outs are taken whole."""

    @property
    def kind(self) -> Kind:
        """The folder in the pack."""
        return cast(Kind, self.name.split("/")[0])


def load_list(path: Path, packages: Mapping[str, Package]) -> list[Entry]:
    """The pictures by name. FileNotFoundError or ValueError, in a sentence, if the list is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a list of pictures at {path}")
    try:
        entries = [
            _entry(name, package, licence, file, digest, view)
            for package, by_licence in json.loads(path.read_text()).items()
            for licence, files in by_licence.items()
            for file, (digest, views) in files.items()
            for name, view in views.items()
        ]
        _check(entries, packages)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no list of pictures: {error}") from error
    return sorted(entries, key=lambda entry: entry.name)


def _check(entries: Sequence[Entry], packages: Mapping[str, Package]) -> None:
    """ValueError for a package or a licence that is not listed, or two pictures of one name."""
    seen = set()
    for entry in entries:
        if entry.package not in packages:
            raise ValueError(f"{entry.name} is of the package {entry.package}, which sources.json lacks")
        if entry.licence not in packages[entry.package].licences:
            raise ValueError(
                f"{entry.name} is under {entry.licence}, which sources.json lacks of {entry.package}"
            )
        if entry.name in seen:
            raise ValueError(f"two pictures are named {entry.name}")
        if not re.fullmatch("[0-9a-f]{64}", entry.file_sha256):
            raise ValueError(f"{entry.file} of {entry.package} has no sha256 of 64 hexadecimal digits")
        seen.add(entry.name)


def _entry(
    name: str, package: str, licence: str, file: str, digest: str, view: Sequence[Any] | None
) -> Entry:
    kind = name.split("/")[0]
    if kind not in KINDS:
        raise ValueError(f"{name} is in no folder of a pack, expected one of {KINDS}")
    if (view is not None) != (kind == "photographs"):
        raise ValueError(f"{name}: photographs, and only they, have a view")
    if view is None:
        return Entry(name, package, licence, file, digest, None)
    left, top, right, bottom, width, height = view
    box = (float(left), float(top), float(right), float(bottom))
    return Entry(name, package, licence, file, digest, View(box, (int(width), int(height))))
