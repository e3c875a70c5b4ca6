"""The decoder's sizes, keys, options and errors; its values are in test_golden.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lyra_ns.cameras import RayGrid
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import DecoderConfig, block_kinds
from lyra_ns.decoder.cuda_graphs import GraphedDecoder
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import num_kept

TINY: dict[str, Any] = {
    "width": 16,
    "depth": 2,
    "pattern": "1M1T",
    "num_heads": 2,
    "state_size": 8,
    "head_dim": 8,
    "latent_channels": 4,
}


def tiny(**changes: Any) -> LatentGaussianDecoder:
    """A small decoder with random weights everywhere."""
    torch.manual_seed(0)
    decoder = LatentGaussianDecoder(DecoderConfig(**{**TINY, **changes}))
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return decoder


def inputs(
    decoder: LatentGaussianDecoder, views: int = 2, latent_frames: int = 3, size: tuple[int, int] = (4, 6)
) -> tuple[Tensor, Conditioning]:
    """Random latents and conditioning that fit the decoder."""
    config, (height, width) = decoder.config, size
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    cells = config.spatial_stride // config.cell_size * torch.tensor(size)
    if config.cell_size > config.spatial_stride:
        cells = torch.tensor(size) // (config.cell_size // config.spatial_stride)
    grid = (2, views, 8 * (latent_frames - 1) + 1, *cells.tolist())
    rays = RayGrid(draw(*grid, 3), nn.functional.normalize(draw(*grid, 3), dim=-1), torch.ones(grid))
    channels = config.latent_channels
    conditioning = Conditioning(
        draw(2, views, 2 * channels, latent_frames, height, width),
        rays,
        time_source=draw(2, channels, latent_frames, height, width),
        time_target=draw(2, channels, 1, height, width),
    )
    return draw(2, views, channels, latent_frames, height, width), conditioning


def test_parameters_and_keys() -> None:
    """254 tensors, 32 753 996 numbers, no buffer, the shapes of docs/reference/decoder.md, "Parameters"."""
    decoder = LatentGaussianDecoder(DecoderConfig())
    shapes = {key: tuple(value.shape) for key, value in decoder.state_dict().items()}
    assert shapes == official_shapes()
    assert len(shapes) == 254
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 32_753_996
    assert not list(decoder.buffers())


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {"deconv.weight": (512, 12, 9, 2, 2), "deconv.bias": (12,)}

    def pair(name: str, weight: tuple[int, ...], bias: int) -> None:
        shapes.update({f"{name}.weight": weight, f"{name}.bias": (bias,)})

    for name, channels in (("", 16), ("_plucker", 32)):
        pair(f"patch{name}_embed.proj", (512, channels, 1, 2, 2), 512)
        pair(f"patch{name}_embed.norm", (512,), 512)
    for name in ("patch_time_embed", "patch_time_embed_tgt"):
        pair(f"{name}.proj", (512, 16, 1, 2, 2), 512)
        pair(f"{name}.norm", (512,), 512)
    for block in (7, 15):
        for norm in ("norm1", "norm2"):
            pair(f"enc_blocks.{block}.{norm}", (512,), 512)
        for layer, rows, columns in (
            ("attn.qkv", 1536, 512),
            ("attn.proj", 512, 512),
            ("mlp.fc1", 2048, 512),
            ("mlp.fc2", 512, 2048),
        ):
            pair(f"enc_blocks.{block}.{layer}", (rows, columns), rows)
    for block in (*range(7), *range(8, 15)):
        prefix = f"enc_blocks.{block}"
        shapes[f"{prefix}.norm.weight"] = (512,)
        shapes[f"{prefix}.mamba.in_proj.weight"] = (2576, 512)
        shapes[f"{prefix}.mamba.out_proj.weight"] = (512, 1024)
        for scan in (0, 1):
            for vector in ("dt_bias", "A_log", "D"):
                shapes[f"{prefix}.mamba.mamba_scans.{scan}.{vector}"] = (16,)
            pair(f"{prefix}.mamba.mamba_scans.{scan}.conv1d", (1536, 1, 4), 1536)
            shapes[f"{prefix}.mamba.mamba_scans.{scan}.norm.weight"] = (1024,)
    pair("enc_norm", (512,), 512)
    return shapes


@pytest.mark.parametrize(
    ("views", "tokens", "gaussians", "kept"),
    [
        (1, 56_320, 1_703_680, 340_735),
        (2, 112_640, 3_407_360, 681_471),
        (3, 168_960, 5_111_040, 1_022_207),
        (4, 225_280, 6_814_720, 1_362_943),
        (5, 281_600, 8_518_400, 1_703_679),
        (6, 337_920, 10_222_080, 2_044_415),
    ],
)
def test_counts_at_full_size(views: int, tokens: int, gaussians: int, kept: int) -> None:
    """The table of docs/reference/decoder.md, "Deconvolution"."""
    config = DecoderConfig()
    assert config.num_tokens(views, 16, 88, 160) == tokens
    assert config.num_gaussians(views, 16, 88, 160) == gaussians
    assert num_kept(gaussians, 0.8) == kept


@pytest.mark.parametrize(
    ("pattern", "depth", "kinds"),
    [
        ("7M1T", 16, "MMMMMMMTMMMMMMMT"),
        ("T", 3, "TTT"),
        ("M", 2, "MM"),
        ("3M1T", 6, "MMMTMM"),
        ("1T2M", 5, "TMMTM"),
    ],
)
def test_block_pattern(pattern: str, depth: int, kinds: str) -> None:
    """Patterns repeat to the depth and the network follows them."""
    assert block_kinds(pattern, depth) == kinds
    blocks = tiny(pattern=pattern, depth=depth).enc_blocks
    assert (
        "".join({"MambaBlock": "M", "TransformerBlock": "T"}[type(block).__name__] for block in blocks)
        == kinds
    )


@pytest.mark.parametrize("pattern", ["", "7X", "7m1t", "M7", "0M"])
def test_bad_block_pattern(pattern: str) -> None:
    """A pattern that says nothing is refused."""
    with pytest.raises(ValueError, match="block pattern"):
        DecoderConfig(pattern=pattern)


@pytest.mark.parametrize("cell_size", [4, 8, 16])
def test_one_gaussian_per_cell(cell_size: int) -> None:
    """Counts follow the cell size, and everything lies in its range."""
    decoder = tiny(cell_size=cell_size)
    latents, conditioning = inputs(decoder)
    gaussians = decoder(latents, conditioning)
    assert gaussians.means.shape == (2, decoder.config.num_gaussians(2, 3, 4, 6), 3)
    assert gaussians.num == 2 * 17 * (32 // cell_size) * (48 // cell_size)
    assert all(tensor.isfinite().all() for tensor in vars(gaussians).values())
    torch.testing.assert_close(gaussians.quats.norm(dim=-1), torch.ones(gaussians.opacities.shape))


def test_gaussians_lie_on_the_rays_of_their_cells() -> None:
    """Order view, frame, row, column: each centre is on its own ray."""
    decoder = tiny()
    latents, conditioning = inputs(decoder)
    means = decoder(latents, conditioning).means.view(2, 2, 17, 4, 6, 3)
    offset = means - conditioning.rays.origins
    along = (offset * conditioning.rays.directions).sum(-1, keepdim=True)
    torch.testing.assert_close(offset, along * conditioning.rays.directions, rtol=1e-4, atol=1e-3)
    assert along.min() > 0


def test_scenes_of_a_batch_are_independent() -> None:
    """Decoding two scenes at once or one by one is the same."""
    decoder = tiny()
    latents, conditioning = inputs(decoder)
    both = decoder.raw(latents, conditioning.plucker)
    alone = decoder.raw(latents[1:], conditioning.plucker[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_views_inform_each_other() -> None:
    """A change in one view reaches the Gaussians of the other, both ways, for both kinds of block."""
    for pattern in ("M", "T"):
        decoder = tiny(pattern=pattern)
        latents, conditioning = inputs(decoder)
        before = decoder.raw(latents, conditioning.plucker).view(2, 2, -1)
        for view in (0, 1):
            changed = latents.clone()
            changed[:, view] += 1
            after = decoder.raw(changed, conditioning.plucker).view(2, 2, -1)
            assert (after - before)[:, 1 - view].abs().max() > 1e-4


def test_time_matters_only_when_used() -> None:
    """A dynamic decoder follows source and target times, a static one ignores them."""
    latents, conditioning = inputs(tiny())
    time = conditioning.time
    assert time is not None
    static, dynamic = tiny(), tiny(use_time=True)
    assert torch.equal(
        static.raw(latents, conditioning.plucker), static.raw(latents, conditioning.plucker, time)
    )
    before = dynamic.raw(latents, conditioning.plucker, time)
    for moment in (0, -1):
        changed = time.clone()
        changed[:, :, moment] += 1
        assert (dynamic.raw(latents, conditioning.plucker, changed) - before).abs().max() > 1e-4


def test_scan_backends_agree_in_the_network() -> None:
    """Recurrence and chunks give one decoder."""
    latents, conditioning = inputs(tiny())
    chunked = tiny(ssd_backend="chunked").raw(latents, conditioning.plucker)
    reference = tiny(ssd_backend="reference").raw(latents, conditioning.plucker)
    torch.testing.assert_close(chunked, reference, rtol=1e-4, atol=1e-5)


def test_all_used_parameters_get_finite_gradients() -> None:
    """Nothing is cut off from the loss, from the first step of the official start on."""
    torch.manual_seed(0)
    decoder = LatentGaussianDecoder(DecoderConfig(**TINY, use_time=True))
    latents, conditioning = inputs(decoder)
    gaussians = decoder(latents, conditioning)
    sum((tensor.square().mean() for tensor in vars(gaussians).values()), torch.zeros(())).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_official_start() -> None:
    """Ray and time embeddings start silent; damped only shrinks the gain behind them."""
    decoder = LatentGaussianDecoder(DecoderConfig(**TINY))
    latents, conditioning = inputs(decoder)
    assert decoder.patch_plucker_embed(conditioning.plucker.flatten(0, 1)).abs().max() == 0
    assert decoder.enc_blocks[1].attn.qkv.weight.abs().max() < 0.1
    assert decoder.enc_blocks[1].attn.qkv.bias.abs().max() == 0
    scan = decoder.enc_blocks[0].mamba.mamba_scans[0]
    assert scan.A_log.exp().min() >= 1
    assert scan.A_log.exp().max() <= 16
    step = nn.functional.softplus(scan.dt_bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 0.101

    def embedding_gradient(init: str) -> float:
        torch.manual_seed(0)
        started = LatentGaussianDecoder(DecoderConfig(**TINY, init=init))
        started.raw(latents, conditioning.plucker).square().mean().backward()
        gradient = started.patch_plucker_embed.proj.weight.grad
        assert gradient is not None
        return gradient.norm().item()

    assert embedding_gradient("damped") < 0.05 * embedding_gradient("official")


def test_input_statistics_whiten() -> None:
    """Measured statistics make the decoder blind to scale and offset of its inputs' channels."""
    plain = tiny(input_statistics=True)
    latents, conditioning = inputs(plain)
    plain.set_input_statistics(latents, conditioning.plucker)
    shifted = tiny(input_statistics=True)
    shifted.set_input_statistics(latents * 3 + 5, conditioning.plucker)
    torch.testing.assert_close(
        plain.raw(latents, conditioning.plucker),
        shifted.raw(latents * 3 + 5, conditioning.plucker),
        rtol=1e-3,
        atol=1e-4,
    )
    assert {"latent_mean", "latent_std", "plucker_mean", "plucker_std"} <= set(shifted.state_dict())
    assert not list(tiny().buffers())
    with pytest.raises(ValueError, match="keeps no input statistics"):
        tiny().set_input_statistics(latents, conditioning.plucker)


