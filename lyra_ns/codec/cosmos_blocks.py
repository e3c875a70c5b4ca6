"""Blocks of the Cosmos encoder, made from the modules of diffusers' AutoencoderKLCosmos.

Each block is a function of activations [N, F, H, W, C] and of `plain` (only torch operations).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lyra_ns.codec.cosmos_layers import (
    ConvolutionPair,
    Linear,
    Norm,
    TemporalConvolution,
    attend_in_space,
    attend_in_time,
    convolve,
    convolve_in_time,
    halve_in_space,
    normalise,
    pair_means,
)

Block = Callable[[Tensor, bool], Tensor]
"""(activations [N, F, H, W, C], plain) -> activations."""


class UnsupportedEncoder(ValueError):
    """The autoencoder has a form that these blocks do not know; its own `encode` still works."""


@dataclass(frozen=True)
class Residual:
    """Two normalised convolutions beside a shortcut."""

    norms: tuple[Norm, Norm]
    """Norms before the convolutions, each with SiLU."""
    pairs: tuple[ConvolutionPair, ConvolutionPair]
    """The convolutions."""
    shortcut: Linear | None
    """What the input passes through beside them; None where it passes as it is."""

    def __call__(self, x: Tensor, plain: bool) -> Tensor:
        """The block's result."""
        inner = convolve(normalise(x, self.norms[0], True, plain), self.pairs[0], plain=plain)
        inner = normalise(inner, self.norms[1], True, plain)
        return convolve(inner, self.pairs[1], x if self.shortcut is None else self.shortcut(x), plain)


@dataclass(frozen=True)
class Attention:
    """Attention over the pixels of a frame, or over the frames of a pixel, added to its input."""

    norm: Norm
    """Norm before it, without SiLU."""
    projection: Linear
    """Query, key and value in one matrix."""
    mix: Linear
    """The matrix behind it."""
    over_time: bool
    """Whether it runs over the frames of a pixel, causally."""

    def __call__(self, x: Tensor, plain: bool) -> Tensor:
        """The block's result."""
        projected = self.projection(normalise(x, self.norm, False, plain))
        attend = attend_in_time if self.over_time else attend_in_space
        return self.mix(attend(projected, plain)) + x


@dataclass(frozen=True)
class Halving:
    """Half the size in space, in time or in both: convolutions with stride 2 plus means, then a matrix."""

    spatial: tuple[Tensor, Tensor] | None
    """Weight [C, C, 3, 3] and bias [C] of the halving in space."""
    temporal: TemporalConvolution | None
    """The halving in time."""
    mix: Linear
    """The matrix behind both."""

    def __call__(self, x: Tensor, plain: bool) -> Tensor:
        """The block's result."""
        if self.spatial is not None:
            x = halve_in_space(x, *self.spatial)
        if self.temporal is not None:
            x = convolve_in_time(x, self.temporal, pair_means(x), plain)
        return self.mix(x)


def blocks_of(encoder: Any) -> list[Block]:
    """All blocks between the encoder's first and last convolution; UnsupportedEncoder if one is unknown."""
    blocks: list[Block] = []
    for stage in encoder.down_blocks:
        for residual, *attentions in zip(stage.resnets, stage.attentions, stage.temp_attentions, strict=True):
            blocks += [_residual(residual), *_attentions(*attentions)]
        blocks += [_halving(module) for module in stage.downsamplers or [] if _halves(module)]
    middle = encoder.mid_block
    blocks.append(_residual(middle.resnets[0]))
    for residual, *attentions in zip(
        middle.resnets[1:], middle.attentions, middle.temp_attentions, strict=True
    ):
        blocks += [*_attentions(*attentions), _residual(residual)]
    return blocks


def norm_of(module: Any) -> Norm:
    """The numbers of a norm with one group over each frame; UnsupportedEncoder for several groups."""
    if module.num_groups != 1:
        raise UnsupportedEncoder(f"norms must have one group per frame, found {module.num_groups}")
    return Norm(module.norm.weight, module.norm.bias, module.norm.eps)


def linear_of(module: Any) -> Linear:
    """The matrix of a 1 x 1 x 1 convolution."""
    return Linear(module.weight.flatten(1), module.bias)


def pair_of(module: Any) -> ConvolutionPair:
    """A convolution in space and the one in time behind it."""
    return ConvolutionPair(_spatial(module.conv_s), _temporal(module.conv_t, before=module.conv_s.bias))


def _spatial(module: Any) -> Tensor:
    """The weights of a 1 x 3 x 3 convolution, channels last."""
    return module.weight[:, :, 0].contiguous(memory_format=torch.channels_last)


def _temporal(module: Any, before: Tensor | None = None) -> TemporalConvolution:
    """A 3 x 1 x 1 convolution; the bias `before` it becomes part of its own."""
    weight = module.weight[..., 0, 0].permute(2, 1, 0).contiguous()
    bias = module.bias.float()
    if before is not None:
        bias = bias + before.float() @ weight.float().sum(0)
    return TemporalConvolution(weight, bias, module.stride[0])


def _residual(module: Any) -> Residual:
    shortcut = module.conv_shortcut
    return Residual(
        (norm_of(module.norm1), norm_of(module.norm2)),
        (pair_of(module.conv1), pair_of(module.conv2)),
        None if isinstance(shortcut, torch.nn.Identity) else linear_of(shortcut),
    )


def _attentions(spatial: Any | None, temporal: Any | None) -> list[Attention]:
    modules = ((spatial, False), (temporal, True))
    return [_attention(module, over_time) for module, over_time in modules if module is not None]


def _attention(module: Any, over_time: bool) -> Attention:
    if module.num_attention_heads != 1:
        raise UnsupportedEncoder(f"attention must have one head, found {module.num_attention_heads}")
    parts = [linear_of(part) for part in (module.to_q, module.to_k, module.to_v)]
    projection = Linear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
    return Attention(norm_of(module.norm), projection, linear_of(module.to_out[0]), over_time)


def _halves(module: Any) -> bool:
    return module.spatial_downsample or module.temporal_downsample


def _halving(module: Any) -> Halving:
    return Halving(
        (_spatial(module.conv1), module.conv1.bias) if module.spatial_downsample else None,
        _temporal(module.conv2) if module.temporal_downsample else None,
        linear_of(module.conv3),
    )
