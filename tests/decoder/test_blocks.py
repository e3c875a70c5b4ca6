"""The decoder's layers that stand for a convolution: the same numbers as torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lyra_ns.decoder.blocks import GaussianDeconvolution, PatchEmbedding


@pytest.mark.parametrize("cell_size", [4, 8, 16])
@pytest.mark.parametrize("latent_frames", [1, 3])
def test_deconvolution_equals_torch(cell_size: int, latent_frames: int) -> None:
    """The matrix product gives the values and gradients of the transposed convolution it stands for."""
    torch.manual_seed(0)
    module = GaussianDeconvolution(5, 8, 16 // cell_size).double()
    tokens = torch.randn(2, latent_frames, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    leaves = [tokens, module.weight, module.bias]
    found = module(tokens)
    expected = nn.ConvTranspose3d.forward(module, tokens.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(found, expected)
    weighting = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weighting).sum(), leaves),
        torch.autograd.grad((expected * weighting).sum(), leaves),
    )


def test_patch_embedding_equals_convolution() -> None:
    """The matrix product over patches is the convolution whose weights it uses."""
    torch.manual_seed(0)
    module = PatchEmbedding(3, 8, 2).double()
    latents = torch.randn(2, 3, 4, 6, 10, dtype=torch.float64)
    expected = module.norm(module.proj(latents).flatten(2).transpose(1, 2))
    torch.testing.assert_close(module(latents), expected)
