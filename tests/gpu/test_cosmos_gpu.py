"""The Cosmos encoder on a GPU: its kernels beside float32, and its errors beside those of diffusers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import cosmos_encoder
from lyra_ns.codec.base import LatentStatistics
from lyra_ns.codec.cosmos import CosmosCodec, EncoderName
from lyra_ns.codec.cosmos_encoder import CosmosEncoder, Norm, TemporalConvolution
from lyra_ns.decoder.conditioning import ConditioningBuilder

pytestmark = pytest.mark.gpu

BFLOAT16_ERROR = 6e-3
"""Relative error of one operation whose operands and result are rounded to bfloat16."""


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    """The encoder of CV8x8x8 in its true widths, random weights that bfloat16 holds exactly; on the CPU."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    made = diffusers.AutoencoderKLCosmos(decode_block_out_channels=(8, 8, 8, 8), num_layers=1)
    for name, weight in made.named_parameters():
        if ".norm" in name:
            weight.data.add_(0.3 * torch.randn_like(weight))
    return made.to(torch.bfloat16).float().eval().requires_grad_(False)


def codec_of(autoencoder: Any, encoder: EncoderName) -> CosmosCodec:
    """A codec on the GPU around a copy, so that the fixture stays on the CPU."""
    statistics = LatentStatistics(torch.zeros(16, 16), torch.ones(16, 16))
    return CosmosCodec(copy.deepcopy(autoencoder), statistics, "cosmos:random", encoder).to("cuda")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal bfloat16 numbers on the GPU."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", torch.bfloat16)


