"""Folders of weights that lack something: an error that names it, never random numbers or talk of a hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, PreTrainedModel

from lyra_ns.pretrained import load_pipeline, load_pretrained
from tests.helpers.small_pipelines import small_language_model, small_stable_diffusion

PIPELINE = "StableDiffusionPipeline"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    small_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "pipeline"))


def load(folder: Path) -> Any:
    return load_pipeline(PIPELINE, str(folder), torch.float32, "test")


def without(file: Path, *names: str) -> None:
    """The file without tensors whose names contain one of these."""
    tensors = load_file(file)
    kept = {name: value for name, value in tensors.items() if not any(part in name for part in names)}
    assert len(kept) < len(tensors)
    save_file(kept, file, {"format": "pt"})


def test_parts_of_transformers_that_lack_tensors_are_refused(folder: Path) -> None:
    """Diffusers does not hand on what transformers found missing and drew at random."""
    stock = PreTrainedModel.__dict__["from_pretrained"]
    assert load(folder).text_encoder is not None
    without(folder / "text_encoder" / "model.safetensors", "final_layer_norm")
    with pytest.raises(
        FileNotFoundError, match=r"lack 2 tensors of their network \(CLIPText.*final_layer_norm"
    ):
        load(folder)
    assert PreTrainedModel.__dict__["from_pretrained"] is stock


def test_a_network_of_transformers_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    network, _ = small_language_model(["a", "b"])
    network.save_pretrained(tmp_path)

    def both(place: str) -> Any:
        return GPT2LMHeadModel.from_pretrained(place, output_loading_info=True)

    # What is tied to another tensor is in no file and lacks nothing.
    found, info = load_pretrained(both, str(tmp_path), "test", "config.json")
    assert found.lm_head.weight is found.transformer.wte.weight
    assert not info["missing_keys"]
    without(tmp_path / "model.safetensors", "mlp")
    with pytest.raises(
        FileNotFoundError, match=r"lack 4 .*GPT2LMHeadModel\.transformer\.h\.0\.mlp.*, \.\.\.\)"
    ):
        load_pretrained(both, str(tmp_path), "test", "config.json")


@pytest.mark.slow
def test_folders_that_lack_files_are_told_as_folders(folder: Path) -> None:
    cases = [
        ("unet/diffusion_pytorch_model.safetensors", "no file named diffusion_pytorch_model"),
        ("text_encoder/model.safetensors", "no file named model.safetensors"),
        ("text_encoder/config.json", ""),
        ("unet", "it has no folder unet"),
    ]
    for name, reason in cases:
        path, kept = folder / name, folder.parent / "kept"
        path.rename(kept)
        with pytest.raises(FileNotFoundError, match=rf"the folder {folder} .*{reason}.*complete$") as caught:
            load(folder)
        assert not any(word in str(caught.value) for word in ("hf download", "hub", "network", "\n"))
        kept.rename(path)
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match=rf"the folder {folder} could not be loaded"):
        load(folder)


def test_a_hub_that_cannot_be_reached_is_named_as_the_cause() -> None:
    """As diffusers does it: what is told at the end is a missing file, and the network stands behind it."""

    def load_offline(place: str) -> None:
        try:
            try:
                raise ConnectionError("[Errno -2] Name or service not known")
            except ConnectionError as error:
                raise LocalEntryNotFoundError("Cannot find the requested files") from error
        except LocalEntryNotFoundError:
            raise OSError(f"{place} does not appear to have a file named model_index.json")  # noqa: B904

    with pytest.raises(FileNotFoundError, match=r"the hub cannot be reached: .*Name or service") as caught:
        load_pretrained(load_offline, "owner/name", "text to image")
    assert "does not appear" not in str(caught.value)

    def load_gated(place: str) -> None:
        raise OSError(f"{place} is a gated repository")

    with pytest.raises(FileNotFoundError, match=r"\(owner/name is a gated repository\)"):
        load_pretrained(load_gated, "owner/name", "text to image")
