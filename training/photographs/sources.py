"""The packages that pictures come from: version, hash and licences of each, and which may never be one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

SOURCES_FILE = Path(__file__).with_name("sources.json")
Registry = Literal["debian", "npm"]
HELD_OUT = (
    "scikit-image", "skimage", "mate-backgrounds", "ukui-wallpapers", "opencv-doc", "mvtb-data",
    "scikit-learn", "sklearn", "scipy",
)  # fmt: skip
"""What weights are judged by: no package of one of these names may give training pictures."""


@dataclass(frozen=True)
class Package:
    """A package of pictures under free licences."""

    name: str
    """Name in its registry."""
    registry: Registry
    """Where it is downloaded from."""
    version: str
    """The version whose files are listed."""
    sha256: str
    """Of the file that is downloaded."""
    licences: tuple[str, ...]
    """What the listed files are under, by the package's own copyright file."""
    why: str
    """What it is good for."""


def load_packages(path: Path = SOURCES_FILE) -> dict[str, Package]:
    """The packages by name. ValueError, in a sentence, for an entry that is wrong or held out."""
    try:
        packages = [_package(entry) for entry in json.loads(path.read_text())["packages"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no list of packages: {error}") from error
    return {package.name: package for package in packages}


def refuse_held_out(name: str) -> None:
    """ValueError if `name` is that of a package whose pictures are kept for judging."""
    plain = re.sub(r"[-_.]+", "-", name.lower())
    for held_out in HELD_OUT:
        if re.search(rf"(^|[-/3]){re.escape(held_out)}($|-)", plain):
            raise ValueError(f"{name} is held out for judging: its pictures never enter a training pack")


def _package(entry: Mapping[str, object]) -> Package:
    """A package from its entry. ValueError if something is missing, of another form or held out."""
    expected = {field.name for field in fields(Package)}
    if set(entry) != expected:
        raise ValueError(f"expected {sorted(expected)} of each package, found {sorted(entry)}")
    name, registry, licences = str(entry["name"]), entry["registry"], entry["licences"]
    refuse_held_out(name)
    if registry not in get_args(Registry):
        raise ValueError(f"{name} names registry {registry!r}, expected one of {get_args(Registry)}")
    if not re.fullmatch("[0-9a-f]{64}", str(entry["sha256"])):
        raise ValueError(f"{name} has no sha256 of 64 hexadecimal digits")
    if not isinstance(licences, list) or not licences or not all(licences):
        raise ValueError(f"{name} has no licences: read them in the package's copyright file")
    return Package(
        name=name,
        registry=cast(Registry, registry),
        version=str(entry["version"]),
        sha256=str(entry["sha256"]),
        licences=tuple(map(str, licences)),
        why=str(entry["why"]),
    )