def test_parity_is_all_bfloat16() -> None:
    """The official regime rounds weights, positions and head; the default keeps the head in float32."""
    parity, plain = tiny(parity=True), tiny()
    plain.load_state_dict(parity.state_dict())
    latents, conditioning = inputs(plain)
    coarse, fine = parity(latents, conditioning), plain(latents, conditioning)
    assert coarse.means.dtype == torch.float32
    assert torch.equal(coarse.means, coarse.means.bfloat16().float())
    assert not torch.equal(fine.means, fine.means.bfloat16().float())
    assert (coarse.rgb - fine.rgb).abs().mean() < 0.05


def test_bfloat16_trunk_keeps_float32_head() -> None:
    """Half-precision blocks change little, and what comes out is float32."""
    latents, conditioning = inputs(tiny())
    full = tiny().raw(latents, conditioning.plucker)
    half = tiny(trunk_dtype="bfloat16").raw(latents, conditioning.plucker)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert (half - full).norm() < 0.05 * full.norm()


def test_errors_name_what_was_expected() -> None:
    """Inputs that do not fit together are refused in one sentence."""
    decoder, dynamic = tiny(), tiny(use_time=True)
    latents, conditioning = inputs(decoder)
    plucker = conditioning.plucker
    with pytest.raises(ValueError, match="expects latents of 4 channels, found 3"):
        decoder.raw(latents[:, :, :3], plucker)
    with pytest.raises(ValueError, match="multiples of 2 cells"):
        decoder.raw(latents[..., :5], plucker[..., :5])
    with pytest.raises(ValueError, match=r"ray latents must have shape \(2, 2, 8, 3, 4, 6\)"):
        decoder.raw(latents, plucker[:, :, :5])
    with pytest.raises(ValueError, match="needs time latents of shape"):
        dynamic.raw(latents, plucker)
    with pytest.raises(ValueError, match="408 Gaussians need one ray each, found 816"):
        decoder(latents[:, :1], Conditioning(plucker[:, :1], conditioning.rays))


def test_config_refuses_sizes_that_do_not_fit() -> None:
    """Contradictory sizes are found before any weight is made."""
    for changes in ({"num_heads": 3}, {"head_dim": 7}, {"cell_size": 5}, {"temporal_stride": 3}):
        with pytest.raises(ValueError, match=r"must"):
            DecoderConfig(**{**TINY, **changes})


def test_graphs_are_a_no_op_on_the_cpu() -> None:
    """Where there is nothing to capture, the wrapper is the decoder, with its gradients."""
    decoder = tiny()
    graphed = GraphedDecoder(decoder)
    latents, conditioning = inputs(decoder)
    gaussians = graphed(latents, conditioning)
    assert torch.equal(gaussians.means, decoder(latents, conditioning).means)
    gaussians.means.sum().backward()
    assert decoder.deconv.weight.grad is not None
    assert graphed.num_graphs == 0
