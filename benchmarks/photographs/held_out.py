"""Held-out photographs by name: from scikit-image, and from packages of pictures that were unpacked.

None of them, nor any other picture of their packages, is ever trained on.

Shape letters: H W image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "H W 3"]
"""Colours of a photograph."""


@dataclass(frozen=True)
class HeldOut:
    """A photograph that is only ever judged by."""

    name: str
    """What it is called in tables."""
    package: str
    """`scikit-image`, or the Debian package that holds it."""
    source: str
    """Name of scikit-image's function, or of the file."""
    box: tuple[int, int, int, int] | None = None
    """The part that is taken: left, top, right and bottom in pixels; None: all of it."""


ASTRONAUT = HeldOut("astronaut", "scikit-image", "astronaut")
COFFEE = HeldOut("coffee", "scikit-image", "coffee")
ROCKET = HeldOut("rocket", "scikit-image", "rocket")
MOTORCYCLE = HeldOut("motorcycle", "scikit-image", "stereo_motorcycle")
CAT = HeldOut("cat", "scikit-image", "chelsea")
FIVE = (ASTRONAUT, COFFEE, ROCKET, MOTORCYCLE, CAT)
"""The photographs of scikit-image: in colour, of things that a camera could be moved around."""
EIGHT = (
    *FIVE,
    HeldOut("garden", "mate-backgrounds", "Garden.jpg"),
    HeldOut("dune", "mate-backgrounds", "Dune.jpg"),
    HeldOut("wood", "mate-backgrounds", "Wood.jpg"),
)
"""The photographs that decoders are compared on."""
TEN = (
    *FIVE,
    HeldOut("garden", "mate-backgrounds", "Garden.jpg"),
    HeldOut("street", "opencv-doc", "leuvenA.jpg"),
    HeldOut("tower", "opencv-doc", "home.jpg", (224, 0, 512, 384)),
    HeldOut("player", "opencv-doc", "messi5.jpg", (110, 0, 366, 342)),
    HeldOut("squirrel", "opencv-doc", "squirrel_cls.jpg", (60, 0, 380, 426)),
)
"""The photographs that are looked at; the last three are upright parts of wider pictures."""


def load_held_out(wanted: Iterable[HeldOut], folder: Path | None) -> dict[str, Picture]:
    """Colours of the photographs by name, those of packages from anywhere below `folder`.

    FileNotFoundError, in one sentence, if the folder or one of its pictures is missing.
    """
    wanted = list(wanted)
    paths = _files_of(wanted, folder)
    return {
        held.name: _read(paths[held.name], held.box) if held.name in paths else _shipped(held)
        for held in wanted
    }


def _shipped(held: HeldOut) -> Picture:
    """A photograph of scikit-image; of the stereo pair the left one."""
    from skimage import data

    loaded = getattr(data, held.source)()
    return loaded[0] if held is MOTORCYCLE else loaded


def _files_of(wanted: list[HeldOut], folder: Path | None) -> dict[str, Path]:
    """Where the pictures of packages lie, by name."""
    needed = [held for held in wanted if held.package != "scikit-image"]
    if not needed:
        return {}
    packages = ", ".join(sorted({held.package for held in needed}))
    advice = f"unpack {packages} (apt-get download, dpkg -x) and give that folder as --held-out"
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder with the held-out pictures of {packages}, found {folder or 'none given'}: "
            f"{advice}"
        )
    found = {held.name: sorted(folder.rglob(held.source)) for held in needed}
    missing = [held.source for held in needed if not found[held.name]]
    if missing:
        raise FileNotFoundError(f"expected {', '.join(missing)} below {folder}, found no such file: {advice}")
    return {name: paths[0] for name, paths in found.items()}


def _read(path: Path, box: tuple[int, int, int, int] | None) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").crop(box or (0, 0, *image.size)))
