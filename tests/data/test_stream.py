"""The stream of training batches: any number of workers and ranks, resumable, patient with bad scenes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from lyra_ns.codec import load_codec
from lyra_ns.data.store import LyraStore
from lyra_ns.data.stream import TrainingStream, rank_share
from lyra_ns.data.view_sampling import SamplingConfig
from tests.helpers.small_dataset import assert_equal_batches, write_small_dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return LyraStore(write_small_dataset(tmp_path_factory.mktemp("data"), num_scenes=4))


def stream_of(store, **changes):
    arguments = {"batch_size": 2, "codec": load_codec("linear"), "num_batches": 5, "seed": 3} | changes
    return TrainingStream(store, store.names, SamplingConfig(num_target_frames=3), **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(store, num_workers):
    torch.set_num_threads(1)
    alone = list(stream_of(store))
    loader = DataLoader(stream_of(store), batch_size=None, num_workers=num_workers)
    for one, other in zip(alone, loader, strict=True):
        assert_equal_batches(one, other)


@pytest.mark.slow
def test_a_stream_resumes_where_it_stopped(store):
    whole = list(stream_of(store))
    rest = list(stream_of(store, first_batch=3, num_batches=2))
    for one, other in zip(whole[3:], rest, strict=True):
        assert_equal_batches(one, other)


@pytest.mark.slow
def test_a_pass_shows_every_scene_once_in_changing_order(store):
    names = [batch.names for batch in stream_of(store, num_batches=20)]
    passes = [tuple(names[2 * turn] + names[2 * turn + 1]) for turn in range(10)]
    assert all(sorted(each) == store.names for each in passes)
    assert len(set(passes)) > 4


@pytest.mark.slow
def test_ranks_have_their_own_scenes_and_the_same_number_of_trajectories(store):
    names = [f"{number:02d}" for number in range(11)]
    shares = [rank_share(names, rank, 3) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == names
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="5 processes need at least as many training scenes, found 4"):
        rank_share(store.names, 4, 5)
    streams = [list(stream_of(store, rank=rank, world_size=2)) for rank in range(2)]
    seen = [{name for batch in batches for name in batch.names} for batches in streams]
    assert seen[0].isdisjoint(seen[1])
    for one, other in zip(*streams, strict=True):
        assert one.latents.shape == other.latents.shape


@pytest.mark.slow
def test_without_a_codec_the_stream_leaves_decoding_to_the_caller(store):
    codec = load_codec("linear")
    pending = list(stream_of(store, codec=None))
    for one, other in zip(pending, stream_of(store), strict=True):
        assert_equal_batches(one.complete(codec), other)


@pytest.mark.slow
def test_a_bad_scene_is_replaced_named_once_and_ends(tmp_path, caplog):
    root = write_small_dataset(tmp_path, num_scenes=3)
    for trajectory in range(6):
        (root / "static" / str(trajectory) / "depth" / "b.zip").unlink()
    store = LyraStore(root)
    stream = stream_of(store, num_batches=8)
    batches = list(stream)
    assert {name for batch in batches for name in batch.names} == {"a", "c"}
    assert all(len(set(batch.names)) == 2 for batch in batches)
    assert list(stream.bad_scenes) == ["b"]
    assert "depth" in stream.bad_scenes["b"]
    assert caplog.text.count("scene b skipped") == 1
    loader = DataLoader(stream_of(store, num_batches=8), batch_size=None, num_workers=2)
    for one, other in zip(batches, loader, strict=True):
        assert_equal_batches(one, other)
    for name in ("a", "c"):
        (root / "static" / "0" / "intrinsics" / f"{name}.npz").unlink()
        for trajectory in range(1, 6):
            (root / "static" / str(trajectory) / "pose" / f"{name}.npz").unlink()
    with pytest.raises(ValueError, match="none of the 3 training scenes can be read"):
        list(stream_of(LyraStore(root)))
