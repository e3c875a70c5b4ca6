"""`python -m training.photographs.check PACK.zip --held-out FOLDER...`: no held-out picture is in a pack.

Every picture of the folders is compared with every picture of the pack: by the hashes of the files, and by
likeness, which finds copies that were resized, encoded again or cut out. The exit status is 1 if there is
one.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from PIL import Image

from lyra_ns.data.picture_pack import Pack
from training.photographs.fingerprints import Fingerprints, take_fingerprints
from training.photographs.likeness import (
    COPY,
    WORTH_A_LOOK,
    coarse,
    comparable,
    holds_at_second_look,
    most_alike,
    windows_of,
)

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".tga"}
SMALLEST_SIDE = 48
"""Held-out pictures with a shorter side are icons: too small to be told apart."""


@dataclass(frozen=True)
class Copy:
    """A picture of a pack that may be, or show a part of, a held-out picture."""

    name: str
    """Name in the pack."""
    held_out: Path
    """The held-out picture."""
    likeness: float
    """1 for equal files."""

    def __str__(self) -> str:
        if self.likeness == 1.0:
            return f"{self.name} is made from {self.held_out}: take it out of the list"
        return (
            f"{self.name} looks like a copy of {self.held_out} (likeness {self.likeness:.3f}): look at both"
        )


def copies_of(path: Path, pack: Fingerprints) -> list[Copy]:
    """The pictures of a pack that are copies of a picture file. ValueError if it cannot be decoded."""
    equal = pack.hashes.get(hashlib.sha256(path.read_bytes()).hexdigest())
    if equal is not None:
        return [Copy(equal, path, 1.0)]
    try:
        with Image.open(path) as opened:
            if min(opened.size) < SMALLEST_SIDE:
                return []
            image = comparable(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded ({error})") from error
    boxes, windows = windows_of(image)
    likenesses = coarse(windows) @ coarse(pack.thumbnails).T
    copies = []
    for number in numpy.flatnonzero(likenesses.max(0) >= WORTH_A_LOOK):
        found = most_alike(image, boxes, likenesses[:, number], pack.thumbnails[number])
        if found.value < COPY:
            continue
        if pack.large is None or holds_at_second_look(image, found.box, pack.large[number]):
            copies.append(Copy(pack.names[number], path, found.value))
    return copies


def pictures_in(folders: Sequence[Path]) -> Iterator[Path]:
    """All picture files in folders and below, or the files themselves, each content once."""
    seen = set()
    for folder in folders:
        if not folder.exists():
            raise FileNotFoundError(f"expected held-out pictures in {folder}: give a folder that is there")
        for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            if path.suffix.lower() in ENDINGS and path.is_file() and not path.is_symlink():
                digest = hashlib.sha256(path.read_bytes()).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield path


def check_pack(pack: Pack, folders: Sequence[Path]) -> tuple[list[Copy], int]:
    """Copies of held-out pictures in a pack, and how many held-out pictures it was compared with.

    Files that are no pictures, whatever their name, are told and passed over. ValueError if no others are
    there.
    """
    fingerprints = take_fingerprints(pack)
    copies, num_compared = [], 0
    for path in pictures_in(folders):
        try:
            copies += copies_of(path, fingerprints)
            num_compared += 1
        except ValueError as error:
            print(f"passed over: {error}", file=sys.stderr)
    if not num_compared:
        raise ValueError(
            f"no pictures in {', '.join(map(str, folders))}: give the held-out folders, unpacked"
        )
    return copies, num_compared


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.photographs.check", description=__doc__)
    parser.add_argument("pack", type=Path, help="the pack, PACK.zip")
    parser.add_argument(
        "--held-out", type=Path, nargs="+", required=True, help="folders of held-out pictures"
    )
    options = parser.parse_args(arguments)
    try:
        copies, num_compared = check_pack(Pack(options.pack), options.held_out)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    for copy in copies:
        print(copy)
    print(f"{options.pack}: compared with {num_compared} held-out pictures, {len(copies)} may be copies")
    if copies:
        sys.exit(1)


if __name__ == "__main__":
    main()
