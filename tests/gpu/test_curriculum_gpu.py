"""The curriculum on a GPU: inputs are encoded there, and a finished stage leaves its memory to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lyra_ns.codec import load_codec
from lyra_ns.curriculum.run import Curriculum
from lyra_ns.curriculum.stages import SCALES, RunChoices
from lyra_ns.data.batch import make_batch
from lyra_ns.data.scenes import load_scene
from lyra_ns.data.store import LyraStore
from lyra_ns.data.view_sampling import SamplingConfig, batch_generator
from tests.helpers.small_dataset import write_small_dataset

pytestmark = pytest.mark.gpu


def test_inputs_are_encoded_on_the_gpu_as_on_the_cpu(tmp_path: Path) -> None:
    """From scenes on the disk and from scenes that are held on the device."""
    store = LyraStore(write_small_dataset(tmp_path, num_scenes=1, num_trajectories=2))
    scene = load_scene(store.scene("a"), with_rgb=True)
    config = SamplingConfig(
        num_trajectories_max=2,
        num_target_frames=3,
        target_frames="rgb",
        inputs="encoded",
        image_size=(16, 32),
        num_input_frames=9,
        frame_gap_min=8,
        frame_gap_max=12,
    )
    codec = load_codec("linear")
    expected = make_batch([scene], config, codec, batch_generator(0, 0), num_trajectories=2)
    found = make_batch(
        [scene.to("cuda")], config, codec.to("cuda"), batch_generator(0, 0), num_trajectories=2
    )
    assert found.latents.device.type == found.target_rgb.device.type == "cuda"
    # A colour that lies between two bytes may be rounded the other way.
    torch.testing.assert_close(found.latents.cpu(), expected.latents, atol=0.05, rtol=0.01)
    torch.testing.assert_close(found.target_rgb.cpu(), expected.target_rgb, atol=1.1 / 255, rtol=0)
    torch.testing.assert_close(found.target_depth.cpu(), expected.target_depth)


def allocated() -> int:
    """Bytes in use without the workspaces that cuBLAS keeps for each stream, which nobody can use up."""
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


def test_stages_leave_no_memory_behind(tmp_path: Path) -> None:
    """Two stages in one process; the second starts from the first one's weights."""
    data = write_small_dataset(tmp_path / "data", num_scenes=3, num_trajectories=2)
    before = allocated()
    choices = RunChoices(tmp_path / "output", data, codec="linear", num_workers=0, device="cuda")
    paths = Curriculum("tiny", SCALES["tiny"].chosen("1-2"), choices).run()
    assert allocated() - before < 2**24
    first, second = (load_file(path) for path in paths)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert all(value.isfinite().all() for value in second.values())
