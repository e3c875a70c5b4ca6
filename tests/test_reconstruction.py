"""The feed-forward pass from end to end on a tiny decoder: any size, whole or in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lyra_ns import reconstruction
from lyra_ns.cameras import CameraPath, relative_to
from lyra_ns.codec import load_codec
from lyra_ns.decoder.conditioning import ConditioningBuilder
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import Gaussians, num_kept, prune
from lyra_ns.memory import DoesNotFit, SceneSize
from lyra_ns.progress import StageMeter
from lyra_ns.reconstruction import Reconstructor

CODEC = load_codec("linear")


def tiny_decoder(**changes: Any) -> LatentGaussianDecoder:
    """A decoder of two small blocks that looks at its rays, too."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8}
    decoder = LatentGaussianDecoder(DecoderConfig(**sizes | {"head_dim": 16} | changes))
    torch.nn.init.normal_(decoder.patch_plucker_embed.proj.weight, std=0.2)
    torch.nn.init.normal_(decoder.deconv.weight, std=0.2)
    return decoder


def scene(num_views: int, num_frames: int, height: int, width: int) -> tuple[Tensor, CameraPath]:
    """Latents of noise and cameras that start away from the world's origin."""
    generator = torch.Generator().manual_seed(7)
    poses = torch.eye(4).repeat(num_views, num_frames, 1, 1)
    poses[..., :3, 3] = torch.randn(num_views, num_frames, 3, generator=generator)
    intrinsics = torch.tensor([width, width, width / 2, height / 2]).repeat(num_views, num_frames, 1)
    times = torch.linspace(0, 1, num_frames).repeat(num_views, 1)
    shape = CODEC.spec.latent_shape(num_frames, height, width)
    z = torch.randn(num_views, *shape, generator=generator)
    return z, CameraPath(poses, intrinsics, times, height, width)


@torch.no_grad()
def plain(
    decoder: LatentGaussianDecoder,
    z: Tensor,
    cameras: CameraPath,
    prune_ratio: float,
    time: float | None = None,
) -> Gaussians:
    """The truth: the decoder's own forward pass, then pruning."""
    builder = ConditioningBuilder(CODEC, decoder.config.cell_size)
    target_time = None if time is None else torch.tensor([time])
    given_all = builder.build(relative_to(cameras, cameras.camera_to_world[0, 0])[None], target_time)
    return prune(decoder(CODEC.from_diffusion(z[None]), given_all), prune_ratio).scene(0)


def assert_close(found: Gaussians, expected: Gaussians) -> None:
    """The same Gaussians in the same order."""
    for name, values in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    num_views=st.integers(1, 7),
    num_latent_frames=st.integers(1, 4),
    height=st.sampled_from([16, 32, 48]),
    width=st.sampled_from([16, 48, 80]),
    prune_ratio=st.sampled_from([0.0, 0.5, 0.8]),
    memory=st.sampled_from(["auto", "whole", "chunked"]),
)
def test_any_number_of_views_any_length_any_size(
    num_views: int, num_latent_frames: int, height: int, width: int, prune_ratio: float, memory: Any
) -> None:
    """Views from one up, 8k + 1 frames, multiples of 16 pixels, in every way of holding them."""
    decoder = tiny_decoder()
    z, cameras = scene(num_views, 8 * (num_latent_frames - 1) + 1, height, width)
    found = Reconstructor(decoder, CODEC, prune_ratio, memory=memory)(z, cameras)
    num_all = num_views * cameras.shape[1] * (height // 8) * (width // 8)
    assert found.num == num_kept(num_all, prune_ratio)
    assert_close(found, plain(decoder, z, cameras, prune_ratio))


@pytest.mark.parametrize("memory", ["whole", "chunked"])
def test_moments_of_a_dynamic_decoder(memory: Any) -> None:
    decoder = tiny_decoder(use_time=True)
    for embedding in (decoder.patch_time_embed, decoder.patch_time_embed_tgt):
        torch.nn.init.normal_(embedding.proj.weight, std=0.2)
    z, cameras = scene(2, 9, 32, 32)
    found = [Reconstructor(decoder, CODEC, 0.5, memory=memory)(z, cameras, time) for time in (0.0, 1.0)]
    assert_close(found[0], plain(decoder, z, cameras, 0.5, 0.0))
    assert not torch.equal(found[0].means, found[1].means)


def test_auto_goes_in_chunks_where_the_whole_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two estimates auto takes chunks, below both it refuses, and the builder is left alone."""
    reconstruct = Reconstructor(tiny_decoder(), CODEC, 0.8)
    z, cameras = scene(6, 17, 48, 80)
    size = SceneSize(6, 3, 6, 10)
    whole = reconstruct.plan(size, None)[1].peak
    reconstruct.memory = "chunked"
    chunked = reconstruct.plan(size, None)[1].peak
    reconstruct.memory = "auto"
    assert chunked < whole
    expected = reconstruct(z, cameras)
    for free, is_chunked in ((whole, False), (whole - 1, True), (chunked, True)):
        monkeypatch.setattr(reconstruction, "available_bytes", lambda device, free=free: free)
        told = []
        before = reconstruct.conditioning.views_at_once
        found = reconstruct(z, cameras, announce=lambda plan, estimate, told=told: told.append(plan))
        assert told[0].is_chunked == is_chunked
        assert reconstruct.conditioning.views_at_once == before
        assert_close(found, expected)
    monkeypatch.setattr(reconstruction, "available_bytes", lambda device: chunked - 1)
    with pytest.raises(DoesNotFit, match="even in the chunked way, and"):
        reconstruct(z, cameras)


def test_stages_are_measured_and_the_mode_is_restored() -> None:
    decoder = tiny_decoder().train()
    reconstruct, meter = Reconstructor(decoder, CODEC, 0.8), StageMeter(torch.device("cpu"))
    reconstruct(*scene(1, 9, 16, 16), meter=meter)
    assert [stage.name for stage in meter.stages] == ["conditioning", "trunk", "head"]
    assert all(stage.seconds > 0 and stage.peak_bytes is None for stage in meter.stages)
    assert decoder.training


def test_each_trajectory_needs_its_path() -> None:
    z, cameras = scene(2, 9, 16, 16)
    with pytest.raises(ValueError, match="2 trajectories came with cameras of 1"):
        Reconstructor(tiny_decoder(), CODEC)(z, cameras[:1])
