"""Tars: read in place as if they were folders, unpacked safely, refused by name when they are not safe."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from lyra_ns.data import atomic
from lyra_ns.data import tar as tar_module
from lyra_ns.data.check import check_dataset
from lyra_ns.data.layout import checked_parts, place_of
from lyra_ns.data.store import LyraStore, Manifest, write_manifest
from lyra_ns.data.tar import tar_tree, unpack
from tests.helpers.official_dataset import write_official_dataset, write_tar, write_tar_of


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official_dataset(tmp_path_factory.mktemp("plain") / "static")


@pytest.fixture
def tars(plain: Path, tmp_path: Path) -> Path:
    """Two tars, of one scene each, that start at the family's folder."""
    for scene in ("a", "b"):
        write_tar(tmp_path / f"part_{scene}.tar", plain, "static/", lambda file, s=scene: file.stem == s)
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


def assert_same_scenes(found: LyraStore, expected: LyraStore) -> None:
    """Every file of every clip reads the same."""
    assert found.listing == expected.listing
    for name in expected.names:
        for trajectory, clip in expected.scene(name).clips.items():
            other = found.scene(name).clips[trajectory]
            assert torch.equal(other.latents(), clip.latents())
            assert torch.equal(other.rgb(), clip.rgb())
            assert torch.equal(other.rgb([1, 8]), clip.rgb([1, 8]))
            assert torch.equal(other.depth([8, 0]), clip.depth([8, 0]))
            assert torch.equal(other.cameras().camera_to_world, clip.cameras().camera_to_world)
            assert torch.equal(other.cameras().intrinsics, clip.cameras().intrinsics)


@pytest.mark.slow
def test_tars_read_in_place_like_folders(plain: Path, tars: Path) -> None:
    store = LyraStore(tars)
    assert_same_scenes(store, LyraStore(plain))
    assert not store.is_dynamic
    assert store.home == tars
    clip = store.scene("a").clips[3]
    assert str(clip.path("rgb")) == f"{tars}/part_a.tar!/static/3/rgb/a.mp4"
    report = check_dataset(tars)
    assert report.is_good, report.as_text()
    assert (report.num_scenes, report.num_clips) == (2, 12)


