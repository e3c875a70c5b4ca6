"""The file that training pictures travel in: a zip of photographs, textures and cut-outs with their sources.

`sources.json` inside says of every picture which file of which package it was made from, under which licence.
Only NumPy and Pillow are needed, so that a pack can be read wherever a model is trained.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import numpy
from numpy.typing import NDArray
from PIL import Image

Kind = Literal["photographs", "textures", "cutouts"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FOLDER_FORMATS: dict[Kind, str] = {"photographs": "JPEG", "textures": "JPEG", "cutouts": "WEBP"}
"""The only file format that each folder may hold."""
SOURCES = "sources.json"
PACK_KIND, PACK_VERSION = "photograph pack", 1
MOST_PACK_BYTES = 256 << 20
"""A larger file is refused before it is read."""
MOST_PICTURE_BYTES = 4 << 20
"""Of one entry, compressed or not."""
MOST_PIXELS = 4 << 20
"""Of one picture; read from its header before anything is decoded."""


@dataclass(frozen=True)
class PictureSource:
    """Where a picture of a pack comes from."""

    package: str
    """Name of the package."""
    version: str
    """Its version."""
    file: str
    """Path of the file inside the package."""
    licence: str
    """Licence of the file."""
    file_sha256: str
    """Of the file that the picture was made from: views of one photograph share it."""
    sha256: str
    """Of the picture as it is stored in the pack."""


class Pack:
    """Pictures by kind; all of the file is held in memory (tens of megabytes), and threads may share it."""

    def __init__(self, path: Path | str) -> None:
        """Reads the pack. FileNotFoundError or ValueError, in a sentence, if `path` is no whole one."""
        self.path = Path(path)
        self._files = _read_entries(self.path)
        self._sources = _read_sources(self.path, self._files)

    def names(self, kind: Kind) -> list[str]:
        """Names of the pictures of a kind, sorted."""
        if kind not in KINDS:
            raise ValueError(f"expected a kind of picture among {', '.join(KINDS)}, found {kind!r}")
        return sorted(name for name in self._sources if name.startswith(f"{kind}/"))

    def source(self, name: str) -> PictureSource:
        """Where a picture comes from."""
        self._check_name(name)
        return self._sources[name]

    def read_file(self, name: str) -> bytes:
        """A picture's JPEG or WebP file, as it was stored. ValueError if it has changed since."""
        self._check_name(name)
        content = self._files[name]
        if hashlib.sha256(content).hexdigest() != self._sources[name].sha256:
            raise ValueError(f"{name} in {self.path} is not what {SOURCES} there says: make the pack anew")
        return content

    def read(self, name: str) -> NDArray[numpy.uint8]:
        """A picture [H, W, 3], or [H, W, 4] with opacity for cut-outs.

        ValueError if it is damaged or too large.
        """
        content = self.read_file(name)
        is_cutout = name.startswith("cutouts/")
        try:
            with Image.open(io.BytesIO(content), formats=[FOLDER_FORMATS[_kind_of(name)]]) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    raise ValueError(
                        f"{name} in {self.path} has {picture.width} x {picture.height} pixels, "
                        f"expected at most {MOST_PIXELS}: make the pack anew"
                    )
                return numpy.array(picture.convert("RGBA" if is_cutout else "RGB"))
        except OSError as error:
            raise ValueError(
                f"{name} in {self.path} cannot be decoded ({error}): make the pack anew"
            ) from error

    def _check_name(self, name: str) -> None:
        if name not in self._sources:
            raise KeyError(f"{self.path} holds no picture {name!r}: ask names(kind) what it holds")


def write_pack(path: Path, pictures: Mapping[str, bytes], sources: Mapping[str, PictureSource]) -> None:
    """Writes a pack, whole or not at all: the files of the pictures by name, and where each comes from.

    Equal pictures and sources give equal bytes. ValueError for names that no reader would find.
    """
    if set(pictures) != set(sources):
        raise ValueError(f"no source or no picture for {sorted(set(pictures) ^ set(sources))[:5]}")
    entries = {name: pictures[name] for name in sorted(pictures)}
    for name in entries:
        _kind_of(name)
    entries[SOURCES] = _listing(sources).encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{path}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            # A ZipInfo of its own has a fixed date, so that equal packs are equal files.
            archive.writestr(zipfile.ZipInfo(name), content)
    os.replace(partial, path)


def _listing(sources: Mapping[str, PictureSource]) -> str:
    """The text of sources.json."""
    pictures = {name: asdict(sources[name]) for name in sorted(sources)}
    return json.dumps({"kind": PACK_KIND, "version": PACK_VERSION, "pictures": pictures}, indent=1)


def _kind_of(name: str) -> Kind:
    """The folder of a picture; ValueError if it is none of a pack's."""
    for kind in KINDS:
        if name.startswith(f"{kind}/"):
            return kind
    raise ValueError(f"expected a name in {', '.join(f'{kind}/' for kind in KINDS)}, found {name!r}")


def _read_entries(path: Path) -> dict[str, bytes]:
    """The files inside a pack by name."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a pack of pictures at {path}: give the zip that its recipe wrote")
    if path.stat().st_size > MOST_PACK_BYTES:
        raise ValueError(f"{path} is larger than {MOST_PACK_BYTES >> 20} MiB: no pack of pictures is")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or (
                    entry.file_size > MOST_PICTURE_BYTES and entry.filename != SOURCES
                ):
                    raise ValueError(
                        f"{entry.filename} in {path} is compressed or larger than "
                        f"{MOST_PICTURE_BYTES >> 20} MiB: this is no pack of pictures"
                    )
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is no whole zip of pictures ({error}): copy it again, or make the pack anew"
        ) from error


def _read_sources(path: Path, files: Mapping[str, bytes]) -> dict[str, PictureSource]:
    """What sources.json says of the pictures; each file must be listed, and each one listed be there."""
    try:
        listing = json.loads(files[SOURCES])
        if (listing["kind"], listing["version"]) != (PACK_KIND, PACK_VERSION):
            raise ValueError(f"kind {listing['kind']!r}, version {listing['version']!r}")
        keys = [field.name for field in fields(PictureSource)]
        sources = {
            str(name): PictureSource(**{key: str(entry[key]) for key in keys})
            for name, entry in listing["pictures"].items()
        }
        strays = set(sources) ^ (set(files) - {SOURCES})
        if strays:
            raise ValueError(f"listed without a file or the other way round: {sorted(strays)[:3]}")
        for name in sources:
            _kind_of(name)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no pack of pictures, version {PACK_VERSION}: its {SOURCES} is wrong or missing "
            f"({error}); give the zip that the recipe wrote"
        ) from error
    return sources
