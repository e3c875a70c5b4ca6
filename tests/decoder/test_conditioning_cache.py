"""The caches of encoded maps: what they keep, what they throw out, and what a damaged file does."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lyra_ns.decoder.conditioning import LatentCache, LatentFolder, default_cache_folder


def test_cache_forgets_the_least_recently_used() -> None:
    """The limit counts bytes, and a look renews an entry."""
    cache = LatentCache(max_bytes=2 * 40)
    for key in ("a", "b"):
        cache.put(key, torch.zeros(10))
    assert cache.get("a") is not None
    cache.put("c", torch.zeros(10))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert (len(cache), cache.num_bytes) == (2, 80)
    cache.put("large", torch.zeros(100))
    assert (len(cache), cache.num_bytes) == (0, 0)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folder_gives_back_what_was_put(tmp_path, dtype):
    latents = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(0, 1)
    LatentFolder(tmp_path / "new").put("key", latents)
    found = LatentFolder(tmp_path / "new").get("key")
    assert found is not None
    assert found.dtype == dtype
    assert torch.equal(found, latents)
    assert LatentFolder(tmp_path / "new").get("other") is None
    assert names(tmp_path / "new") == {"key.safetensors"}


def damage_header(path: Path) -> None:
    path.write_bytes(b"no tensors here")


def damage_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def damage_number(path: Path) -> None:
    tensors = load_file(path)
    tensors["latents"][3] += 1
    save_file(tensors, path)


def damage_content(path: Path) -> None:
    save_file({"something": torch.zeros(3)}, path)


@pytest.mark.parametrize("damage", [damage_header, damage_length, damage_number, damage_content])
def test_damaged_files_are_said_and_deleted(tmp_path, caplog, damage):
    folder = LatentFolder(tmp_path)
    folder.put("key", torch.arange(10.0))
    damage(tmp_path / "key.safetensors")
    assert folder.get("key") is None
    assert folder.get("key") is None
    assert [record.getMessage().count("is damaged") for record in caplog.records] == [1]
    assert names(tmp_path) == set()
    folder.put("key", torch.arange(10.0))
    assert folder.get("key") is not None


def set_age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def test_least_recently_read_files_go_first(tmp_path):
    LatentFolder(tmp_path).put("a", torch.zeros(100))
    size = (tmp_path / "a.safetensors").stat().st_size
    folder = LatentFolder(tmp_path, max_bytes=2 * size)
    folder.put("b", torch.zeros(100))
    set_age(tmp_path / "a.safetensors", 200)
    set_age(tmp_path / "b.safetensors", 100)
    assert folder.get("a") is not None  # renewed
    folder.put("c", torch.zeros(100))
    assert names(tmp_path) == {"a.safetensors", "c.safetensors"}
    folder.put("large", torch.zeros(1000))
    assert names(tmp_path) == set()


def test_what_dead_processes_left_is_removed(tmp_path):
    for name, age in ((".x.safetensors.1.partial", 25 * 3600), (".y.safetensors.2.partial", 60)):
        (tmp_path / name).write_bytes(b"half")
        set_age(tmp_path / name, age)
    (tmp_path / "notes.txt").write_text("not ours")
    set_age(tmp_path / "notes.txt", 1e6)
    LatentFolder(tmp_path).put("a", torch.zeros(1))
    assert names(tmp_path) == {"a.safetensors", ".y.safetensors.2.partial", "notes.txt"}


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    folder = LatentFolder(tmp_path / "file")
    folder.put("a", torch.zeros(1))
    folder.put("b", torch.zeros(1))
    assert folder.get("a") is None
    assert [record.getMessage().count("cannot be kept") for record in caplog.records] == [1]


def put_many(folder: Path, first: int) -> None:
    torch.set_num_threads(1)
    shared = LatentFolder(folder, max_bytes=6000)
    for number in range(first, first + 40):
        shared.put(f"{number % 20}", torch.full((100,), float(number % 20)))
        found = shared.get(f"{(7 * number) % 20}")
        assert found is None or torch.equal(found, torch.full((100,), float((7 * number) % 20)))


def test_processes_share_a_folder(tmp_path):
    """Two processes that write, read and evict the same keys see whole entries only."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=put_many, args=(tmp_path, first)) for first in (0, 5)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert all(name.endswith(".safetensors") for name in names(tmp_path))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 6000 + 700


def test_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "lyra_ns" / "ray_maps"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_folder() == tmp_path / "home" / ".cache" / "lyra_ns" / "ray_maps"
