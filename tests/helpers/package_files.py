"""Small packages as registries give them: Debian's, npm's, and Qt's resource collections inside them."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy
import pytest
from PIL import Image


def drawn_photograph(seed: int, width: int, height: int) -> Image.Image:
    """Blurred noise of several sizes, the finer the fainter, as in photographs: no two seeds look alike."""
    random = numpy.random.default_rng(seed)
    total = numpy.zeros((height, width, 3))
    for cells in (4, 9, 19, 41):
        noise = random.integers(0, 256, (cells, cells, 3), dtype=numpy.uint8)
        total += (
            numpy.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / cells
        )
    stretched = (total - total.min()) / numpy.ptp(total) * 255
    return Image.fromarray(stretched.astype(numpy.uint8))


def as_file(image: Image.Image, file_format: str = "PNG", **options: int) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def write_deb(path: Path, files: Mapping[str, bytes]) -> Path:
    """A Debian package with these files, by dpkg-deb; a test without that is skipped."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        pytest.skip("dpkg-deb is not here")
    folder = path.with_suffix(".unpacked")
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / "DEBIAN").mkdir(parents=True)
    control = "Package: small\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: small\n"
    (folder / "DEBIAN" / "control").write_text(control)
    subprocess.run([tool, "--build", "-Znone", str(folder), str(path)], check=True, capture_output=True)
    shutil.rmtree(folder)
    return path


def write_tgz(path: Path, files: Mapping[str, bytes]) -> Path:
    """An npm package with these files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def resource_collection(files: Mapping[str, bytes]) -> bytes:
    """A Qt resource collection (version 1) with files in its root."""
    names, data, nodes, head = b"", b"", b"", 20
    for name, content in files.items():
        nodes += struct.pack(">IHHHI", len(names), 0, 0, 0, len(data))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        data += struct.pack(">I", len(content)) + content
    tree = struct.pack(">IHII", 0, 2, len(files), 1) + nodes
    offsets = (head, head + len(tree), head + len(tree) + len(data))
    return b"qres" + struct.pack(">4I", 1, *offsets) + tree + data + names
