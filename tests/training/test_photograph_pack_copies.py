"""No held-out picture in the pack: copies are found whatever was done to them, and nothing else is."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import skimage
from PIL import Image

from lyra_ns.data.picture_pack import Pack
from tests.helpers import package_files, small_packs
from training.photographs import check
from training.photographs.check import check_pack, copies_of
from training.photographs.fingerprints import Fingerprints, load_fingerprints, take_fingerprints
from training.photographs.likeness import comparable, thumbnail
from training.photographs.listing import LIST_FILE, load_list
from training.photographs.sources import load_packages

HELD_OUT = package_files.drawn_photograph(7, 640, 480)


def pack_with(path: Path, content: bytes) -> Pack:
    """A pack of one picture beside others that are no copies."""
    others = {
        f"photographs/{number}.jpg": package_files.as_file(
            package_files.drawn_photograph(100 + number, 320, 240), "JPEG"
        )
        for number in range(8)
    }
    return Pack(small_packs.write_small_pack(path, others | {"photographs/copy.jpg": content}))


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    folder = tmp_path / "held_out" / "below"
    folder.mkdir(parents=True)
    HELD_OUT.save(folder / "a.png")
    return folder.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("box", "size", "quality"),
    [
        ((0, 0, 640, 480), (640, 480), 95),
        ((0, 0, 640, 480), (640, 480), 20),
        ((0, 0, 640, 480), (160, 120), 75),
        ((0, 0, 640, 480), (300, 300), 75),
        ((100, 40, 580, 400), (320, 240), 60),
        ((300, 10, 630, 340), (256, 256), 60),
        ((20, 150, 340, 470), (256, 256), 60),
    ],
    ids=["encoded", "badly-encoded", "smaller", "stretched", "cut", "corner", "other-corner"],
)
def test_a_copy_is_found(
    box: tuple[int, int, int, int], size: tuple[int, int], quality: int, held_out: Path, tmp_path: Path
) -> None:
    copy = HELD_OUT.resize(size, Image.Resampling.LANCZOS, box=box)
    pack = pack_with(tmp_path / "pack.zip", package_files.as_file(copy, "JPEG", quality=quality))
    copies, num_compared = check_pack(pack, [held_out])
    assert ([found.name for found in copies], num_compared) == (["photographs/copy.jpg"], 1)
    assert 0.95 < copies[0].likeness <= 1


def test_other_pictures_are_no_copies(held_out: Path, tmp_path: Path) -> None:
    other = package_files.as_file(package_files.drawn_photograph(8, 640, 480), "JPEG")
    assert check_pack(pack_with(tmp_path / "pack.zip", other), [held_out]) == ([], 1)


def test_smooth_pictures_are_no_copies_of_skies(tmp_path: Path) -> None:
    sky = Image.linear_gradient("L").convert("RGB")
    pack = pack_with(tmp_path / "pack.zip", package_files.as_file(sky, "JPEG", quality=60))
    folder = tmp_path / "held_out"
    folder.mkdir()
    bright = sky.point(lambda value: 40 + 0.7 * value)
    bright.paste(package_files.drawn_photograph(5, 200, 40), (20, 200))
    bright.save(folder / "sky.png")
    assert check_pack(pack, [folder]) == ([], 1)


def test_a_card_between_two_edges_is_told_from_another_at_the_second_look(tmp_path: Path) -> None:
    cards = []
    for seed in (21, 22):
        speckles = numpy.random.default_rng(seed).integers(70, 131, (48, 48), dtype=numpy.uint8)
        card = Image.new("L", (320, 240), 230)
        card.paste(Image.fromarray(speckles).resize((240, 240), Image.Resampling.NEAREST), (35, 0))
        cards.append(card.convert("RGB"))
    pack = pack_with(tmp_path / "pack.zip", package_files.as_file(cards[0], "JPEG", quality=90))
    cards[1].save(tmp_path / "card.png")
    first_look = replace(take_fingerprints(pack), large=None)
    assert [found.name for found in copies_of(tmp_path / "card.png", first_look)] == ["photographs/copy.jpg"]
    assert check_pack(pack, [tmp_path / "card.png"]) == ([], 1)


def test_an_equal_file_is_found_by_its_hash(tmp_path: Path) -> None:
    content = package_files.as_file(Image.new("RGB", (64, 64), (90, 90, 90)), "JPEG")
    pack = pack_with(tmp_path / "pack.zip", content)
    (tmp_path / "grey.jpg").write_bytes(content)
    copies, _ = check_pack(pack, [tmp_path / "grey.jpg"])
    assert [(found.name, found.likeness) for found in copies] == [("photographs/copy.jpg", 1.0)]


def test_the_command_names_copies_and_fails(
    held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = pack_with(tmp_path / "pack.zip", package_files.as_file(HELD_OUT, "JPEG"))
    (held_out / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as ended:
        check.main([str(pack.path), "--held-out", str(held_out)])
    output = capsys.readouterr()
    assert ended.value.code == 1
    assert "photographs/copy.jpg looks like a copy of" in output.out
    assert "1 held-out pictures, 1 may be copies" in output.out
    assert re.search("passed over.*broken.png", output.err)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    pack = pack_with(tmp_path / "pack.zip", package_files.as_file(HELD_OUT, "JPEG"))
    (tmp_path / "empty").mkdir()
    for folder, message in (("nowhere", "a folder that is there"), ("empty", "give the held-out folders")):
        with pytest.raises(SystemExit, match=message):
            check.main([str(pack.path), "--held-out", str(tmp_path / folder)])


def test_a_pack_with_a_held_out_source_is_refused(tmp_path: Path) -> None:
    pack = pack_with(tmp_path / "pack.zip", package_files.as_file(HELD_OUT, "JPEG"))
    source = pack.source("photographs/copy.jpg")
    object.__setattr__(source, "package", "python3-skimage")
    with pytest.raises(ValueError, match="python3-skimage is held out"):
        take_fingerprints(pack)


@pytest.fixture(scope="module")
def listed() -> Fingerprints:
    """Fingerprints of every picture of the committed list."""
    return load_fingerprints(load_list(LIST_FILE, load_packages())).fingerprints


SKIMAGE = sorted((Path(skimage.__file__).parent / "data").glob("*.[pj][np]*g"))
"""The pictures that come with scikit-image."""


def test_the_pictures_of_scikit_image_are_here() -> None:
    names = {path.name for path in SKIMAGE}
    assert {
        "astronaut.png",
        "brick.png",
        "chelsea.png",
        "grass.png",
        "motorcycle_left.png",
        "rocket.jpg",
    } <= names


@pytest.mark.slow
@pytest.mark.parametrize("path", SKIMAGE, ids=lambda path: path.stem)
def test_no_listed_picture_is_one_of_scikit_image(path: Path, listed: Fingerprints) -> None:
    assert copies_of(path, listed) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["astronaut.png", "brick.png", "chelsea.png", "coffee.png", "rocket.jpg"])
def test_one_of_scikit_image_would_be_found_in_the_list(name: str, listed: Fingerprints) -> None:
    path = next(path for path in SKIMAGE if path.name == name)
    with Image.open(path) as opened:
        jpeg = package_files.as_file(opened.convert("RGB").resize((256, 256)), "JPEG", quality=70)
    thumbnails = listed.thumbnails.copy()
    thumbnails[3] = thumbnail(comparable(Image.open(io.BytesIO(jpeg))))
    found = copies_of(path, Fingerprints(listed.names, {}, thumbnails, None))
    assert [copy.name for copy in found] == [listed.names[3]]
