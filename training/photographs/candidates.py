"""`python -m training.photographs.candidates PACKAGE KIND`: files that may become pictures.

PACKAGE is a .deb or .tgz. Choose by eye among what it prints, add that to pictures.json, and its package to
sources.json, with what its copyright file says of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lyra_ns.data.picture_pack import KINDS, Kind
from training.photographs.archives import read_members
from training.photographs.filters import FILTERS, SeenPictures, is_worth_decoding
from training.photographs.pictures import decode
from training.photographs.sources import refuse_held_out


def candidates(archive: Path, kind: Kind) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Path, sha256, width and height of files that pass the filters and look like none before.

    ValueError if the package is held out or damaged; files that are damaged are passed over.
    """
    refuse_held_out(archive.name.split("_")[0])
    seen = SeenPictures()
    for file, content in read_members(archive, lambda path: is_worth_decoding(kind, path)):
        try:
            image = decode(content)
        except ValueError:
            continue
        if FILTERS[kind](image) and not seen.holds(image):
            yield file, hashlib.sha256(content).hexdigest(), image.size


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.photographs.candidates", description=__doc__)
    parser.add_argument("package", type=Path, help="the package, a .deb or .tgz file")
    parser.add_argument("kind", choices=KINDS, help="what the pictures are for")
    options = parser.parse_args(arguments)
    try:
        for file, digest, (width, height) in candidates(options.package, options.kind):
            print(f"{json.dumps(file)}: {json.dumps(digest)} {width} x {height}", flush=True)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
