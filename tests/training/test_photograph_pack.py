"""The pack of photographs: built from small packages whole or not at all, and its committed list is sound."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from PIL import Image

from lyra_ns.data.picture_pack import Pack
from tests.helpers import package_files
from training.photographs import build
from training.photographs.archives import archive_path, download, read_members
from training.photographs.candidates import candidates
from training.photographs.fingerprints import load_fingerprints, save_fingerprints, take_fingerprints
from training.photographs.likeness import detail
from training.photographs.listing import LIST_FILE, Entry, load_list
from training.photographs.pictures import View
from training.photographs.qt_resources import read_resources
from training.photographs.sources import HELD_OUT, SOURCES_FILE, Package, load_packages, refuse_held_out

PHOTOGRAPH = package_files.as_file(package_files.drawn_photograph(1, 200, 120))
SURFACE = package_files.as_file(package_files.drawn_photograph(2, 300, 300))
LEAF = package_files.as_file(package_files.drawn_photograph(3, 400, 300).convert("RGBA"))
INSIDE = "usr/share/a/all.rcc:/b.png"


def a_package(name: str, registry: str, path: Path) -> Package:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package(name, registry, "1:1.0-1", digest, ("CC0-1.0",), "for tests")  # type: ignore[arg-type]


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Package]:
    """A Debian and an npm package, where they are downloaded to."""
    collection = package_files.resource_collection({"a.txt": b"no picture", "b.png": SURFACE})
    work = tmp_path / "work"
    work.mkdir()
    deb = package_files.write_deb(
        work / "apples_1%3a1.0-1.deb", {"usr/share/a/one.png": PHOTOGRAPH, "usr/share/a/all.rcc": collection}
    )
    tgz = package_files.write_tgz(work / "pears-all_1%3a1.0-1.tgz", {"package/leaf.png": LEAF})
    found = [a_package("apples", "debian", deb), a_package("@pears/all", "npm", tgz)]
    assert [archive_path(package, work) for package in found] == [deb, tgz]
    return {package.name: package for package in found}


def an_entry(name: str, package: str, file: str, content: bytes, view: View | None = None) -> Entry:
    return Entry(name, package, "CC0-1.0", file, hashlib.sha256(content).hexdigest(), view)


ENTRIES = [
    an_entry("cutouts/0.webp", "@pears/all", "package/leaf.png", LEAF),
    an_entry(
        "photographs/0.jpg", "apples", "usr/share/a/one.png", PHOTOGRAPH, View((0, 0, 200, 120), (80, 48))
    ),
    an_entry(
        "photographs/1.jpg", "apples", "usr/share/a/one.png", PHOTOGRAPH, View((50, 0, 150, 100), (64, 64))
    ),
    an_entry("textures/0.jpg", "apples", INSIDE, SURFACE),
]


def test_a_pack_holds_the_listed_parts_of_files_with_their_sources(
    packages: dict[str, Package], tmp_path: Path
) -> None:
    build.build_pack(tmp_path / "pack.zip", ENTRIES, packages, tmp_path / "work")
    pack = Pack(tmp_path / "pack.zip")
    shapes = {
        "cutouts/0.webp": (192, 256, 4),
        "photographs/0.jpg": (48, 80, 3),
        "textures/0.jpg": (256, 256, 3),
    }
    assert {name: pack.read(name).shape for name in shapes} == shapes
    whole = package_files.drawn_photograph(1, 200, 120)
    errors = [
        abs(pack.read("photographs/1.jpg").astype(float) - whole.resize((64, 64), box=box)).mean()
        for box in ((50, 0, 150, 100), (52, 0, 152, 100), (50, 0, 150, 104))
    ]
    assert errors[0] < min(8, 0.85 * min(errors[1:])), errors
    source = pack.source("textures/0.jpg")
    assert (source.package, source.version, source.file) == ("apples", "1:1.0-1", INSIDE)
    assert (source.licence, source.file_sha256) == ("CC0-1.0", hashlib.sha256(SURFACE).hexdigest())


def test_equal_sources_give_equal_packs(packages: dict[str, Package], tmp_path: Path) -> None:
    for number, entries in enumerate((ENTRIES, ENTRIES[::-1])):
        build.build_pack(tmp_path / f"{number}.zip", entries, packages, tmp_path / "work")
    assert (tmp_path / "0.zip").read_bytes() == (tmp_path / "1.zip").read_bytes()


@pytest.mark.parametrize("fault", ["no such file", "other content", "too large", "no picture", "damaged"])
def test_nothing_is_left_of_a_pack_that_fails(
    fault: str, packages: dict[str, Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, message = list(ENTRIES), "holds no usr/share/a/two.png"
    if fault == "no such file":
        entries[1] = replace(entries[1], file="usr/share/a/two.png")
    elif fault == "other content":
        entries[1], message = replace(entries[1], file_sha256="0" * 64), "not the listed file"
    elif fault == "too large":
        monkeypatch.setattr(build, "MOST_BYTES", 1000)
        message = "list fewer"
    elif fault == "no picture":
        path = tmp_path / "work" / "apples_1%3a1.0-1.deb"
        package_files.write_deb(path, {"usr/share/a/one.png": b"no picture"})
        packages["apples"] = a_package("apples", "debian", path)
        entries, message = (
            [an_entry("textures/0.jpg", "apples", "usr/share/a/one.png", b"no picture")],
            "decoded",
        )
    else:
        path = tmp_path / "work" / "apples_1%3a1.0-1.deb"
        path.write_bytes(path.read_bytes()[:1000])
        packages["apples"], message = a_package("apples", "debian", path), "cannot be read"
    with pytest.raises(ValueError, match=message):
        build.build_pack(tmp_path / "out" / "pack.zip", entries, packages, tmp_path / "work")
    assert not (tmp_path / "out").exists()


def test_downloads_are_kept_and_another_file_is_refused(
    packages: dict[str, Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, work = tmp_path / "npm", tmp_path / "new"
    content = (tmp_path / "work" / "pears-all_1%3a1.0-1.tgz").read_bytes()
    (tmp_path / "served").write_bytes(content)
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncp {tmp_path}/served pears-all-1.0.tgz\n')
    tool.chmod(0o755)
    monkeypatch.setattr("training.photographs.archives.shutil.which", lambda name: str(tool))
    package = packages["@pears/all"]
    for _ in range(2):
        assert download(package, work).read_bytes() == content
    assert (tmp_path / "calls").read_text() == "pack --silent @pears/all@1:1.0-1\n"
    assert [path.name for path in work.iterdir()] == ["pears-all_1%3a1.0-1.tgz"]
    with pytest.raises(ValueError, match=f"expected {'0' * 64}.*delete it"):
        download(replace(package, sha256="0" * 64), work)


def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(
    packages: dict[str, Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "apt-get"
    tool.write_text("#!/bin/sh\necho half > part.deb\necho 'E: no such version' >&2\nexit 100\n")
    tool.chmod(0o755)
    monkeypatch.setattr("training.photographs.archives.shutil.which", lambda name: str(tool))
    with pytest.raises(ValueError, match=r"no such version.*put the file with sha256"):
        download(packages["apples"], tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    monkeypatch.setattr("training.photographs.archives.shutil.which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="apt-get, which is not here"):
        download(packages["apples"], tmp_path / "new")


def test_a_damaged_resource_collection_is_refused() -> None:
    whole = package_files.resource_collection({"a.png": b"a", "b.png": b"bb"})
    assert dict(read_resources(whole)) == {"/a.png": b"a", "/b.png": b"bb"}
    for damaged in (b"other" + whole, whole[:30], whole[: len(whole) - 12]):
        with pytest.raises(ValueError, match="no whole Qt resource collection"):
            dict(read_resources(damaged))


def test_candidates_are_what_the_filters_leave(tmp_path: Path) -> None:
    flat = package_files.as_file(package_files.drawn_photograph(1, 8, 8).resize((300, 300)).convert("L"))
    tile = package_files.drawn_photograph(5, 75, 75)
    rough = Image.new("RGB", (300, 300))
    for number in range(16):
        rough.paste(tile, (75 * (number % 4), 75 * (number // 4)))
    surface = package_files.as_file(rough)
    files = {"package/a.png": surface, "package/again.png": surface, "package/a_norm.png": surface}
    archive = package_files.write_tgz(
        tmp_path / "a_1.tgz", files | {"package/l.png": LEAF, "package/f.png": flat}
    )
    digest = hashlib.sha256(surface).hexdigest()
    assert list(candidates(archive, "textures")) == [("package/a.png", digest, (300, 300))]
    with pytest.raises(ValueError, match="held out"):
        next(candidates(tmp_path / "mate-backgrounds_1.26.0-1_all.deb", "photographs"))


@pytest.mark.parametrize(
    "name", [*HELD_OUT, "python3-skimage", "python-scipy", "@any/opencv-doc", "Scikit_Image"]
)
def test_held_out_packages_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="held out for judging"):
        refuse_held_out(name)
    listing = json.loads(SOURCES_FILE.read_text())
    listing["packages"][0]["name"] = name
    (tmp_path / "sources.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match="held out for judging"):
        load_packages(tmp_path / "sources.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sha256", "12", "no sha256 of 64"),
        ("licences", [], "no licences"),
        ("registry", "ftp", "names registry 'ftp'"),
        ("extra", 1, "expected"),
    ],
)
def test_wrong_packages_are_refused(key: str, value: object, message: str, tmp_path: Path) -> None:
    listing = json.loads(SOURCES_FILE.read_text())
    listing["packages"][0][key] = value
    (tmp_path / "sources.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=message):
        load_packages(tmp_path / "sources.json")


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ({"pears": {}}, None),
        ({"pears": {"CC0-1.0": {"a": ["0" * 64, {"textures/0.jpg": None}]}}}, "sources.json lacks"),
        ({"apples": {"MIT": {"a": ["0" * 64, {"textures/0.jpg": None}]}}}, "under MIT"),
        ({"apples": {"CC0-1.0": {"a": ["0", {"textures/0.jpg": None}]}}}, "no sha256"),
        ({"apples": {"CC0-1.0": {"a": ["0" * 64, {"photographs/0.jpg": None}]}}}, "have a view"),
        ({"apples": {"CC0-1.0": {"a": ["0" * 64, {"icons/0.jpg": None}]}}}, "no folder of a pack"),
        (["apples"], "no list of pictures"),
    ],
)
def test_wrong_lists_are_refused(
    listing: object, message: str | None, packages: dict[str, Package], tmp_path: Path
) -> None:
    path = tmp_path / "pictures.json"
    path.write_text(json.dumps(listing))
    if message is None:
        assert load_list(path, packages) == []
        return
    with pytest.raises(ValueError, match=message):
        load_list(path, packages)


def test_the_committed_list_names_free_packages_and_fits_the_pack_of_the_shipped_weights() -> None:
    packages = load_packages()
    entries = load_list(LIST_FILE, packages)
    kinds = [entry.kind for entry in entries]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "photographs": 456,
        "textures": 286,
        "cutouts": 173,
    }
    assert len({entry.file_sha256 for entry in entries if entry.kind == "photographs"}) == 205
    assert {entry.package for entry in entries} == set(packages)
    for package in packages.values():
        used = {entry.licence for entry in entries if entry.package == package.name}
        assert used == set(package.licences), package.name
    for entry in entries:
        assert entry.view is None or (min(entry.view.size) >= 200 and entry.view.box[0] < entry.view.box[2])
    assert LIST_FILE.stat().st_size < 200_000


def test_fingerprints_are_kept_without_the_pictures(packages: dict[str, Package], tmp_path: Path) -> None:
    build.build_pack(tmp_path / "pack.zip", ENTRIES, packages, tmp_path / "work")
    pack = Pack(tmp_path / "pack.zip")
    save_fingerprints(pack, tmp_path / "kept.json")
    kept = load_fingerprints(ENTRIES, tmp_path / "kept.json")
    taken = take_fingerprints(pack)
    order = [taken.names.index(name) for name in kept.fingerprints.names]
    correlations = numpy.sum(detail(taken.thumbnails[order]) * detail(kept.fingerprints.thumbnails), axis=1)
    assert correlations.min() > 0.94
    assert kept.pack_sha256 == hashlib.sha256((tmp_path / "pack.zip").read_bytes()).hexdigest()
    assert set(kept.fingerprints.hashes) == {entry.file_sha256 for entry in ENTRIES}
    with pytest.raises(ValueError, match="other pictures"):
        load_fingerprints(ENTRIES[1:], tmp_path / "kept.json")


def test_archives_are_read_in_order_and_only_what_is_asked_for(
    packages: dict[str, Package], tmp_path: Path
) -> None:
    archive = archive_path(packages["apples"], tmp_path / "work")
    found = dict(read_members(archive, lambda path: path.endswith(".png")))
    assert found == {"usr/share/a/one.png": PHOTOGRAPH, INSIDE: SURFACE}
    listed = subprocess.run(
        ["dpkg-deb", "--contents", str(archive)], capture_output=True, text=True, check=True
    )
    assert "all.rcc" in listed.stdout
