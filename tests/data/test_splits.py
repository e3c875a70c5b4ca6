"""Scene splits: disjoint, repeatable, stable when scenes are added, remembered when they can be."""

from __future__ import annotations

import json

import pytest

from lyra_ns.data import splits
from lyra_ns.data.splits import split_scenes

NAMES = [f"scene_{number:03d}" for number in range(200)]


def test_split_is_a_partition_near_the_fraction():
    split = split_scenes(NAMES, seed=1, test_fraction=0.2)
    assert sorted(split.train + split.test) == NAMES
    assert 25 <= len(split.test) <= 55
    assert split == split_scenes(reversed(NAMES), seed=1, test_fraction=0.2)
    assert split != split_scenes(NAMES, seed=2, test_fraction=0.2)


def test_added_scenes_move_none(tmp_path):
    before = split_scenes(NAMES[:100], folder=tmp_path)
    after = split_scenes(NAMES, folder=tmp_path)
    assert set(before.test) <= set(after.test)
    assert set(before.train) <= set(after.train)
    without_file = split_scenes(NAMES)
    assert after == without_file


def test_the_file_decides_and_keeps_absent_scenes(tmp_path):
    few = split_scenes(["a", "b"], test_fraction=0.01, folder=tmp_path)
    assert len(few.test) == 1
    # Scenes come and go; who was held out once stays held out.
    split_scenes(["c", "d"], test_fraction=0.01, folder=tmp_path)
    again = split_scenes(["a", "b", "c", "d"], test_fraction=0.01, folder=tmp_path)
    assert few.test[0] in again.test
    assert few.train[0] in again.train


def test_seeds_have_their_own_entries(tmp_path):
    first = split_scenes(NAMES, seed=1, folder=tmp_path)
    split_scenes(NAMES, seed=2, folder=tmp_path)
    assert len(json.loads((tmp_path / "splits.json").read_text())) == 2
    assert split_scenes(NAMES, seed=1, folder=tmp_path) == first


def test_a_given_split_decides_for_its_scenes(tmp_path):
    given = {"train": NAMES[:150], "test": NAMES[150:]}
    split = split_scenes(NAMES, folder=tmp_path, given=given)
    assert (split.train, split.test) == (NAMES[:150], NAMES[150:])
    assert not (tmp_path / "splits.json").exists()


def test_small_and_odd_sets():
    assert split_scenes(["only"]).train == ["only"]
    assert len(split_scenes(["a", "b", "c"]).test) == 1
    assert split_scenes(NAMES, test_fraction=0.0).test == []
    with pytest.raises(ValueError, match=r"test_fraction must be in \[0, 1\), found 1"):
        split_scenes(NAMES, test_fraction=1.0)


def test_a_folder_that_cannot_be_written_is_only_logged(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise PermissionError("read-only")

    monkeypatch.setattr(splits, "write_whole", refuse)
    assert split_scenes(NAMES, folder=tmp_path) == split_scenes(NAMES)
    assert "could not be stored" in caplog.text


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "splits.json").write_text("[1")
    with pytest.raises(ValueError, match=r"splits\.json must be JSON.*delete it"):
        split_scenes(NAMES, folder=tmp_path)
