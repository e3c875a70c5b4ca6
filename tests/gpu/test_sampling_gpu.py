"""Batches of scenes that lie on the GPU: the same as on the CPU, made without waiting for the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lyra_ns.codec import load_codec
from lyra_ns.data.batch import make_batch
from lyra_ns.data.scenes import load_scene
from lyra_ns.data.store import LyraStore
from lyra_ns.data.view_sampling import SamplingConfig, batch_generator
from tests.helpers.small_dataset import write_small_dataset

pytestmark = pytest.mark.gpu

CONFIG = SamplingConfig(num_target_frames=3, cross_view_targets=True, num_target_trajectories=4)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    store = LyraStore(write_small_dataset(tmp_path_factory.mktemp("data"), num_scenes=2))
    return [load_scene(store.scene(name), with_rgb=True) for name in store.names]


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, warm_start=True), replace(CONFIG, target_frames="rgb")]
)
def test_gpu_batches_equal_cpu_batches(scenes, config):
    expected = make_batch(scenes, config, load_codec("linear"), batch_generator(0, 0))
    on_gpu = [scene.to("cuda") for scene in scenes]
    batch = make_batch(on_gpu, config, load_codec("linear", "cuda"), batch_generator(0, 0))
    assert batch.target_ids == expected.target_ids
    for name in ("latents", "target_rgb", "target_depth", "input_rgb", "input_depth"):
        value, other = getattr(batch, name), getattr(expected, name)
        if other is not None:
            assert value.device.type == "cuda"
            torch.testing.assert_close(value.cpu(), other, atol=1e-4, rtol=0)
    poses = batch.cameras.camera_to_world.cpu()
    torch.testing.assert_close(poses, expected.cameras.camera_to_world, atol=1e-5, rtol=0)


def test_the_host_never_waits_for_the_gpu(scenes):
    on_gpu, codec = [scene.to("cuda") for scene in scenes], load_codec("linear", "cuda")
    make_batch(on_gpu, CONFIG, codec, batch_generator(0, 0))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        make_batch(on_gpu, CONFIG, codec, batch_generator(0, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