def smooth_video(num_clips: int, num_frames: int, height: int, width: int) -> Tensor:
    """Clips that change slowly in space and time, as ray maps and photographs do, and some noise."""
    coarse = torch.randn(num_clips, 3, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (num_frames, height, width), mode="trilinear")
    noise = torch.randn(fine.shape, generator=torch.Generator().manual_seed(1))
    return (fine + 0.05 * noise).bfloat16()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the expected norm."""
    expected = expected.double().cpu()
    return ((found.double().cpu() - expected).norm() / expected.norm()).item()


def test_errors_are_no_larger_than_those_of_diffusers(autoencoder: Any) -> None:
    """Both in bfloat16 against diffusers in float32 on the CPU."""
    video = smooth_video(3, 17, 64, 96)
    with torch.no_grad():
        exact = autoencoder.encode(video.float()).latent_dist.mode()
    plain, fast = codec_of(autoencoder, "plain"), codec_of(autoencoder, "auto")
    assert fast.encoding == "fast torch.bfloat16"
    errors = {codec.encoding: relative_error(codec.encode(video.cuda()), exact) for codec in (plain, fast)}
    assert errors[fast.encoding] <= errors[plain.encoding] < 0.1, errors


def test_still_clip_equals_diffusers(autoencoder: Any) -> None:
    """The shortcut over one frame stays within the rounding of the long way."""
    video = smooth_video(1, 1, 64, 96).expand(-1, -1, 17, -1, -1)
    with torch.no_grad():
        exact = autoencoder.encode(video.float()).latent_dist.mode()
    found = codec_of(autoencoder, "fast").encode(video.cuda())
    plain = codec_of(autoencoder, "plain").encode(video.cuda())
    assert relative_error(found, exact) <= 1.1 * relative_error(plain, exact)


def test_memory_is_less_than_that_of_diffusers(autoencoder: Any) -> None:
    """Peaks of one clip, above what is held before."""
    video = smooth_video(1, 17, 352, 640).cuda()
    growth = {}
    names: tuple[EncoderName, ...] = ("plain", "fast")
    for name in names:
        codec = codec_of(autoencoder, name)
        codec.encode(video)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        codec.encode(video)
        growth[name] = torch.cuda.max_memory_allocated() - before
        del codec
        torch.cuda.empty_cache()
    assert growth["fast"] < growth["plain"], growth


def test_plain_form_runs_on_a_gpu_too(autoencoder: Any) -> None:
    """The torch forms and the kernels differ by rounding only."""
    moved = copy.deepcopy(autoencoder).to("cuda", torch.bfloat16)
    video = smooth_video(2, 9, 40, 72).cuda()
    assert relative_error(CosmosEncoder(moved)(video), CosmosEncoder(moved, plain=True)(video)) < 0.05


@pytest.mark.parametrize(("channels", "silu"), [(128, True), (256, True), (512, False), (48, False)])
def test_norm(channels: int, silu: bool) -> None:
    """Means far from zero, frames of very different scale."""
    x = 3 + random(2, 3, 37, 53, channels)
    x[:, 1] *= 50
    norm = Norm(1 + 0.2 * random(channels, seed=1), random(channels, seed=2), 1e-6)
    wide = Norm(norm.gain.float(), norm.bias.float(), norm.eps)
    expected = cosmos_encoder.normalise(x.float(), wide, silu)
    assert relative_error(cosmos_encoder.normalise(x, norm, silu), expected) < BFLOAT16_ERROR


@pytest.mark.parametrize(
    ("channels", "result", "stride", "has_residual"),
    [
        (128, 128, 1, False),
        (256, 256, 1, True),
        (256, 256, 2, True),
        (512, 512, 1, True),
        (16, 16, 1, False),
        (48, 96, 2, False),
    ],
)
def test_temporal_convolution(channels: int, result: int, stride: int, has_residual: bool) -> None:
    """All tiles that the encoder uses, both strides, sizes that fill no tile."""
    x = random(2, 5, 19, 31, channels)
    weight = random(3, channels, result, seed=1) / channels**0.5
    frames = (5 - 1) // stride + 1
    residual = random(2, frames, 19, 31, result, seed=2) if has_residual else None
    convolution = TemporalConvolution(weight, random(result, seed=3).float(), stride)
    wide = TemporalConvolution(weight.double(), convolution.bias.double(), stride)
    expected = cosmos_encoder.convolve_in_time(
        x.double(), wide, None if residual is None else residual.double()
    )
    found = cosmos_encoder.convolve_in_time(x, convolution, residual)
    assert relative_error(found, expected) < BFLOAT16_ERROR


@pytest.mark.parametrize("size", [(3, 5), (31, 47), (88, 160)])
def test_spatial_attention(size: tuple[int, int]) -> None:
    """Rows of scores up to those of 704 x 1280, with scores that reach far apart."""
    projected = random(1, 2, *size, 3 * 512)
    projected[..., :512] *= 3
    expected = cosmos_encoder.attend_in_space(projected[:, :1].float())
    found = cosmos_encoder.attend_in_space(projected)[:, :1]
    assert relative_error(found, expected) < BFLOAT16_ERROR


@pytest.mark.parametrize("frames", [1, 3, 16, 31])
def test_temporal_attention(frames: int) -> None:
    """One latent frame, the usual sixteen, and more."""
    projected = random(2, frames, 7, 9, 3 * 512)
    expected = cosmos_encoder.attend_in_time(projected.double())
    assert relative_error(cosmos_encoder.attend_in_time(projected), expected) < BFLOAT16_ERROR


def test_conditioning_from_disk(autoencoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run gets the same numbers on the GPU without encoding."""
    pose = torch.eye(4).repeat(1, 2, 9, 1, 1)
    pose[0, 1, :, 0, 3] = torch.linspace(0, 1, 9)
    intrinsics = torch.tensor([60.0, 60.0, 48.0, 32.0]).expand(1, 2, 9, 4)
    cameras = CameraPath(pose, intrinsics, torch.linspace(0, 1, 9).expand(1, 2, 9), 64, 96).to("cuda")
    first = ConditioningBuilder(codec_of(autoencoder, "auto"), 8, cache_folder=tmp_path).build(cameras)
    again = ConditioningBuilder(codec_of(autoencoder, "auto"), 8, cache_folder=tmp_path)
    monkeypatch.setattr(again, "_encode_rays", lambda views: pytest.fail("encoded again"))
    found = again.build(cameras).plucker
    assert found.is_cuda
    assert torch.equal(found, first.plucker)
