"""Fingerprints of the pictures of a pack: what tells copies, without the pictures themselves.

`python -m training.photographs.fingerprints PACK.zip` writes those of the pack that was made from the list,
so that tests hold every picture of it against held-out ones without downloading anything.

Shape letters: P pictures, T pixels of a thumbnail, L of a large one.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import PIL
from numpy.typing import NDArray
from PIL import Image

from lyra_ns.data.picture_pack import KINDS, Pack
from training.photographs.likeness import FINE, LARGE, comparable, thumbnail
from training.photographs.listing import Entry
from training.photographs.sources import refuse_held_out

FINGERPRINTS_FILE = Path(__file__).with_name("fingerprints.json")
STEPS = 15
"""Grey values of a kept thumbnail are 0 to this: two in a byte."""


@dataclass(frozen=True)
class Fingerprints:
    """What pictures of a pack are compared by."""

    names: list[str]
    """Names of the pictures."""
    hashes: dict[str, str]
    """Names by sha256: of the files that pictures were made from, and of those of a pack themselves."""
    thumbnails: NDArray[numpy.float32]
    """Of whole pictures [P, T]."""
    large: NDArray[numpy.float32] | None
    """Larger ones [P, L] for a second look; None where the pictures are not there."""


@dataclass(frozen=True)
class KeptFingerprints:
    """Fingerprints as they were kept in a file."""

    pack_sha256: str
    """Of the pack."""
    pillow: str
    """Version of Pillow that made it; another one may round pixels differently."""
    fingerprints: Fingerprints
    """Of its pictures."""


def take_fingerprints(pack: Pack) -> Fingerprints:
    """Those of all pictures of a pack. ValueError if there is none, or one of a held-out package."""
    names = [name for kind in KINDS for name in pack.names(kind)]
    if not names:
        raise ValueError(f"{pack.path} holds no pictures: build it from the list")
    hashes = {}
    for name in names:
        refuse_held_out(pack.source(name).package)
        hashes[pack.source(name).sha256] = hashes[pack.source(name).file_sha256] = name
    images = [comparable(Image.fromarray(pack.read(name))) for name in names]
    thumbnails = numpy.stack([thumbnail(image) for image in images])
    return Fingerprints(
        names, hashes, thumbnails, numpy.stack([thumbnail(image, side=LARGE) for image in images])
    )


def load_fingerprints(entries: Sequence[Entry], path: Path = FINGERPRINTS_FILE) -> KeptFingerprints:
    """Those that were kept of a list of pictures.

    ValueError, in a sentence, if the file is none of fingerprints, or of another list.
    """
    try:
        kept = json.loads(path.read_text())
        thumbnails = {str(name): _unpacked(text) for name, text in kept["thumbnails"].items()}
        if list(thumbnails) != [entry.name for entry in entries]:
            raise ValueError("the list has other pictures")
        hashes = {entry.file_sha256: entry.name for entry in entries}
        fingerprints = Fingerprints(list(thumbnails), hashes, numpy.stack(list(thumbnails.values())), None)
        return KeptFingerprints(str(kept["pack_sha256"]), str(kept["pillow"]), fingerprints)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold the fingerprints of the list ({error}): "
            "write them by python -m training.photographs.fingerprints"
        ) from error


def save_fingerprints(pack: Pack, path: Path = FINGERPRINTS_FILE) -> None:
    """Writes those of a pack, one picture a line."""
    taken = take_fingerprints(pack)
    pairs = sorted(zip(taken.names, taken.thumbnails, strict=True), key=lambda pair: pair[0])
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(_packed(values))}" for name, values in pairs)
    digest = hashlib.sha256(pack.path.read_bytes()).hexdigest()
    head = f'{{"pack_sha256": "{digest}", "pillow": "{PIL.__version__}", "thumbnails": {{'
    path.write_text(f"{head}\n{rows}\n}}}}\n")


def _packed(values: NDArray[numpy.float32]) -> str:
    """A thumbnail [T] as text: its values from darkest to brightest in steps, two in a byte."""
    scaled = (values - values.min()) / max(1.0, float(numpy.ptp(values)))
    steps = numpy.rint(scaled * STEPS).astype(numpy.uint8)
    return base64.b85encode((steps[::2] << 4 | steps[1::2]).tobytes()).decode()


def _unpacked(text: str) -> NDArray[numpy.float32]:
    """The thumbnail [T] of a text, from 0 to 255. ValueError if it has another number of pixels."""
    pairs = numpy.frombuffer(base64.b85decode(text), numpy.uint8)
    if 2 * pairs.size != FINE**2:
        raise ValueError(f"a thumbnail of {2 * pairs.size} pixels, expected {FINE**2}")
    steps = numpy.stack([pairs >> 4, pairs & 15], axis=-1).ravel()
    return steps.astype(numpy.float32) * (255 / STEPS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.photographs.fingerprints", description=__doc__)
    parser.add_argument("pack", type=Path, help="the pack, PACK.zip")
    options = parser.parse_args(arguments)
    try:
        save_fingerprints(Pack(options.pack))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    print(f"{FINGERPRINTS_FILE} holds the fingerprints of {options.pack}")


if __name__ == "__main__":
    main()
