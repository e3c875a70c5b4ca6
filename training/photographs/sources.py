"""The packages that pictures come from: name, version, licence and hash of each, and which may never be one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from lyra_ns.picture_pack import KINDS, Kind

SOURCES_FILE = Path(__file__).with_name("sources.json")
Registry = Literal["debian", "npm"]
HELD_OUT = (
    "scikit-image", "skimage", "mate-backgrounds", "ukui-wallpapers", "opencv-doc", "mvtb-data", "scikit-learn",
    "sklearn", "scipy",
)  # fmt: skip
"""What weights are judged by: no package of one of these names may give training pictures."""


@dataclass(frozen=True)
class Choice:
    """Which files of a package may become pictures of one kind."""

    include: tuple[str, ...]
    """Patterns of paths inside the package, `*` for anything; a file inside a container is `container:path`."""
    exclude: tuple[str, ...] = ()
    """Patterns of paths that were looked at and left out."""

    def takes(self, path: str) -> bool:
        """Whether a file is included and not excluded."""
        return _matches(path, self.include) and not _matches(path, self.exclude)


@dataclass(frozen=True)
class Package:
    """A package of pictures under a free licence."""

    name: str
    """Name in its registry."""
    registry: Registry
    """Where it is downloaded from."""
    version: str
    """The version whose files are listed."""
    sha256: str
    """Of the file that is downloaded."""
    licence: str
    """Licences of the pictures that are taken."""
    why: str
    """What it is good for."""
    choices: Mapping[Kind, Choice]
    """Files that may become pictures, by kind; empty for packages that only earlier editions used."""


def load_packages(path: Path = SOURCES_FILE) -> dict[str, Package]:
    """The packages by name. ValueError, in a sentence, for an entry that is wrong or held out."""
    packages = {}
    for entry in json.loads(path.read_text())["packages"]:
        package = _package(entry, path)
        packages[package.name] = package
    return packages


def refuse_held_out(name: str) -> None:
    """ValueError if `name` is that of a package whose pictures are kept for judging."""
    plain = re.sub(r"[-_.]+", "-", name.lower())
    for held_out in HELD_OUT:
        if re.search(rf"(^|[-/3]){re.escape(held_out)}($|-)", plain):
            raise ValueError(f"{name} is held out for judging: its pictures never enter a training pack")


def _package(entry: Mapping[str, object], path: Path) -> Package:
    values = dict(entry)
    choices = values.pop("choices", {})
    expected = {field.name for field in fields(Package)} - {"choices"}
    if set(values) != expected or not isinstance(choices, dict):
        raise ValueError(f"{path}: expected {sorted(expected)} and choices of each package, found {sorted(entry)}")
    name, registry = str(values["name"]), values["registry"]
    refuse_held_out(name)
    if registry not in get_args(Registry):
        raise ValueError(f"{path}: {name} names registry {registry!r}, expected one of {get_args(Registry)}")
    if not re.fullmatch("[0-9a-f]{64}", str(values["sha256"])):
        raise ValueError(f"{path}: {name} has no sha256 of 64 hexadecimal digits")
    if not set(choices) <= set(KINDS):
        raise ValueError(f"{path}: {name} has choices {sorted(choices)}, expected some of {KINDS}")
    texts = {key: str(value) for key, value in values.items()}
    return Package(
        **texts,  # type: ignore[arg-type]
        choices={
            kind: Choice(tuple(choice["include"]), tuple(choice.get("exclude", ())))
            for kind, choice in choices.items()
        },
    )


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns describes the whole path."""
    return any(
        re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), path) for pattern in patterns
    )
