"""`python -m training.photographs.choose EDITION.json`: chooses the pictures of a new edition of the pack.

Candidates are what the choices in sources.json take. Each file goes through the filters of `filters.py`; what stays is
ordered by hash, so that no package comes first, and taken until the bytes of a kind are spent: first every photograph
as a whole, then closer views of the large ones in other shapes. Look at what it chose, add what is rubbish to the
exclusions, and choose again.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL
from PIL import Image

from lyra_ns.picture_pack import FOLDER_FORMATS, KINDS, Kind
from training.photographs.archives import download, read_members
from training.photographs.build import WORK, build_pack
from training.photographs.editions import Edition, Entry, save_edition
from training.photographs.filters import FILTERS, SeenPictures
from training.photographs.pictures import View, decode, make_picture, on_sky
from training.photographs.sources import Package, load_packages

BUDGETS: dict[Kind, int] = {"photographs": 13_000_000, "textures": 3_700_000, "cutouts": 2_900_000}
"""Bytes of the pictures of each kind."""
AREA = 576 * 360
"""Pixels of a photograph, or fewer where the file has no more: nothing is enlarged."""
SHAPES = (1.6, 0.75, 1.0, 0.625, 1.333, 1.5, 0.667)
"""Width by height of closer views, one after the other."""
WIDEST, NARROWEST = 1.78, 0.6
"""A whole picture that is wider or narrower is cut to these."""
CLOSER = ((0.62, 800), (0.4, 1400))
"""Closer views: their share of the largest window, and the shorter side that a file must have for them."""
SHORTEST_SIDE = 250
"""Of photographs."""


@dataclass(frozen=True)
class Candidate:
    """A picture that passed the filters."""

    order: tuple[int, str]
    """Round, then hash of the file."""
    kind: Kind
    """Of the picture."""
    package: str
    """Name of its package."""
    file: str
    """Path inside the package."""
    view: View | None
    """Of photographs."""
    num_bytes: int
    """Of the encoded picture."""


def choose(packages: Sequence[Package], work: Path, say: Callable[[str], None]) -> list[Entry]:
    """The pictures of a new edition."""
    candidates: list[Candidate] = []
    seen = {kind: SeenPictures() for kind in KINDS}
    for package in packages:
        if not package.choices:
            continue
        found = [
            candidate
            for kind, file, content in _wanted(package, download(package, work))
            for candidate in candidates_of(kind, package.name, file, content, seen[kind])
        ]
        counts = ", ".join(f"{sum(c.kind == kind for c in found)} {kind}" for kind in package.choices)
        say(f"{package.name}: {counts}")
        candidates += found
    return [entry for kind in KINDS for entry in _within_budget(kind, candidates)]


def candidates_of(
    kind: Kind, package: str, file: str, content: bytes, seen: SeenPictures
) -> Iterator[Candidate]:
    """Pictures of one file that pass the filters of their kind; none if it cannot be decoded."""
    try:
        image = decode(content)
    except ValueError:
        return
    if not FILTERS[kind](image) or seen.holds(image):
        return
    digest = hashlib.sha256(content).hexdigest()
    for turn, view in enumerate(views_of(image, digest) if kind == "photographs" else [None]):
        shown = on_sky(image).crop(tuple(round(side) for side in view.box)) if view else image
        if turn and not FILTERS[kind](shown):
            continue
        yield Candidate(
            (turn, digest), kind, package, file, view, len(make_picture(kind, image, view))
        )  # fmt: skip


def views_of(image: Image.Image, digest: str) -> list[View]:
    """The whole photograph, and closer views of large ones in other shapes, at places that follow from the hash."""
    width, height = image.size
    if min(width, height) < SHORTEST_SIDE:
        return []
    views = [_view(image, min(max(width / height, NARROWEST), WIDEST), 1.0, 0.5, 0.4)]
    for turn, (share, least) in enumerate(CLOSER):
        if min(width, height) >= least:
            numbers = hashlib.sha256(f"{digest} {turn}".encode()).digest()
            shape = SHAPES[numbers[0] % len(SHAPES)]
            views.append(_view(image, shape, share, numbers[1] / 255, numbers[2] / 255))
    return views


def _view(image: Image.Image, shape: float, share: float, across: float, down: float) -> View:
    """A window of a shape: its share of the largest, and where it lies in what is left, 0 to 1."""
    width, height = image.size
    largest = min(width, height * shape)
    box_width, box_height = share * largest, share * largest / shape
    left, top = across * (width - box_width), down * (height - box_height)
    full = (AREA * shape) ** 0.5
    scale = min(1.0, box_width / full)
    size = (8 * round(full * scale / 8), 8 * round(full / shape * scale / 8))
    box = (left, top, min(left + box_width, float(width)), min(top + box_height, float(height)))
    return View(tuple(round(side, 3) for side in box), size)  # type: ignore[arg-type]


def _wanted(package: Package, archive: Path) -> Iterator[tuple[Kind, str, bytes]]:
    """Kind, path and content of the files that the package's choices take."""

    def kind_of(path: str) -> Kind | None:
        return next((kind for kind, choice in package.choices.items() if choice.takes(path)), None)

    for file, content in read_members(archive, lambda path: kind_of(path) is not None):
        kind = kind_of(file)
        assert kind is not None
        yield kind, file, content


def _within_budget(kind: Kind, candidates: Sequence[Candidate]) -> Iterator[Entry]:
    """The candidates of a kind in order, until the bytes are spent."""
    left = BUDGETS[kind]
    ending = {"JPEG": "jpg", "WEBP": "webp"}[FOLDER_FORMATS[kind]]
    ordered = sorted((c for c in candidates if c.kind == kind), key=lambda candidate: candidate.order)
    for number, candidate in enumerate(ordered):
        left -= candidate.num_bytes
        if left < 0:
            return
        yield Entry(f"{kind}/{number:05d}.{ending}", candidate.package, candidate.file, candidate.view)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.photographs.choose", description=__doc__)
    parser.add_argument("edition", type=Path, help="the list to write, EDITION.json")
    parser.add_argument("--work", type=Path, default=WORK, help=f"folder of downloads, by default {WORK}")
    options = parser.parse_args(arguments)
    packages, work = load_packages(), options.work.expanduser()
    try:
        entries = tuple(choose(list(packages.values()), work, say=lambda text: print(text, flush=True)))
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / "pack.zip"
            build_pack(trial, Edition(entries, "", ""), packages, work)
            digest = hashlib.sha256(trial.read_bytes()).hexdigest()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    save_edition(options.edition, Edition(entries, PIL.__version__, digest))
    print(f"{options.edition}: {len(entries)} pictures, pack {digest}")


if __name__ == "__main__":
    main()
