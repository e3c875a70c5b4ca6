"""Editions of the pack: lists of its pictures, each with the file and the part of it that it is made from.

An edition is a file, so that the pack that weights were trained on can be made again for as long as the packages
can be had. New ones are written by `python -m training.photographs.choose`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lyra_ns.picture_pack import KINDS, Kind
from training.photographs.pictures import View

EDITIONS = Path(__file__).with_name("editions")
NEWEST = 2


@dataclass(frozen=True)
class Entry:
    """One picture of an edition."""

    name: str
    """In the pack, with the folder of its kind."""
    package: str
    """Name of the package."""
    file: str
    """Path inside the package."""
    view: View | None
    """Of photographs: the part that is shown."""

    @property
    def kind(self) -> Kind:
        """The folder in the pack."""
        return cast(Kind, self.name.split("/")[0])


@dataclass(frozen=True)
class Edition:
    """All pictures of a pack, and what the pack should come out as."""

    entries: tuple[Entry, ...]
    """The pictures."""
    pillow: str
    """Version of Pillow that made it; another one may round pixels differently."""
    sha256: str
    """Of the pack's file then."""


def edition_path(number: int) -> Path:
    """The list of an edition."""
    return EDITIONS / f"{number}.json"


def load_edition(path: Path) -> Edition:
    """An edition from its file. FileNotFoundError or ValueError, in a sentence, if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a list of pictures at {path}: there are editions {editions_there()}")
    try:
        listing = json.loads(path.read_text())
        entries = tuple(_entry(row) for row in listing["pictures"])
        return Edition(entries, str(listing["pillow"]), str(listing["sha256"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no list of pictures ({error}): write it by python -m training.photographs.choose"
        ) from error


def save_edition(path: Path, edition: Edition) -> None:
    """Writes an edition, one picture a line, sorted by name."""
    entries = sorted(edition.entries, key=lambda entry: entry.name)
    rows = ",\n".join(json.dumps(_row(entry)) for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"pillow": "{edition.pillow}", "sha256": "{edition.sha256}", "pictures": [\n{rows}\n]}}\n')


def editions_there() -> list[int]:
    """Numbers of the editions that are kept."""
    return sorted(int(path.stem) for path in EDITIONS.glob("*.json"))


def _row(entry: Entry) -> list[object]:
    view = [] if entry.view is None else [entry.view.box, entry.view.size]
    return [entry.name, entry.package, entry.file, *view]


def _entry(row: Sequence[Any]) -> Entry:
    name, package, file, *view = row
    if str(name).split("/")[0] not in KINDS:
        raise ValueError(f"{name} is in no folder of a pack")
    if not view:
        return Entry(str(name), str(package), str(file), None)
    (left, top, right, bottom), (width, height) = view
    box = (float(left), float(top), float(right), float(bottom))
    return Entry(str(name), str(package), str(file), View(box, (int(width), int(height))))
