"""The head for kept Gaussians alone against pruning what the whole head gives."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lyra_ns.cameras import RayGrid
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.decoder.pruned_head import pruned_gaussians
from lyra_ns.gaussians import Gaussians, num_kept, prune

WIDTH = 16


def small_decoder(**changes: Any) -> LatentGaussianDecoder:
    """A decoder of one small block, whose head has weights large enough to tell cells apart."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": WIDTH, "depth": 1, "pattern": "T", "num_heads": 2, "head_dim": 8}
    decoder = LatentGaussianDecoder(DecoderConfig(**sizes | changes))
    torch.nn.init.normal_(decoder.deconv.weight, std=0.3)
    torch.nn.init.normal_(decoder.deconv.bias)
    return decoder


def inputs(
    decoder: LatentGaussianDecoder, scenes: int, views: int, latent_frames: int, height: int, width: int
) -> tuple[Tensor, torch.Size, Conditioning]:
    """Tokens, the shape of their latents and conditioning with a ray of its own for each cell."""
    generator = torch.Generator().manual_seed(1)
    config = decoder.config
    num_tokens = config.num_tokens(views, latent_frames, height, width)
    tokens = torch.randn(scenes, num_tokens, config.width, generator=generator).to(
        decoder.deconv.weight.dtype
    )
    latent_shape = torch.Size((scenes, views, config.latent_channels, latent_frames, height, width))
    cells_high, cells_wide = (size * config.spatial_stride // config.cell_size for size in (height, width))
    grid = (scenes, views, 8 * (latent_frames - 1) + 1, cells_high, cells_wide)
    rays = RayGrid(
        torch.randn(*grid[:3], 1, 1, 3, generator=generator).expand(*grid, 3),
        torch.nn.functional.normalize(torch.randn(*grid, 3, generator=generator), dim=-1),
        torch.rand(grid, generator=generator),
    )
    return tokens, latent_shape, Conditioning(torch.zeros(1, 1, 1, 1, 1, 1), rays)


def plain(
    decoder: LatentGaussianDecoder,
    tokens: Tensor,
    latent_shape: torch.Size,
    conditioning: Conditioning,
    prune_ratio: float,
) -> Gaussians:
    """The truth: all Gaussians, then pruning."""
    return prune(decoder.gaussians(decoder.head(tokens, latent_shape), conditioning), prune_ratio)


def assert_equal(found: Gaussians, expected: Gaussians) -> None:
    """The same Gaussians in the same order, up to the rounding of sums."""
    for field in fields(Gaussians):
        torch.testing.assert_close(
            getattr(found, field.name), getattr(expected, field.name), rtol=1e-5, atol=1e-6
        )


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    scenes=st.integers(1, 2),
    views=st.integers(1, 4),
    latent_frames=st.integers(1, 4),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    prune_ratio=st.sampled_from([0.0, 0.3, 0.8, 0.99]),
    at_once=st.none() | st.integers(1, 20),
    cell_size=st.sampled_from([4, 8, 16]),
)
def test_any_size_in_any_groups(
    scenes: int,
    views: int,
    latent_frames: int,
    rows: int,
    columns: int,
    prune_ratio: float,
    at_once: int | None,
    cell_size: int,
) -> None:
    """Kept set, order and all channels, whatever the size and wherever groups of latent frames are cut."""
    decoder = small_decoder(cell_size=cell_size).double()
    tokens, latent_shape, conditioning = inputs(decoder, scenes, views, latent_frames, 2 * rows, 2 * columns)
    expected = plain(decoder, tokens, latent_shape, conditioning, prune_ratio)
    found = pruned_gaussians(decoder, tokens, latent_shape, conditioning.rays, prune_ratio, at_once)
    assert found.num == num_kept(
        decoder.config.num_gaussians(views, latent_frames, 2 * rows, 2 * columns), prune_ratio
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("at_once", [None, 2, 5])
def test_own_precisions(parity: bool, at_once: int | None) -> None:
    """Float32 and the official bfloat16, where hundreds of opacities are equal."""
    decoder = small_decoder(parity=parity)
    tokens, latent_shape, conditioning = inputs(decoder, 1, 3, 4, 8, 12)
    expected = plain(decoder, tokens, latent_shape, conditioning, 0.8)
    found = pruned_gaussians(decoder, tokens, latent_shape, conditioning.rays, 0.8, at_once)
    assert found.means.dtype == torch.float32
    if parity:
        assert expected.opacities.unique().numel() < expected.num / 2
    assert_equal(found, expected)


def test_nothing_opaque_is_special() -> None:
    """With all opacities equal the first cells stay, as in the stable sort."""
    decoder = small_decoder()
    with torch.no_grad():
        decoder.deconv.weight[:, -1] = 0
    tokens, latent_shape, conditioning = inputs(decoder, 1, 2, 3, 4, 4)
    expected = plain(decoder, tokens, latent_shape, conditioning, 0.8)
    assert_equal(pruned_gaussians(decoder, tokens, latent_shape, conditioning.rays, 0.8, 2), expected)


def test_gradients_are_those_of_pruning() -> None:
    """Tokens, weights and bias get the gradients of the plain way, so that training may go this way too."""
    decoder = small_decoder().double()
    tokens, latent_shape, conditioning = inputs(decoder, 1, 2, 3, 4, 4)
    leaves = [tokens.requires_grad_(), *decoder.deconv.parameters(), *decoder.enc_norm.parameters()]

    def gradients(gaussians: Gaussians) -> tuple[Tensor, ...]:
        names = ("means", "quats", "scales", "opacities", "rgb")
        sums = [getattr(gaussians, name).square().sum() for name in names]
        return torch.autograd.grad(torch.stack(sums).sum() + gaussians.quats.sum(), leaves)

    expected = gradients(plain(decoder, tokens, latent_shape, conditioning, 0.7))
    for at_once in (None, 4):
        found = pruned_gaussians(decoder, tokens, latent_shape, conditioning.rays, 0.7, at_once)
        for gradient, wanted in zip(gradients(found), expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def test_gaussians_of_all_cells_never_exist() -> None:
    """With groups of latent frames no tensor is as large as the raw channels of all cells."""
    decoder = small_decoder()
    tokens, latent_shape, conditioning = inputs(decoder, 1, 3, 6, 8, 8)
    num = decoder.config.num_gaussians(3, 6, 8, 8)
    with torch.no_grad(), _LargestTensor() as largest:
        pruned_gaussians(decoder, tokens, latent_shape, conditioning.rays, 0.8, 1)
    assert largest.num_numbers < 4 * num
    with torch.no_grad(), _LargestTensor() as largest:
        plain(decoder, tokens, latent_shape, conditioning, 0.8)
    assert largest.num_numbers >= 12 * num


class _LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the size of the largest storage that any operation gives."""

    num_numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.num_numbers = max(self.num_numbers, size)
        return result


def test_rays_and_groups_that_do_not_fit_are_refused() -> None:
    decoder = small_decoder()
    tokens, latent_shape, conditioning = inputs(decoder, 1, 1, 2, 4, 4)
    wrong = Conditioning(conditioning.plucker, inputs(decoder, 1, 1, 1, 4, 4)[2].rays)
    with pytest.raises(ValueError, match=r"144 Gaussians need one ray each, found 16: build .* cell_size 8"):
        pruned_gaussians(decoder, tokens, latent_shape, wrong.rays, 0.5)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        pruned_gaussians(decoder, tokens, latent_shape, conditioning.rays, 0.5, 0)
    with pytest.raises(ValueError, match=r"prune ratio must be in \[0, 1\), found 1"):
        pruned_gaussians(decoder, tokens, latent_shape, conditioning.rays, 1.0)
