"""The Cosmos encoder as a short program over the weights of diffusers' AutoencoderKLCosmos.

Same function, other execution over activations [clip, frame, row, column, channel]: channels last from the
first layer to the last, two-dimensional convolutions in space and matrix products over three frames in time,
no padded copies, norms over one frame at a time in float32, with SiLU in one pass, attention by matrix
products. First come the operations, then the blocks that read the weights, then the whole, which tests
compare with diffusers' own `encode`. On a GPU in a 16-bit type the kernels of `cosmos_triton` do the rest;
`plain` selects the torch forms everywhere, which are the truth for the kernels.

A clip without motion is encoded from its first frame alone: everything is causal and repeats the first frame
at the edge, so all its latent frames are equal. Directions of a camera that does not turn are such a clip.

Shape letters: N clips, F frames, H W rows and columns, C channels in, D channels out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.device import free_bytes

SCORE_BYTES = 2**30
"""Most memory for the scores of the spatial attention at one time; one frame of 704 x 1280 needs 0.8 GB."""
NEEDS_TORCH = (2, 8)
"""First version of torch whose batched products of 16-bit matrices can give float32."""


@dataclass(frozen=True)
class Norm:
    """Gain and bias of a norm with one group over each frame."""

    gain: Float[Tensor, " C"]
    """Gain per channel."""
    bias: Float[Tensor, " C"]
    """Bias per channel."""
    eps: float
    """Added to the variance."""


@dataclass(frozen=True)
class Linear:
    """A convolution of one pixel and one frame."""

    weight: Float[Tensor, "D C"]
    """Weights."""
    bias: Float[Tensor, " D"]
    """Bias."""

    def __call__(self, x: Float[Tensor, "*pixels C"]) -> Float[Tensor, "*pixels D"]:
        """W x + b for every pixel."""
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class TemporalConvolution:
    """A causal convolution over three frames; frames before the first are the first."""

    weight: Float[Tensor, "3 C D"]
    """One matrix for each tap; the last meets the current frame."""
    bias: Float[Tensor, " D"]
    """Bias, float32."""
    stride: int = 1
    """Frames from one result to the next."""


@dataclass(frozen=True)
class ConvolutionPair:
    """The codec's standard convolution: 3 x 3 in space, then three taps in time.

    The bias of the first is part of the second's: in time the edge is repeated, so a constant stays one.
    """

    spatial: Float[Tensor, "D C 3 3"]
    """Spatial weights, channels last."""
    temporal: TemporalConvolution
    """The convolution in time, with both biases."""


def is_accelerated(x: Tensor, plain: bool) -> bool:
    """Whether the Triton kernels take `x`: 16-bit on a CUDA device, and not `plain`."""
    return not plain and x.is_cuda and x.element_size() == 2


def normalise(
    x: Float[Tensor, "N F H W C"], norm: Norm, silu: bool, plain: bool = False
) -> Float[Tensor, "N F H W C"]:
    """Each frame with mean 0 and deviation 1, times gain plus bias, through SiLU if asked; float32 inside."""
    if is_accelerated(x, plain):
        from lyra_ns.codec.cosmos_triton import normalise_frames

        return normalise_frames(x.flatten(2, 3), norm.gain, norm.bias, norm.eps, silu).view_as(x)
    images = images_of_frames(x)
    images = functional.group_norm(images, 1, norm.gain, norm.bias, norm.eps)
    return frames_of_images(functional.silu(images) if silu else images, len(x))


def convolve(
    x: Float[Tensor, "N F H W C"],
    pair: ConvolutionPair,
    residual: Float[Tensor, "N F H W D"] | None = None,
    plain: bool = False,
) -> Float[Tensor, "N F H W D"]:
    """The convolution in space and in time, plus `residual`."""
    in_space = functional.conv2d(images_of_frames(x), pair.spatial, padding=1)
    return convolve_in_time(frames_of_images(in_space, len(x)), pair.temporal, residual, plain)


def convolve_in_time(
    x: Float[Tensor, "N F H W C"],
    convolution: TemporalConvolution,
    residual: Float[Tensor, "N F2 H W D"] | None = None,
    plain: bool = False,
) -> Float[Tensor, "N F2 H W D"]:
    """The causal convolution over frames, plus `residual`."""
    weight, bias = convolution.weight, convolution.bias
    if is_accelerated(x, plain) and not (weight.shape[1] % 16 or weight.shape[2] % 16):
        from lyra_ns.codec.cosmos_triton import temporal_convolution

        flat = None if residual is None else residual.flatten(2, 3)
        return temporal_convolution(x.flatten(2, 3), weight, bias, convolution.stride, flat).unflatten(
            2, x.shape[2:4]
        )
    padded = torch.cat([x[:, :1], x[:, :1], x], 1).flatten(2, 3).permute(0, 3, 1, 2)
    taps = weight.permute(2, 1, 0)[..., None]
    result = functional.conv2d(padded, taps, bias.to(x), stride=(convolution.stride, 1))
    result = result.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4])
    return (result if residual is None else result + residual).contiguous()


def halve_in_space(
    x: Float[Tensor, "N F H W C"], weight: Float[Tensor, "C C 3 3"], bias: Float[Tensor, " C"]
) -> Float[Tensor, "N F H2 W2 C"]:
    """A 3 x 3 convolution with stride 2, zeros below and to the right of the frame, plus 2 x 2 means."""
    images = images_of_frames(x)
    # Two zeros on every side put the wanted results one place on; zeros on one side would copy the frames.
    halved = functional.conv2d(images, weight, bias, stride=2, padding=2)[..., 1:, 1:]
    return frames_of_images(halved + functional.avg_pool2d(images, 2), len(x))


def pair_means(x: Float[Tensor, "N F H W C"]) -> Float[Tensor, "N F2 H W C"]:
    """The first frame, then the means of the pairs of frames behind it."""
    return torch.cat([x[:, :1], (x[:, 1::2] + x[:, 2::2]) / 2], 1)


def attend_in_space(
    projected: Float[Tensor, "N F H W C3"], plain: bool = False
) -> Float[Tensor, "N F H W C"]:
    """Attention of all pixels of a frame to each other, one head; query, key and value lie side by side."""
    rows = projected.flatten(0, 1).flatten(1, 2)
    if is_accelerated(projected, plain) and _has_float32_products():
        from lyra_ns.codec.cosmos_triton import MAX_SOFTMAX

        if rows.shape[1] <= MAX_SOFTMAX:
            return _attend_by_products(rows).view(*projected.shape[:4], -1)
    query, key, value = (part[:, None] for part in rows.chunk(3, -1))
    return functional.scaled_dot_product_attention(query, key, value).reshape(*projected.shape[:4], -1)


def _attend_by_products(rows: Float[Tensor, "B P C3"]) -> Float[Tensor, "B P C"]:
    """Attention by two matrix products with the scores in memory between.

    Heads of 512 channels are too wide for the fused kernels, which then run at a fraction of these products.
    """
    from lyra_ns.codec.cosmos_triton import softmax_in_place

    batch, num_rows, channels = rows.shape
    channels //= 3
    query, key, value = rows.split(channels, -1)
    out = rows.new_empty(batch, num_rows, channels)
    images = max(SCORE_BYTES // (4 * num_rows**2), 1)
    height = min(max(SCORE_BYTES // (4 * num_rows), 1), num_rows)
    for first in range(0, batch, images):
        part = slice(first, first + images)
        for top in range(0, num_rows, height):
            some = slice(top, top + height)
            scores = torch.bmm(query[part, some], key[part].transpose(1, 2), out_dtype=torch.float32)
            weights = softmax_in_place(scores, channels**-0.5, rows.dtype)
            out[part, some] = torch.bmm(weights, value[part])
            del scores, weights  # before the next scores are made: they are the encoder's largest tensors
    return out


def _has_float32_products() -> bool:
    return tuple(int(number) for number in torch.__version__.split(".")[:2]) >= NEEDS_TORCH


def attend_in_time(projected: Float[Tensor, "N F H W C3"], plain: bool = False) -> Float[Tensor, "N F H W C"]:
    """Causal attention of each pixel over its frames, one head; query, key and value lie side by side."""
    num_clips, num_frames, height, width, channels = projected.shape
    if is_accelerated(projected, plain):
        from lyra_ns.codec.cosmos_triton import can_attend_in_time, causal_attention

        if can_attend_in_time(num_frames, channels // 3):
            return causal_attention(projected.flatten(2, 3)).unflatten(2, (height, width))
    rows = projected.permute(0, 2, 3, 1, 4).reshape(-1, 1, num_frames, channels)
    query, key, value = rows.chunk(3, -1)
    attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attended.view(num_clips, height, width, num_frames, -1).permute(0, 3, 1, 2, 4).contiguous()


def images_of_frames(x: Float[Tensor, "N F H W C"]) -> Float[Tensor, "NF C H W"]:
    """All frames as images, in memory as they are (channels last)."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def frames_of_images(images: Float[Tensor, "NF C H W"], num_clips: int) -> Float[Tensor, "N F H W C"]:
    """Images as the frames of `num_clips` clips; copied only if channels were not last."""
    return images.permute(0, 2, 3, 1).contiguous().unflatten(0, (num_clips, -1))


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


