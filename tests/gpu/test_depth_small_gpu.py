"""Training of the small depth network on a GPU: the same pictures as on the CPU, and steps without a wait."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lyra_ns.depth.small import SmallDepthNetwork, load_small_depth, save_small_depth
from training.small_depth.data import BATCH_SHAPES, ScenePool, SceneSource
from training.small_depth.rendering import render_scenes
from training.small_depth.train import Training, TrainingOptions

pytestmark = pytest.mark.gpu


def on_cuda(value: Any) -> Any:
    """A tensor, or a dataclass of them, on the GPU."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    return replace(value, **{key: on_cuda(part) for key, part in vars(value).items()})


def test_scenes_look_as_on_the_cpu() -> None:
    source = SceneSource("cpu", 1, held_out=False, num_groups=100)
    scenes = source.drawer.draw(4, torch.Generator().manual_seed(0))
    expected = render_scenes(scenes, source.atlas, 64)
    atlas = replace(source.atlas, image=source.atlas.image.cuda())
    found = render_scenes(on_cuda(scenes), atlas, 64)
    same_depth = (found.depth.cpu() / expected.depth - 1).abs() < 1e-3
    same_colour = (found.rgb.cpu() - expected.rgb).abs().amax(1) < 0.02
    assert float(same_depth.float().mean()) > 0.995
    assert float(same_colour.float().mean()) > 0.98


def test_steps_in_bfloat16_learn_and_never_wait(tmp_path: Path) -> None:
    source = SceneSource("cuda", 1, held_out=False, num_groups=100)
    pool = ScenePool(source, 32, 128, 16)
    training = Training(TrainingOptions(tmp_path / "weights.safetensors", seconds=100.0))
    training.elapsed = 5.0
    batches = [pool.batch(8, shape) for shape in sorted(set(BATCH_SHAPES))]
    before = [training._step(batch) for batch in batches]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(15):
            pool.renew()
            pool.batch(8, BATCH_SHAPES[0])
            after = [training._step(batch) for batch in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(torch.stack(after).mean()) < 0.9 * float(torch.stack(before).mean())


def test_prediction_on_the_gpu_is_that_of_the_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_small_depth(SmallDepthNetwork(), tmp_path / "weights.safetensors")
    image = torch.rand(3, 6, 8).repeat_interleave(40, 1).repeat_interleave(40, 2)
    devices = ("cpu", "cuda")
    slow, fast = (
        load_small_depth(device, tmp_path / "weights.safetensors").predict(image).depth for device in devices
    )
    assert fast.device.type == "cpu"
    torch.testing.assert_close(fast, slow, rtol=0.02, atol=0.02)
