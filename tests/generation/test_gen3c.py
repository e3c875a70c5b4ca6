"""`ns-lyra generate` with GEN3C on small random weights: its latents, or its frames encoded again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lyra_ns.codec import load_codec
from lyra_ns.data.store import LyraStore
from lyra_ns.decoder.checkpoints import save_decoder
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler
from lyra_ns.generation import run as generate_module
from lyra_ns.generation.run import generate
from lyra_ns.generation.settings import GenerateSettings
from tests.helpers.small_gen3c import small_autoencoder, small_transformer


def save_small_decoder(path: Path, head: GaussianHeadConfig, digest: str) -> None:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8, "head_dim": 16}
    decoder = LatentGaussianDecoder(DecoderConfig(**sizes, head=head))
    decoder.codec_digest = digest
    save_decoder(decoder, path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gen3c")
    pipeline = Gen3CPipeline(small_transformer(), small_autoencoder(), gen3c_scheduler())
    pipeline.save_pretrained(folder / "weights")
    shipped_kind = GaussianHeadConfig(near=1.0, far=30.0, distance_law="logarithmic", scale_law="footprint")
    save_small_decoder(folder / "small.safetensors", shipped_kind, load_codec("linear").spec.digest)
    save_small_decoder(folder / "official.safetensors", GaussianHeadConfig(), "")
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), "uint8")
    Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC).save(folder / "photo.png")
    return folder


def run(files: Path, output: Path, decoder: str, **changes) -> tuple[dict, str]:
    printed = io.StringIO()
    settings = GenerateSettings(
        input=files / "photo.png", output=output, checkpoint=str(files / decoder), depth="plane", units=4.0,
        steps=2, precision="float32", num_trajectories=1, device="cpu", refine_steps=0,
        **({"height": 64, "width": 96, "num_frames": 17, "weights": str(files / "weights")} | changes),
    )  # fmt: skip
    generate(settings, Console(file=printed, soft_wrap=True))
    return json.loads((output / "record.json").read_text()), printed.getvalue()


@pytest.mark.slow
def test_weights_alone_mean_gen3c_and_its_latents_go_to_lyras_decoder(files, tmp_path):
    record, printed = run(files, tmp_path / "a", "official.safetensors", num_frames=9)
    assert record["teacher"]["name"] == "gen3c"
    assert "nothing was generated" not in printed
    assert record["codec"]["name"].startswith("cosmos:")
    stored = LyraStore(tmp_path / "a" / "latents").clips("photo")[5]
    assert stored.latents().shape == (16, 2, 8, 12)
    # GEN3C's own poses, not the exact ones: at the side of its loop the camera has left z = 0.
    assert float(stored.cameras().camera_to_world[:, 2, 3].abs().max()) > 1e-3


@pytest.mark.slow
def test_clips_for_a_decoder_of_another_codec_are_encoded_again(files, tmp_path):
    record, printed = run(files, tmp_path / "a", "small.safetensors")
    assert "encoded again for this decoder: 17 frames of 240 x 160, codec linear" in printed
    assert record["codec"]["name"] == "linear"
    assert record["clips"] == {"num_frames": 17, "height": 64, "width": 96}
    stored = LyraStore(tmp_path / "a" / "latents").clips("photo")[5]
    assert stored.latents().shape == (16, 3, 20, 30)
    assert record["decoder_input"]["width"] == stored.cameras().width == 240


def test_too_short_clips_for_another_decoder_are_refused_before_they_are_made(files, tmp_path, monkeypatch):
    monkeypatch.setattr(generate_module, "make_clips", lambda *arguments: pytest.fail("clips were made"))
    with pytest.raises(ValueError, match=r"at least the 17 frames .* found 9"):
        run(files, tmp_path / "a", "small.safetensors", num_frames=9)
    assert not (tmp_path / "a").exists()


def test_clips_of_a_codec_that_the_decoder_does_not_read_are_refused_before_they_are_made(
    files, tmp_path, monkeypatch
):
    save_small_decoder(tmp_path / "other.safetensors", GaussianHeadConfig(), "another codec")
    monkeypatch.setattr(generate_module, "make_clips", lambda *arguments: pytest.fail("clips were made"))
    with pytest.raises(ValueError, match="codec of digest another codec, found the codec cosmos"):
        run(files, tmp_path / "a", str(tmp_path / "other.safetensors"), num_frames=9)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("auto", "--codec cosmos:FOLDER"),
        ("linear", r"latents of the Cosmos tokenizer, found those of the codec linear"),
    ],
)
def test_the_warp_needs_a_codec_for_lyras_decoder(files, tmp_path, codec, message):
    with pytest.raises(ValueError, match=message):
        run(files, tmp_path / "a", "official.safetensors", weights=None, num_frames=9, codec=codec)
    assert not (tmp_path / "a").exists()
