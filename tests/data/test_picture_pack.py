"""Packs of pictures: what is written comes back, equal packs are equal files, foreign files are named."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from PIL import Image

from lyra_ns.data import picture_pack
from lyra_ns.data.picture_pack import Pack, write_pack
from tests.helpers import small_packs
from tests.helpers.checked_types import unchecked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_packs.small_pack(tmp_path / "pack.zip", 6, 3, 2)


def rewritten(path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The pack with some entries changed, or left out where None."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()} | change
    other = path.with_name("other.zip")
    with zipfile.ZipFile(other, "w", compression) as archive:
        for name, content in entries.items():
            if content is not None:
                archive.writestr(name, content)
    return other


def test_pictures_and_their_sources_come_back(path: Path) -> None:
    pack = Pack(path)
    assert [len(pack.names(kind)) for kind in picture_pack.KINDS] == [6, 3, 2]
    assert pack.names("cutouts") == ["cutouts/000.webp", "cutouts/001.webp"]
    photograph = pack.read("photographs/001.jpg")
    assert (photograph.shape, photograph.dtype) == ((96, 72, 3), numpy.uint8)
    error = photograph.astype(float) - small_packs.smooth_picture(1, 96, 72)
    assert numpy.abs(error).mean() < 4
    assert pack.read("cutouts/000.webp").shape == (48, 40, 4)
    source = pack.source("photographs/001.jpg")
    assert (source.file, source.licence) == ("photographs/001.jpg", "CC0-1.0")
    assert source.sha256 == hashlib.sha256(pack.read_file("photographs/001.jpg")).hexdigest()


def test_equal_pictures_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    pack = Pack(path)
    names = [name for kind in reversed(picture_pack.KINDS) for name in pack.names(kind)]
    write_pack(
        tmp_path / "again.zip",
        {name: pack.read_file(name) for name in names},
        {name: pack.source(name) for name in reversed(names)},
    )
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_packs_are_read_without_torch(path: Path) -> None:
    code = (
        "import sys; from lyra_ns.data.picture_pack import Pack; pack = Pack(sys.argv[1]);"
        "pack.read('photographs/000.jpg'); sys.exit('torch' in sys.modules or 'jaxtyping' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=root).returncode == 0


def test_foreign_and_damaged_files_end_in_a_sentence(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the zip that its recipe wrote"):
        Pack(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="no whole zip of pictures"):
        Pack(tmp_path / "text.zip")
    (tmp_path / "half.zip").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="copy it again"):
        Pack(tmp_path / "half.zip")
    content = path.read_bytes()
    place = content.index(Pack(path).read_file("photographs/003.jpg")) + 300
    (tmp_path / "flipped.zip").write_bytes(
        content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    )
    with pytest.raises(ValueError, match=r"Bad CRC-32.*make the pack anew"):
        Pack(tmp_path / "flipped.zip")
    with pytest.raises(ValueError, match=r"sources\.json is wrong or missing"):
        Pack(rewritten(path, {"sources.json": None}))
    with pytest.raises(ValueError, match="kind 'atlas', version 9"):
        Pack(rewritten(path, {"sources.json": json.dumps({"kind": "atlas", "version": 9}).encode()}))
    with pytest.raises(ValueError, match=r"photographs/stray\.jpg"):
        Pack(rewritten(path, {"photographs/stray.jpg": b""}))
    with pytest.raises(ValueError, match="compressed or larger"):
        Pack(rewritten(path, {}, zipfile.ZIP_DEFLATED))


def test_sizes_are_bounded_before_anything_is_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_pack, "MOST_PIXELS", 72 * 96 - 1)
    with pytest.raises(ValueError, match="has 96 x 72 pixels, expected at most 6911"):
        Pack(path).read("photographs/000.jpg")
    monkeypatch.setattr(picture_pack, "MOST_PICTURE_BYTES", 300)
    with pytest.raises(ValueError, match="larger than"):
        Pack(path)
    monkeypatch.setattr(picture_pack, "MOST_PACK_BYTES", 1000)
    with pytest.raises(ValueError, match="no pack of pictures is"):
        Pack(path)


def test_pictures_of_another_format_and_changed_ones_are_refused(path: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    small_packs.write_small_pack(tmp_path / "png.zip", {"photographs/a.jpg": file.getvalue()})
    with pytest.raises(ValueError, match="cannot be decoded"):
        Pack(tmp_path / "png.zip").read("photographs/a.jpg")
    other = small_packs.encoded(small_packs.smooth_picture(77))
    with pytest.raises(ValueError, match=r"not what sources\.json there says"):
        Pack(rewritten(path, {"photographs/000.jpg": other})).read("photographs/000.jpg")


def test_names_are_checked(path: Path) -> None:
    pack = Pack(path)
    with unchecked(), pytest.raises(ValueError, match="among photographs, textures, cutouts"):
        pack.names("paintings")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="no picture"):
        pack.read("photographs/999.jpg")
    source = pack.source("photographs/000.jpg")
    with pytest.raises(ValueError, match="no source or no picture"):
        write_pack(path, {}, {"photographs/000.jpg": source})
    with pytest.raises(ValueError, match="expected a name in photographs/"):
        write_pack(path, {"a.jpg": b""}, {"a.jpg": replace(source)})
    assert Pack(path).names("photographs") == pack.names("photographs"), "a refused pack left the old one"
