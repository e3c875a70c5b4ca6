"""Pictures from prompts, by a small Stable Diffusion that is saved and loaded through our API."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import constants
from transformers import CLIPConfig, CLIPImageProcessor

from lyra_ns.gen3c.inputs import UnsafeContent
from lyra_ns.text.to_image import FLUX, TextToImage, load_text_to_image, size_to_make
from tests.helpers.small_pipelines import small_stable_diffusion

PROMPT = "a red room, a lamp"
STEPS = {"num_inference_steps": 2}
SMALL_EYE = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved text-to-image pipeline."""
    folder = tmp_path_factory.mktemp("weights") / "small"
    small_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def to_image(folder: Path) -> TextToImage:
    """The pipeline, loaded through our API."""
    return load_text_to_image(str(folder), options=STEPS)


@pytest.mark.slow
def test_picture_has_the_size_and_says_what_it_depends_on(to_image: TextToImage) -> None:
    """The size asked for; the same picture for the same seed, whatever came between; others otherwise."""
    first = to_image(PROMPT, 24, 40, seed=3)
    assert first.shape == (3, 24, 40)
    assert first.dtype == torch.uint8
    other_seed = to_image(PROMPT, 24, 40, seed=4)
    other_prompt = to_image("a green field", 24, 40, seed=3)
    assert torch.equal(to_image(PROMPT, 24, 40, seed=3), first)
    assert not torch.equal(other_seed, first)
    assert not torch.equal(other_prompt, first)


def test_made_at_the_native_size_and_handed_over_as_made(to_image: TextToImage) -> None:
    """A target of the model's own size is the pipeline's picture, pixel by pixel."""
    made = to_image(PROMPT, 32, 32, seed=3)
    direct = to_image.pipeline(
        PROMPT, height=32, width=32, generator=torch.Generator().manual_seed(3), output_type="np", **STEPS
    )
    expected = torch.from_numpy((direct.images[0] * 255).round().astype(np.uint8)).permute(2, 0, 1)
    assert to_image.native_pixels == 32 * 32
    assert torch.equal(made, expected)


@pytest.mark.parametrize(
    ("target", "native", "made"),
    [((704, 1280), 1024**2, (752, 1376)), ((160, 256), 512**2, (400, 640)), ((256, 256), 512**2, (512, 512))],
)
def test_size_to_make(target: tuple[int, int], native: int, made: tuple[int, int]) -> None:
    """Multiples of 16 of about the native area and the aspect of the target."""
    assert size_to_make(*target, native) == made
    assert made[0] % 16 == made[1] % 16 == 0
    assert abs(made[0] * made[1] / native - 1) < 0.1


def test_sizes_that_are_no_picture(to_image: TextToImage) -> None:
    """Too long and empty ones are refused before anything is made."""
    for height, width in ((16, 80), (0, 16)):
        with pytest.raises(ValueError, match=f"found {height}x{width}"):
            to_image(PROMPT, height, width, seed=0)


def test_empty_prompt(to_image: TextToImage) -> None:
    """White space says nothing."""
    with pytest.raises(ValueError, match="found an empty one"):
        to_image("  ", 32, 32, seed=0)


def test_refused_by_the_pipelines_own_checker(to_image: TextToImage) -> None:
    """A picture that the pipeline's safety checker blackens is not handed over."""
    pipeline = small_stable_diffusion()
    pipeline.feature_extractor = CLIPImageProcessor(size=8, crop_size=8)
    pipeline.safety_checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=SMALL_EYE, projection_dim=8)
    )
    assert TextToImage(pipeline, "small", 1024, STEPS)(PROMPT, 32, 32, seed=0).any()
    pipeline.safety_checker.concept_embeds_weights.fill_(-9)  # Below every similarity: all is refused.
    with pytest.raises(UnsafeContent, match="refuses to show"):
        TextToImage(pipeline, "small", 1024, STEPS)(PROMPT, 32, 32, seed=0)


def test_folder_without_weights(tmp_path: Path) -> None:
    """A folder without a pipeline, and a path that is none, are named."""
    with pytest.raises(FileNotFoundError, match=r"model_index\.json in the folder"):
        load_text_to_image(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="hub id owner/name"):
        load_text_to_image(str(tmp_path / "nothing"))


def test_weights_that_are_not_cached_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One sentence that says how to get them."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"hf download {FLUX}") as caught:
        load_text_to_image()
    assert "\n" not in str(caught.value)


def test_broken_weights(folder: Path, tmp_path: Path) -> None:
    """A folder with a part missing is named."""
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    shutil.rmtree(broken / "unet")
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        load_text_to_image(str(broken))


def test_option_that_the_pipeline_does_not_take(folder: Path) -> None:
    """A misspelt option is named at once, not by the first picture."""
    with pytest.raises(ValueError, match="num_steps"):
        load_text_to_image(str(folder), options={"num_steps": 2})


def test_pipeline_that_gives_no_pictures(to_image: TextToImage) -> None:
    """A result without pictures is no picture."""

    def video(**arguments: Any) -> Any:
        return SimpleNamespace(frames=[])

    with pytest.raises(ValueError, match="found SimpleNamespace without any"):
        TextToImage(video, "video", 1024)(PROMPT, 32, 32, seed=0)