LIVE_ACTIVATIONS = 6
"""Activations of the largest size that exist at one time, a convolution's workspace included."""
ATTENTION_BYTES = 3 * 2**30 // 2
"""Memory for the scores of the spatial attention and what lies around them."""
MAX_NUMBERS = 2**30
"""Numbers of one activation, at most: convolutions index with 32 bits."""
CPU_BYTES = 2**32
"""Memory that clips encoded together may take where there is no GPU to ask."""


class CosmosEncoder:
    """Encodes clips with the weights of one autoencoder, in the type and on the device that these have then.

    Made anew after the autoencoder is moved: it holds rearranged copies of weights. UnsupportedEncoder when
    the autoencoder has several heads or groups. With `plain` only torch operations run, for comparison.
    """

    def __init__(self, autoencoder: Any, plain: bool = False) -> None:
        encoder, config = autoencoder.encoder, autoencoder.config
        self._plain = plain
        self._temporal_ratio = config.temporal_compression_ratio
        self._patch_size = encoder.patch_embed.patch_size
        self._patch_matrix = _patch_matrix(encoder.patch_embed, config.in_channels).to(
            encoder.norm_out.norm.weight
        )
        self._stem, self._head = pair_of(encoder.conv_in), pair_of(encoder.conv_out)
        self._blocks, self._norm = blocks_of(encoder), norm_of(encoder.norm_out)
        quant = linear_of(autoencoder.quant_conv)
        self._quant = Linear(quant.weight.float(), quant.bias.float())
        self._widest = max(*config.encoder_block_out_channels[:2], len(self._patch_matrix))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return self._patch_matrix.dtype

    def clips_at_once(self, num_frames: int, height: int, width: int) -> int:
        """Clips of this size that one pass may hold, from the memory that is free now; at least 1."""
        size = self._patch_size
        pixels = ((num_frames - 1) // size + 1) * (height // size) * (width // size)
        numbers = pixels * self._widest
        clip_bytes = LIVE_ACTIVATIONS * numbers * self.dtype.itemsize
        return max(min((self._free_bytes() - ATTENTION_BYTES) // clip_bytes, MAX_NUMBERS // numbers), 1)

    @torch.no_grad()
    def __call__(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        """Raw latents, float32; clips of which all frames are equal cost one frame."""
        num_frames = video.shape[2]
        still = [is_still(clip) for clip in video]
        latents: dict[int, Tensor] = {}
        for kind, frames in ((False, num_frames), (True, 1)):
            chosen = [index for index, flag in enumerate(still) if flag == kind]
            size = self.clips_at_once(frames, *video.shape[3:])
            for group in (chosen[start : start + size] for start in range(0, len(chosen), size)):
                clips = torch.stack([video[index, :, :frames] for index in group])
                latents.update(zip(group, self._encode(clips), strict=True))
        latent_frames = (num_frames - 1) // self._temporal_ratio + 1
        return torch.stack([latents[index].expand(-1, latent_frames, -1, -1) for index in range(len(video))])

    def _encode(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        # Triton launches on the current device, whichever one its tensors are on.
        with torch.cuda.device_of(video):
            x = convolve(self._patches(video) @ self._patch_matrix, self._stem, plain=self._plain)
            for block in self._blocks:
                x = block(x, self._plain)
            x = convolve(normalise(x, self._norm, True, self._plain), self._head, plain=self._plain)
        return self._quant(x.float()).permute(0, 4, 1, 2, 3)

    def _patches(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N F h w D"]:
        """Patches as rows (colour, frame, row, column); the first frame is repeated to fill its patch."""
        num_clips, colours, num_frames, height, width = video.shape
        size = self._patch_size
        later = (num_frames - 1) // size
        grid = (num_clips, later + 1, height // size, width // size)
        patches = torch.empty(*grid, colours, size, size, size, dtype=self.dtype, device=video.device)
        by_colour = patches.permute(0, 4, 1, 5, 2, 6, 3, 7)  # clip, colour, frame, in, row, in, column, in
        cells = video.unflatten(4, (-1, size)).unflatten(3, (-1, size))
        by_colour[:, :, 0] = cells[:, :, :1]
        by_colour[:, :, 1:] = cells[:, :, 1:].unflatten(2, (later, size))
        return patches.flatten(4)

    def _free_bytes(self) -> int:
        free = free_bytes(self._patch_matrix.device)
        return CPU_BYTES if free is None else free


def is_still(clip: Float[Tensor, "3 L H W"]) -> bool:
    """Whether a clip has several frames that all equal the first; waits for a GPU."""
    return clip.shape[1] > 1 and torch.equal(clip[:, 1:], clip[:, :1].expand_as(clip[:, 1:]))


def _patch_matrix(patch_embed: Any, colours: int) -> Float[Tensor, "D D"]:
    """What the patching does to one patch, as a matrix: the images of all unit patches, float32.

    Haar's numbers are powers of two up to rounding, so that the matrix is exact in bfloat16.
    """
    size = patch_embed.patch_size
    module = type(patch_embed)(size, patch_embed.patch_method)
    num_numbers = colours * size**3
    video = torch.zeros(num_numbers, colours, 1 + size, size, size)
    video[:, :, 1:] = torch.eye(num_numbers).view(num_numbers, colours, size, size, size)
    return module(video)[:, :, 1, 0, 0]
