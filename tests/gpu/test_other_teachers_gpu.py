"""Wan VACE, SANA-WM and the text models on a GPU: as on the CPU, under every memory policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.codec.registry import load_codec
from lyra_ns.text.prompts import PromptWriter, load_prompt_writer
from lyra_ns.text.to_image import load_text_to_image
from tests.helpers.small_pipelines import (
    small_language_model,
    small_sana_wm,
    small_stable_diffusion,
    small_wan_vace,
)
from tests.helpers.teacher_requests import request_for_a_box

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("in_float32")]

POLICIES = ("fast", "balanced", "low")
MEAN_DIFFERENCE = 1.0
"""Of 255: frames on a GPU beside those on the CPU, after rounding to 8 bits."""


@pytest.fixture
def in_float32() -> Iterator[None]:
    """Convolutions in float32, which cuDNN rounds to TF32 by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved weights of all models."""
    folder = tmp_path_factory.mktemp("weights")
    makers = {"vace": small_wan_vace, "sana": small_sana_wm, "picture": small_stable_diffusion}
    for name, make in makers.items():
        make().save_pretrained(folder / name)
    for part in small_language_model([f"\n1. The room number {number} is red." for number in range(20)]):
        part.save_pretrained(folder / "words")
    return {path.name: path for path in folder.iterdir()}


def vace_frames(folder: Path, device: str, memory: Any) -> Tensor:
    from lyra_ns.teachers.wan_vace import WanVaceSettings, load_wan_vace

    settings = WanVaceSettings(steps=2, smallest_area=64 * 96)
    codec = load_codec("linear", device)
    teacher = load_wan_vace(str(folder), codec, device, torch.float32, memory, settings)
    return teacher.generate([request_for_a_box()])[0].video


def sana_frames(folder: Path, device: str, memory: Any) -> Tensor:
    from lyra_ns.teachers.sana_wm import SanaWmSettings, load_sana_wm

    settings = SanaWmSettings(steps=2, height=64, width=96)
    codec = load_codec("linear", device)
    teacher = load_sana_wm(str(folder), codec, device, torch.float32, memory, settings)
    return teacher.generate([request_for_a_box()])[0].video


def picture(folder: Path, device: str, memory: Any) -> Tensor:
    make = load_text_to_image(str(folder), device, torch.float32, memory, {"num_inference_steps": 2})
    return make("a red room", 32, 32, seed=0)


MODELS = {"vace": vace_frames, "sana": sana_frames, "picture": picture}


@pytest.mark.parametrize("model", MODELS)
def test_a_gpu_makes_what_a_cpu_makes(folders: dict[str, Path], model: str) -> None:
    """Under every memory policy."""
    expected = MODELS[model](folders[model], "cpu", "fast").float()
    for memory in POLICIES:
        found = MODELS[model](folders[model], "cuda", memory)
        assert not found.is_cuda
        assert (found.float() - expected).abs().mean() < MEAN_DIFFERENCE, memory


def test_half_precision(folders: dict[str, Path]) -> None:
    """bfloat16, the default on a GPU, runs through and gives frames of the same kind."""
    from lyra_ns.teachers.sana_wm import SanaWmSettings, load_sana_wm
    from lyra_ns.teachers.wan_vace import WanVaceSettings, load_wan_vace

    codec = load_codec("linear", "cuda")
    vace_settings = WanVaceSettings(steps=2, smallest_area=64 * 96)
    sana_settings = SanaWmSettings(steps=2, height=64, width=96)
    vace = load_wan_vace(str(folders["vace"]), codec, "cuda", settings=vace_settings)
    sana = load_sana_wm(str(folders["sana"]), codec, "cuda", settings=sana_settings)
    assert vace.pipeline.transformer.dtype == sana.pipeline.transformer.dtype == torch.bfloat16
    assert vace.pipeline.vae.dtype == torch.float32
    for teacher in (vace, sana):
        clip = teacher.generate([request_for_a_box()])[0]
        assert clip.z.isfinite().all()
        assert clip.video.float().std() > 5


def test_prompts_leave_the_generators_alone(folders: dict[str, Path]) -> None:
    """The same seed gives the same on a GPU, whose own draws go on as if nothing had been."""
    model = load_prompt_writer(str(folders["words"]), "cuda", torch.float32).model
    writer = PromptWriter(model, "small", items_at_once=3, longest_answer=8)
    before = torch.cuda.get_rng_state()
    assert writer(4, seed=1) == writer(4, seed=1) != writer(4, seed=2)
    assert torch.equal(torch.cuda.get_rng_state(), before)
