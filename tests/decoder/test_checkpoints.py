"""Decoders survive the way to the disk and back, and bad files are named."""

from __future__ import annotations

import os
import pickle
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.codec.linear import load_linear_codec
from lyra_ns.decoder import checkpoints
from lyra_ns.decoder.checkpoints import load_decoder, save_decoder
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import GaussianHeadConfig
from tests.helpers import golden

TINY = DecoderConfig(
    width=16, depth=2, pattern="1M1T", num_heads=2, state_size=8, head_dim=8, latent_channels=4
)


@pytest.fixture
def decoder() -> LatentGaussianDecoder:
    """A small decoder with a configuration far from the defaults."""
    head = GaussianHeadConfig(distance_law="logarithmic", near=1.0, identity_rotation=True)
    config = DecoderConfig(
        **{**vars(TINY), "head": head, "input_statistics": True, "ssd_backend": "reference"}
    )
    return LatentGaussianDecoder(config)


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal names and values."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def official_tensors() -> dict[str, Tensor]:
    """A full set of 254 official tensors, bfloat16."""
    shapes = {key: value.shape for key, value in LatentGaussianDecoder(DecoderConfig()).state_dict().items()}
    return {key: value.bfloat16() for key, value in golden.weights(shapes).items()}


@pytest.mark.slow
@pytest.mark.parametrize("container", ["module", "state_dict", "bare", "prefixed"])
def test_official_containers(tmp_path: Path, official_tensors: dict[str, Tensor], container: str) -> None:
    """A file in the exact official form, with other things beside the tensors as DeepSpeed keeps them."""
    tensors = official_tensors
    content: dict[str, Any] = {
        "module": {"module": tensors, "ds_version": "0.17.5", "global_steps": 83_000, "skipped_steps": 0},
        "state_dict": {"state_dict": tensors},
        "bare": tensors,
        "prefixed": {"module": {f"module.{key}": value for key, value in tensors.items()}},
    }[container]
    torch.save(content, tmp_path / "lyra_static.pt")
    loaded = load_decoder(tmp_path / "lyra_static.pt")
    assert loaded.config == DecoderConfig()
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    assert_same_tensors(loaded.state_dict(), {key: value.float() for key, value in tensors.items()})


def test_given_config_wins(tmp_path: Path, official_tensors: dict[str, Tensor]) -> None:
    """The dynamic model has the same tensors, so that only the caller can say that times are used."""
    torch.save({"module": official_tensors}, tmp_path / "lyra_dynamic.pt")
    assert load_decoder(tmp_path / "lyra_dynamic.pt", DecoderConfig(use_time=True)).config.use_time


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_own_format(tmp_path: Path, decoder: LatentGaussianDecoder, dtype: Any) -> None:
    """Weights, statistics and configuration come back; how to compute stays with the machine."""
    generator = torch.Generator().manual_seed(0)
    decoder.set_input_statistics(
        torch.randn(1, 1, 4, 3, 4, 4, generator=generator), torch.randn(1, 1, 8, 3, 4, 4, generator=generator)
    )
    decoder.codec_digest = "0123456789abcdef"
    path = save_decoder(decoder, tmp_path / "folder" / "decoder.safetensors", dtype)
    loaded = load_decoder(path)
    assert loaded.codec_digest == decoder.codec_digest
    kind = getattr(torch, dtype)
    expected = {key: value.to(kind).float() for key, value in decoder.state_dict().items()}
    assert_same_tensors(loaded.state_dict(), expected)
    assert loaded.config.head == decoder.config.head
    assert vars(loaded.config) == {**vars(decoder.config), "ssd_backend": "auto"}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_shipped_decoder_was_trained_with_the_shipped_codec() -> None:
    """A new fit of the codec needs a new decoder: the card says which codec its decoder was trained with."""
    card = resources.files("lyra_ns.weights").joinpath("lyra_tiny.md").read_text()
    assert f"linear codec of digest `{load_linear_codec().digest}`" in card


def test_write_is_whole_or_nothing(
    tmp_path: Path, decoder: LatentGaussianDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the disk fails the old file stays and nothing half-written is left."""
    path = save_decoder(decoder, tmp_path / "decoder.safetensors")
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        save_decoder(decoder, path, "float16")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_misfit_is_listed(tmp_path: Path) -> None:
    """Missing, unexpected and misshapen tensors are named, in a short form."""
    tensors = LatentGaussianDecoder(TINY).state_dict()
    del tensors["enc_norm.bias"]
    tensors["pos_embed"] = torch.zeros(3)
    tensors["deconv.bias"] = torch.zeros(13)
    torch.save(tensors, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_decoder(tmp_path / "other.pt", TINY)
    for part in (
        "1 missing (enc_norm.bias)",
        "1 unexpected (pos_embed)",
        "1 of another shape (deconv.bias [13] instead of [12])",
    ):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"missing \(.* and \d+ more\)"):
        load_decoder(tmp_path / "other.pt")


def test_bad_files(tmp_path: Path, decoder: LatentGaussianDecoder) -> None:
    """Absent, truncated, foreign and dangerous files give one sentence each."""
    with pytest.raises(FileNotFoundError, match="no decoder at"):
        load_decoder(tmp_path / "absent.pt")
    whole = save_decoder(decoder, tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        load_decoder(tmp_path / "cut.safetensors")
    torch.save({"module": {"x": torch.zeros(100)}}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:300])
    with pytest.raises(ValueError, match="cannot be read"):
        load_decoder(tmp_path / "cut.pt")
    torch.save({"module": {"note": "text"}}, tmp_path / "text.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_decoder(tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        save_decoder(decoder, tmp_path / "decoder.pt")


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    """A checkpoint that holds code is refused before the code runs."""
    trace = tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(trace),))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"module": Payload()}, protocol=2))
    with pytest.raises(ValueError, match="plain tensors"):
        load_decoder(tmp_path / "evil.pt")
    assert not trace.exists()


def test_foreign_safetensors(
    tmp_path: Path, decoder: LatentGaussianDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of another format or of a later version are refused."""
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", "9")
    later = save_decoder(decoder, tmp_path / "later.safetensors")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version '9'"):
        load_decoder(later)
    monkeypatch.setattr(checkpoints, "config_to_json", lambda config: '{"width": 16, "magic": 1}')
    unknown = save_decoder(decoder, tmp_path / "unknown.safetensors")
    with pytest.raises(ValueError, match=r"\(magic\)"):
        load_decoder(unknown)
