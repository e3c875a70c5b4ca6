"""`ns-lyra convert`: official checkpoints in and our file out, and never a guess which model it is."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.cli.decoder import Convert
from lyra_ns.codec import VideoLatentSpec
from lyra_ns.decoder.checkpoints import (
    OFFICIAL_FILES,
    OfficialFile,
    load_any_decoder,
    load_decoder,
    recognise,
    save_decoder,
)
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.options import DecoderChoice


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """The 254 official tensors at full size, random, in one flat buffer as DeepSpeed keeps its weights."""
    with torch.device("meta"):
        shapes = {
            key: value.shape for key, value in LatentGaussianDecoder(DecoderConfig()).state_dict().items()
        }
    flat = torch.empty(sum(shape.numel() for shape in shapes.values()), dtype=torch.bfloat16)
    flat.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return OrderedDict(
        (key, part.view(shape)) for (key, shape), part in zip(shapes.items(), parts, strict=True)
    )


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Path:
    """A file of DeepSpeed's save, with what it keeps beside the weights."""
    path = tmp_path_factory.mktemp("official") / "lyra.pt"
    torch.save(
        {
            "module": tensors,
            "buffer_names": [],
            "optimizer": None,
            "param_shapes": [OrderedDict((key, value.shape) for key, value in tensors.items())],
            "frozen_param_shapes": None,
            "shared_params": {},
            "lr_scheduler": None,
            "sparse_tensor_module_names": set(),
            "skipped_steps": 0,
            "global_steps": 83_000,
            "dp_world_size": 8,
            "mp_world_size": 1,
            "ds_config": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
            "ds_version": "0.17.5",
        },
        path,
    )
    return path


@pytest.fixture
def dynamic(official: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same file, known as the released dynamic model."""
    digest = hashlib.md5(official.read_bytes()).hexdigest()
    monkeypatch.setitem(OFFICIAL_FILES, digest, OfficialFile("lyra_dynamic.pt", use_time=True))
    return official


@pytest.mark.slow
def test_a_full_size_file_survives_the_way_through(
    official: Path, tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, config = tmp_path / "lyra.safetensors", tmp_path / "lyra.json"
    assert 65.5e6 < official.stat().st_size < 66e6
    Convert(official, output, config="lyra", config_file=config).run()
    found = load_decoder(output)
    assert len(tensors) == len(found.state_dict()) == 254
    for key, value in found.state_dict().items():
        assert torch.equal(value, tensors[key].float()), key
    assert found.config == DecoderConfig()
    assert found.codec_digest == ""
    stored = json.loads(config.read_text())
    assert (stored["width"], stored["use_time"], stored["head"]["scale_law"]) == (512, False, "capped")
    assert 65.5e6 < output.stat().st_size < 66e6
    printed = capsys.readouterr().out
    assert "a static decoder of 32,753,996 parameters as bfloat16, no weight changed" in printed
    assert "digest of the tokenizer is left empty" in printed
    assert "nvidia" not in printed


@pytest.mark.slow
def test_released_files_are_known_by_their_content(
    dynamic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Convert(dynamic, tmp_path / "x.safetensors").run()
    assert load_decoder(tmp_path / "x.safetensors").config.use_time
    printed = capsys.readouterr().out
    assert "this is nvidia/Lyra's lyra_dynamic.pt" in printed
    assert "a dynamic decoder" in printed
    assert load_any_decoder(dynamic).config.use_time
    with pytest.raises(ValueError, match=r"is nvidia/Lyra's lyra_dynamic\.pt, found --config lyra: leave"):
        Convert(dynamic, tmp_path / "y.safetensors", config="lyra").run()
    assert not (tmp_path / "y.safetensors").exists()


def test_the_released_checksums() -> None:
    assert {file.name: (digest, file.use_time) for digest, file in OFFICIAL_FILES.items()} == {
        "lyra_static.pt": ("28ddd05011b33350c70edab02c23c602", False),
        "lyra_dynamic.pt": ("91c1b3920332287ed161bc47a1fd7077", True),
    }


def test_an_unknown_file_is_not_guessed(
    official: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert recognise(official) is None
    with pytest.raises(ValueError, match="give --config lyra or lyra-dynamic"):
        Convert(official, tmp_path / "x.safetensors").run()
    assert not list(tmp_path.iterdir())
    load_decoder(official)
    assert "taken for the static one" in caplog.text
    with pytest.raises(FileNotFoundError, match="no decoder at"):
        Convert(tmp_path / "none.pt", tmp_path / "x.safetensors").run()


def small_decoder() -> LatentGaussianDecoder:
    config = DecoderConfig(width=16, depth=2, pattern="1M1T", num_heads=2, state_size=8, head_dim=8)
    return LatentGaussianDecoder(config)


def test_our_own_files_change_their_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = small_decoder()
    decoder.codec_digest = "0123456789abcdef"
    source = save_decoder(decoder, tmp_path / "source.safetensors")
    Convert(source, tmp_path / "half.safetensors", dtype="float16").run()
    half = load_decoder(tmp_path / "half.safetensors")
    assert half.codec_digest == decoder.codec_digest
    for key, value in half.state_dict().items():
        assert torch.equal(value, decoder.state_dict()[key].half().float())
    printed = capsys.readouterr().out
    assert "rounded by at most" in printed
    assert "digest of the tokenizer" not in printed


@pytest.mark.parametrize(("value", "dtype"), [(1e6, "float16"), (float("nan"), "float32")])
def test_weights_that_cannot_be_stored_are_named(tmp_path: Path, value: float, dtype: Any) -> None:
    decoder = small_decoder()
    with torch.no_grad():
        decoder.state_dict()["deconv.bias"][3] = value
    source = save_decoder(decoder, tmp_path / "source.safetensors")
    with pytest.raises(ValueError, match=rf"deconv\.bias does not fit into {dtype}, or is not finite"):
        Convert(source, tmp_path / "out.safetensors", dtype=dtype).run()
    assert not (tmp_path / "out.safetensors").exists()


def test_both_precisions_of_rays_can_be_chosen(tmp_path: Path) -> None:
    path = str(save_decoder(small_decoder(), tmp_path / "small.safetensors"))
    for plucker, rays in (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")):
        choice = DecoderChoice(checkpoint=path, device="cpu", plucker_dtype=plucker, ray_dtype=rays)
        conditioning = choice.reconstructor(VideoLatentSpec("linear")).conditioning
        assert (conditioning.plucker_dtype, conditioning.ray_dtype) == (plucker, rays)