LAYOUTS = {
    "static/0/rgb/x.mp4": ([], "static/0/rgb/x.mp4"),
    "./0/rgb/x.mp4": ([], "0/rgb/x.mp4"),
    "a/b/static/diffusion_output/07/latent/x.pkl": ([], "static/7/latent/x.pkl"),
    "0/rgb/x.mkv": (["dynamic", "part1"], "dynamic/0/rgb/x.mkv"),
    "1/pose/x.npz": (["lyra_static_003"], "static/1/pose/x.npz"),
    "2/depth/x.zip": (["static_and_dynamic"], "2/depth/x.zip"),
    "rgb/x.mp4": (["static", "4"], "static/4/rgb/x.mp4"),
    "x.mp4": (["dynamic", "11", "rgb"], "dynamic/11/rgb/x.mp4"),
    "rgb/y.mp4": (["5", "rgb"], "5/rgb/y.mp4"),
    "novel/0/rgb/z.mp4": (["static"], "novel/0/rgb/z.mp4"),
    "set/manifest.json": ([], "manifest.json"),
    "0/caption/x.txt": ([], None),
    "0/rgb/._x.mp4": ([], None),
    "rgb/x.mp4/": ([], None),
    "2024/rgb/x.mp4": ([], None),
    "README.md": ([], None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_end_of_a_name_says_where_a_file_belongs(name: str) -> None:
    outer, expected = LAYOUTS[name]
    place = place_of(checked_parts(name, "x.tar"), outer)
    assert (None if place is None else str(place)) == expected


@pytest.mark.parametrize(
    ("archive", "prefix", "root"),
    [
        ("whole.tar", "Lyra-SDG/static/", "."),
        ("static_000.tar", "", "."),
        ("static/000.tar", "./", "."),
        ("static/000.tar", "", "static"),
        ("static/000.tar", "", "static/000.tar"),
    ],
)
def test_any_layout_of_tars_is_found(
    plain: Path, tmp_path: Path, archive: str, prefix: str, root: str
) -> None:
    write_tar(tmp_path / archive, plain, prefix, lambda file: file.stem == "a" and file.parts[0] in "12")
    store = LyraStore(tmp_path / root)
    assert store.listing == {"a": [1, 2]}
    assert store.trajectory_root.name == "static"
    assert store.home == tmp_path
    assert torch.equal(store.scene("a").clips[2].latents(), LyraStore(plain).scene("a").clips[2].latents())


def test_a_manifest_and_held_out_paths_may_lie_in_a_tar(plain: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(plain, whole / "static")
    shutil.copytree(plain / "0", whole / "novel" / "0")
    write_manifest(whole, Manifest("linear", 9, 32, 48, {"a": [0, 5]}, {"a": [0]}, {"test": ["a"]}))
    write_tar(tmp_path / "tars" / "set.tar", whole, "set/")
    store = LyraStore(tmp_path / "tars")
    assert store.spec.codec == "linear"
    assert store.listing == {"a": [0, 5]}
    novel = store.novel_clips("a")[0]
    assert torch.equal(novel.rgb(), LyraStore(plain).scene("a").clips[0].rgb())
    write_tar_of(tmp_path / "tars" / "more.tar", {"manifest.json": b"{}"})
    assert LyraStore(tmp_path / "tars").manifest is None


def test_folders_win_over_tars_beside_them(plain: Path, tars: Path) -> None:
    shutil.copytree(plain, tars / "static")
    shutil.rmtree(tars / "static" / "0")
    assert LyraStore(tars).listing == {"a": [1, 2, 3, 4, 5], "b": [1, 2, 3, 4, 5]}


def test_the_index_is_kept_and_renewed(
    tars: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, plain: Path
) -> None:
    passes = []
    each_member = tar_module.each_member
    monkeypatch.setattr(
        tar_module, "each_member", lambda path, mode: passes.append(path.name) or each_member(path, mode)
    )

    def reopened() -> LyraStore:
        tar_module._OPENED.clear()
        return LyraStore(tars)

    assert reopened().names == ["a", "b"]
    assert passes == ["part_a.tar", "part_b.tar"]
    assert reopened().names == ["a", "b"]
    assert len(passes) == 2
    assert sorted(path.name for path in tars.iterdir() if path.suffix == ".json") == [
        ".part_a.tar.index.json",
        ".part_b.tar.index.json",
    ]
    (tars / ".part_a.tar.index.json").write_text('{"format": "lyra_ns tar index 1", "size": 3}')
    assert reopened().names == ["a", "b"]
    assert passes[2:] == ["part_a.tar"]
    write_tar(tars / "part_b.tar", plain, "static/", lambda file: file.stem == "b" and file.parts[0] == "0")
    assert reopened().listing["b"] == [0]
    assert passes[3:] == ["part_b.tar"]
    assert not list(own_cache.rglob("*.json"))


def test_where_the_folder_cannot_be_written_the_index_goes_to_the_cache(
    tars: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole = atomic.write_whole

    def refuse(path: Path, content: bytes) -> None:
        if path.parent == tars:
            raise PermissionError("read-only file system")
        write_whole(path, content)

    monkeypatch.setattr(tar_module, "write_whole", refuse)
    assert LyraStore(tars).names == ["a", "b"]
    assert len(list(own_cache.rglob("*.index.json"))) == 2
    monkeypatch.setattr(
        tar_module, "each_member", lambda path, mode: pytest.fail("the headers were read again")
    )
    tar_module._OPENED.clear()
    assert LyraStore(tars).names == ["a", "b"]


def test_a_tar_that_changes_under_the_reader_is_noticed(tars: Path) -> None:
    clip = LyraStore(tars).scene("a").clips[0]
    with open(tars / "part_a.tar", "ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=r"part_a\.tar has changed since it was opened"):
        clip.latents()
    assert LyraStore(tars).scene("a").clips[0].latents().shape[0] == 16


def test_clips_travel_to_worker_processes(plain: Path, tars: Path) -> None:
    store = LyraStore(tars)
    clip = store.scene("b").clips[4]
    assert len(pickle.dumps(clip)) < 1000
    again = pickle.loads(pickle.dumps(clip))
    assert again == clip
    assert hash(again) == hash(clip)
    assert pickle.loads(pickle.dumps(store)).listing == store.listing
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        read = pool.submit(clip.path("latent").read_bytes).result(60)
    assert read == (plain / "4/latent/b.pkl").read_bytes()


def test_files_inside_tars_read_at_any_position(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5
    write_tar_of(tmp_path / "x.tar", {"0/rgb/x.mp4": content, "0/pose/x.npz": b"next"})
    path = tar_tree(tmp_path).top / "0" / "rgb" / "x.mp4"
    with path.open() as file:
        assert file.seek(-10, io.SEEK_END) == len(content) - 10
        assert file.read(100) == content[-10:]
        assert file.read(1) == b""
        file.seek(3)
        assert file.read(300) == content[3:303]
        with pytest.raises(OSError, match="cannot seek"):
            file.seek(-1)
    assert path.read_bytes() == content
    assert (path.name, path.stem, path.suffix, path.parent.name) == ("x.mp4", "x", ".mp4", "rgb")
    assert sorted(entry.name for entry in path.parent.parent.iterdir()) == ["pose", "rgb"]
    with pytest.raises(FileNotFoundError, match=r"no file .*!/0/rgb/y\.mp4"):
        (path.parent / "y.mp4").open()
    with pytest.raises(FileNotFoundError, match="no folder"):
        (path.parent / "none").iterdir()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, target
    return member


GOOD = {"0/pose/x.npz": b"1"}
UNSAFE = {
    "../0/rgb/x.mp4": b"2",
    "0/rgb/../../../x.mp4": b"2",
    "/etc/0/rgb/x.mp4": b"2",
    "C:/0/rgb/x.mp4": b"2",
    "0\\rgb\\..\\x.mp4": b"2",
    "0/rgb/link.mp4": special(tarfile.SYMTYPE, "/etc/passwd"),
    "0/rgb/hard.mp4": special(tarfile.LNKTYPE, "0/pose/x.npz"),
    "0/rgb/device.mp4": special(tarfile.CHRTYPE),
    "0/rgb/pipe.mp4": special(tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_members_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    write_tar_of(tmp_path / "in" / "x.tar", GOOD | {name: UNSAFE[name]})
    for attempt in (lambda: LyraStore(tmp_path / "in"), lambda: unpack([tmp_path / "in"], tmp_path / "out")):
        with pytest.raises(ValueError, match=r"x\.tar holds ") as caught:
            attempt()
        assert repr(name) in str(caught.value)
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"x.tar", "x.npz"}


def test_damaged_and_compressed_tars_are_named(plain: Path, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "static.tar", plain, "", lambda file: file.stem == "a")
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        video = next(member for member in tar if member.name.endswith("a.mp4"))
    boundary, middle = video.offset, video.offset_data + video.size // 2
    broken_header = bytearray(content)
    broken_header[boundary] ^= 255
    for damage in (content[:middle], content[:boundary], bytes(broken_header), b"", b"x" * 2000):
        path.write_bytes(damage)
        for attempt in (lambda: LyraStore(tmp_path), lambda: unpack([path], tmp_path / "out")):
            with pytest.raises(ValueError, match=r"static\.tar must be a tar, found .*download it again"):
                attempt()
    path.unlink()
    path = write_tar(tmp_path / "static.tar.gz", plain, mode="w:gz")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"static\.tar\.gz must be a tar, found one that is damaged"):
        unpack([path], tmp_path / "more")
    path = write_tar(path, plain, mode="w:gz")
    with pytest.raises(ValueError, match=r"compressed \(static\.tar\.gz\).*ns-lyra unpack"):
        LyraStore(tmp_path)
    os.rename(path, tmp_path / "static.tar")
    with pytest.raises(ValueError, match=r"or a compressed one, which `ns-lyra unpack` reads"):
        LyraStore(tmp_path)


def test_a_clip_in_two_tars_is_refused_and_a_set_without_clips_named(tmp_path: Path) -> None:
    write_tar_of(tmp_path / "one.tar", GOOD)
    write_tar_of(tmp_path / "two.tar", GOOD)
    with pytest.raises(ValueError, match=r"both .*one\.tar and .*two\.tar hold 0/pose/x\.npz"):
        LyraStore(tmp_path)
    (tmp_path / "two.tar").unlink()
    write_tar_of(tmp_path / "one.tar", {"notes/readme.txt": b"1"})
    for attempt in (lambda: LyraStore(tmp_path), lambda: unpack([tmp_path], tmp_path / "out")):
        with pytest.raises((ValueError, FileNotFoundError), match=r"hold no file like .*notes/readme\.txt"):
            attempt()
    with pytest.raises(FileNotFoundError, match="no tar at"):
        unpack([tmp_path / "none.tar"], tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_unpacked_files_are_those_that_were_packed(
    plain: Path, tmp_path: Path, suffix: str, mode: str
) -> None:
    path = write_tar(tmp_path / f"set{suffix}", plain, "x/static/", mode=mode)
    seen = []
    report = unpack([path], tmp_path / "out", lambda tar, size: seen.append(size))
    wanted = [file for file in plain.rglob("*.*") if file.parent.name != "caption"]
    assert report.num_written == len(wanted) == 60
    assert len(report.strays) == 13
    assert "x/static/flag" in report.strays
    assert sum(seen) == sum(file.stat().st_size for file in plain.rglob("*") if file.is_file())
    for file in wanted:
        assert (tmp_path / "out/static" / file.relative_to(plain)).read_bytes() == file.read_bytes()
    assert_same_scenes(LyraStore(tmp_path / "out"), LyraStore(plain))


@pytest.mark.slow
def test_unpacking_goes_on_after_an_interruption(
    tars: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path_factory.mktemp("out")
    calls = 0
    copy_whole = atomic.copy_whole

    def interrupted(path: Path, source, size: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / f".{path.name}.1.partial").write_bytes(b"left by a killed process")
            raise KeyboardInterrupt
        copy_whole(path, source, size)

    monkeypatch.setattr(tar_module, "copy_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack([tars], out)
    spoiled = next(out.rglob("*.mp4"))
    spoiled.write_bytes(b"cut")
    report = unpack([tars], out)
    assert (report.num_kept, report.num_written) == (18, 42)
    assert not list(out.rglob(".*"))
    assert_same_scenes(LyraStore(out), LyraStore(tars))
    assert unpack([tars], out).num_written == 0


def test_a_full_disk_is_told_before_anything_is_written(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs 0\.00 GB and leaves .* GB spare.*read the tars in place"):
        unpack([tars], tmp_path / "out", keep_spare=2**60)
    assert not (tmp_path / "out").exists()
