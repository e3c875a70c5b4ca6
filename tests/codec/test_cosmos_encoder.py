"""Our Cosmos encoder and its kernels beside diffusers' own encode and plain torch."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import cosmos_encoder
from lyra_ns.codec.base import LatentStatistics
from lyra_ns.codec.cosmos import CosmosCodec
from lyra_ns.codec.cosmos_encoder import CosmosEncoder, UnsupportedEncoder, is_still
from lyra_ns.decoder.conditioning import ConditioningBuilder
from tests.helpers.interpreter import interpreted


def make_autoencoder(seed: int = 0, **settings):
    """A small AutoencoderKLCosmos with random weights, norms included."""
    from diffusers import AutoencoderKLCosmos

    torch.manual_seed(seed)
    sizes = {"encoder_block_out_channels": (8, 16, 16, 32), "decode_block_out_channels": (8, 8, 8, 8)}
    autoencoder = AutoencoderKLCosmos(**{**sizes, "num_layers": 1, **settings}).eval().requires_grad_(False)
    for name, weight in autoencoder.named_parameters():
        if ".norm" in name:
            weight.add_(0.3 * torch.randn_like(weight))
    return autoencoder


@pytest.fixture(scope="module")
def autoencoder():
    return make_autoencoder()


def random_video(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("size", [(1, 32, 48), (9, 24, 16), (17, 40, 32), (17, 8, 8)])
@pytest.mark.parametrize("plain", [False, True])
def test_equals_diffusers(autoencoder, size, plain):
    video = random_video(2, 3, *size)
    expected = autoencoder.encode(video).latent_dist.mode()
    found = CosmosEncoder(autoencoder, plain)(video)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"patch_type": "rearrange"},
        {"attention_resolutions": (128,), "num_layers": 2},
        {"patch_size": 2, "resolution": 128, "attention_resolutions": (32,)},
        {"temporal_compression_ratio": 4},
        {"spatial_compression_ratio": 4},
        {"encoder_block_out_channels": (16, 8, 24, 16), "latent_channels": 5},
    ],
    ids=str,
)
def test_equals_diffusers_in_other_forms(settings):
    """Other patchings, attention in the down blocks, halving in space or time only, other widths."""
    other = make_autoencoder(1, **settings)
    video = random_video(1, 3, 17, 16, 24)
    expected = other.encode(video).latent_dist.mode()
    found = CosmosEncoder(other)(video)
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-5


def test_still_clips_cost_one_frame(autoencoder, monkeypatch):
    """A clip without motion has equal latents in every latent frame, here and in diffusers."""
    video = random_video(3, 3, 17, 16, 24)
    video[1] = video[1, :, :1]
    assert [is_still(clip) for clip in video] == [False, True, False]
    assert not is_still(video[0, :, :1])
    encoder, sizes = CosmosEncoder(autoencoder), []
    whole = encoder._encode
    monkeypatch.setattr(
        encoder, "_encode", lambda clips: sizes.append(tuple(clips.shape[:3])) or whole(clips)
    )
    found = encoder(video)
    assert sizes == [(2, 3, 17), (1, 3, 1)]
    assert relative_error(found, autoencoder.encode(video).latent_dist.mode()) < 1e-5
    still = encoder(video[1:2])
    assert torch.equal(still, found[1:2])
    assert torch.equal(still, still[:, :, :1].expand_as(still))


def test_groups_follow_the_memory(autoencoder, monkeypatch):
    """Little memory means one clip at a time; the result stays."""
    encoder = CosmosEncoder(autoencoder)
    video = random_video(3, 3, 9, 16, 24)
    expected = encoder(video)
    assert encoder.clips_at_once(9, 16, 24) > encoder.clips_at_once(121, 704, 1280) >= 1
    monkeypatch.setattr(encoder, "_free_bytes", lambda: 0)
    assert encoder.clips_at_once(9, 16, 24) == 1
    torch.testing.assert_close(encoder(video), expected, atol=1e-5, rtol=1e-5)


def codec_of(autoencoder, encoder: str = "auto") -> CosmosCodec:
    return CosmosCodec(
        autoencoder, LatentStatistics(torch.zeros(16, 4), torch.ones(16, 4)), "cosmos:x", encoder
    )


def test_codec_takes_the_encoder_it_is_told(autoencoder):
    """On the CPU diffusers encodes unless the fast program is asked for; `encoding` tells them apart."""
    video = random_video(2, 3, 9, 16, 24)
    auto, fast = codec_of(autoencoder), codec_of(autoencoder, "fast").to("cpu")
    assert auto.encoding == "plain torch.float32"
    assert fast.encoding == "fast torch.float32"
    assert auto.clips_at_once(9, 16, 24) == 1 < fast.clips_at_once(9, 16, 24)
    found, expected = fast.encode(video), auto.encode(video)
    assert found.dtype == torch.float32
    assert relative_error(found, expected) < 1e-5
    assert not torch.equal(found, expected)  # else one of the two was not used


def test_unknown_forms_are_refused_or_left_to_diffusers():
    other = make_autoencoder(2)
    other.encoder.norm_out.num_groups = 2
    with pytest.raises(UnsupportedEncoder, match="one group per frame, found 2"):
        codec_of(other, "fast")
    assert codec_of(other, "auto").encoding.startswith("plain")
    other.encoder.norm_out.num_groups = 1
    other.encoder.mid_block.attentions[0].num_attention_heads = 4
    with pytest.raises(UnsupportedEncoder, match="one head, found 4"):
        codec_of(other, "fast")


def test_digest_names_weights_and_statistics(autoencoder):
    first = codec_of(autoencoder).spec.digest
    assert len(first) == 16
    assert codec_of(make_autoencoder()).spec.digest == first
    assert codec_of(make_autoencoder(seed=1)).spec.digest != first
    statistics = LatentStatistics(torch.ones(16, 4), torch.ones(16, 4))
    assert CosmosCodec(autoencoder, statistics, "cosmos:x").spec.digest != first


def test_attention_by_products_equals_fused_attention(monkeypatch):
    """The same values whether frames and rows go together or apart (scores limited to a few kilobytes)."""
    rows = random_video(3, 20, 3 * 8)
    expected = cosmos_encoder.attend_in_space(rows.view(1, 3, 4, 5, 24)).flatten(0, 1).flatten(1, 2)
    kernels = type(sys)("lyra_ns.codec.cosmos_triton")
    kernels.softmax_in_place = lambda scores, scale, dtype: torch.softmax(scores * scale, -1).to(dtype)
    monkeypatch.setitem(sys.modules, "lyra_ns.codec.cosmos_triton", kernels)
    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b, out_dtype=None: product(a, b))
    for limit in (2**30, 2 * 4 * 20 * 20, 4 * 20 * 7):
        monkeypatch.setattr(cosmos_encoder, "SCORE_BYTES", limit)
        torch.testing.assert_close(cosmos_encoder._attend_by_products(rows), expected)


@pytest.mark.slow
def test_kernels_equal_torch():
    """The Triton kernels, interpreted on the CPU in a process of their own: Triton asks when imported."""
    interpreted("cosmos_kernel_values.py", seconds=120)


def test_cameras_that_do_not_turn_cost_half(autoencoder, tmp_path, monkeypatch):
    """Their directions stand still; the result is that of diffusers, and a second run encodes nothing."""
    path = CameraPath(
        torch.eye(4).repeat(1, 1, 9, 1, 1),
        torch.tensor([30.0, 30.0, 12.0, 8.0]).expand(1, 1, 9, 4),
        torch.linspace(0, 1, 9).expand(1, 1, 9),
        16,
        24,
    )
    path.camera_to_world[..., 2, 3] = torch.linspace(0, 1, 9)
    expected = ConditioningBuilder(codec_of(autoencoder, "plain"), 8, cache_folder=None).build(path)
    sizes = []
    whole = CosmosEncoder._encode
    monkeypatch.setattr(
        CosmosEncoder, "_encode", lambda self, clips: sizes.append(clips.shape[2]) or whole(self, clips)
    )
    for _ in range(2):
        builder = ConditioningBuilder(codec_of(autoencoder, "fast"), 8, cache_folder=tmp_path)
        found = builder.build(path)
        assert sizes == [9, 1]
        assert relative_error(found.plucker, expected.plucker) < 1e-5
