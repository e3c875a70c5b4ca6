"""Batches that are read ahead: the same ones, earlier."""

from __future__ import annotations

import threading

import pytest
import torch

from lyra_ns.data.batch import PendingBatch
from lyra_ns.data.view_sampling import SamplingConfig
from lyra_ns.plugin.datamanager import PrefetchedBatches, StreamedBatches, map_tensors
from lyra_ns.plugin.errors import DataError
from lyra_ns.plugin.scenes import SceneLibrary, open_scenes
from tests.helpers.wall_scenes import write_wall_scenes
from tests.plugin.test_training import SAMPLING, SETTINGS, assert_same, contents

OTHER = SamplingConfig(num_target_frames=1, num_trajectories_max=2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneLibrary:
    """Four small scenes on disk, opened."""
    return open_scenes(write_wall_scenes(tmp_path_factory.mktemp("walls")), (5, 0, 1))


class WatchedBatches:
    """A source that remembers what was asked of it, and can be out of order."""

    def __init__(self, scenes: SceneLibrary) -> None:
        self._source = StreamedBatches(scenes.store, scenes.split.train, SETTINGS, num_workers=0)
        self.asked: list[int] = []
        self.was_asked = threading.Event()
        self.broken = -1

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """As the source; DataError for the broken one."""
        self.asked.append(index)
        self.was_asked.set()
        if index == self.broken:
            raise DataError("scene gone")
        return self._source.batch(index, sampling)


@pytest.mark.slow
def test_batches_are_those_of_the_source_in_any_order(scenes: SceneLibrary) -> None:
    """In sequence, after a jump and after a change of sampling: what was read for nothing is thrown away."""
    ahead = PrefetchedBatches(WatchedBatches(scenes), "cpu")
    direct = WatchedBatches(scenes)
    for index, sampling in ((0, SAMPLING), (1, SAMPLING), (5, SAMPLING), (6, OTHER), (7, OTHER)):
        assert_same(contents(ahead.batch(index, sampling)), contents(direct.batch(index, sampling)))


def test_the_next_batch_is_read_while_this_one_is_used(scenes: SceneLibrary) -> None:
    """Without being asked for, and then not once more."""
    source = WatchedBatches(scenes)
    ahead = PrefetchedBatches(source, "cpu")
    ahead.batch(0, SAMPLING)
    for expected in (1, 2):
        assert source.was_asked.wait(10)
        source.was_asked.clear()
        ahead.batch(expected, SAMPLING)
    ahead._reader.shutdown()
    assert source.asked == [0, 1, 2, 3]


def test_errors_come_when_their_batch_is_asked_for(scenes: SceneLibrary) -> None:
    """Not one step earlier, and the batches after it can still be had."""
    source = WatchedBatches(scenes)
    source.broken = 1
    ahead = PrefetchedBatches(source, "cpu")
    ahead.batch(0, SAMPLING)
    with pytest.raises(DataError, match="scene gone"):
        ahead.batch(1, SAMPLING)
    assert ahead.batch(2, SAMPLING).ready["names"]


def test_every_tensor_of_a_batch_is_mapped(scenes: SceneLibrary) -> None:
    """Those of cameras, of the latents to decode and of lists too; all else stays as it is."""
    pending = WatchedBatches(scenes).batch(0, SAMPLING)
    seen: list[torch.Tensor] = []
    doubled = map_tensors(pending, lambda tensor: (seen.append(tensor), tensor * 2)[1])
    assert torch.equal(doubled.ready["latents"], 2 * pending.ready["latents"])
    assert torch.equal(doubled.ready["cameras"].intrinsics, 2 * pending.ready["cameras"].intrinsics)
    assert torch.equal(doubled.sources.teacher_latents, 2 * pending.sources.teacher_latents)
    assert doubled.ready["names"] == pending.ready["names"]
    assert doubled.ready["cameras"].height == pending.ready["cameras"].height
    assert doubled.config is pending.config
    assert len(seen) >= 9
    assert map_tensors({"a": [torch.ones(1), (torch.ones(1), 3)]}, torch.neg)["a"][1] == (-torch.ones(1), 3)
