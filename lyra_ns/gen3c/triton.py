"""Triton kernels between the large products of GEN3C's blocks: one pass over the tokens instead of many.

Inside everything is float32; results are rounded once, one kernel's to 8-bit floats with a scale for each
row. For inference: there are no gradients.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor


def round_rows(rows: Float[Tensor, "M I"]) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """(e4m3 numbers [M, I], float32 scales): the largest number of a row becomes 448."""
    rows = rows.contiguous()
    num_rows, width = rows.shape
    rounded = torch.empty_like(rows, dtype=torch.float8_e4m3fn)
    scale = rows.new_empty(num_rows, 1, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(rows):
        _round_rows_kernel[(num_rows,)](
            rows, rounded, scale, WIDTH=width, BLOCK=block, num_warps=8 if block >= 2048 else 4
        )
    return rounded, scale


@triton.jit
def _round_rows_kernel(rows, rounded, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < WIDTH
    values = tl.load(rows + row * WIDTH + channel, mask=mask, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(values), 0), 1e-30)
    # Rounded divisions: a last bit that is off sends ties, of which there are many, elsewhere. torch divides
    # by 448 so on a CPU alone; on CUDA it multiplies with a rounded reciprocal, and its scales may differ.
    factor = tl.div_rn(largest, 448.0)
    tl.store(scale + row, factor)
    values = tl.minimum(tl.maximum(tl.div_rn(values, factor), -448.0), 448.0)
    tl.store(rounded + row * WIDTH + channel, values.to(tl.float8e4nv), mask=mask)


def add_and_modulate(
    stream: Float[Tensor, "B N E"],
    addend: Float[Tensor, "b N E"],
    gate: Float[Tensor, "B E"] | None,
    shift: Float[Tensor, "B E"],
    scale: Float[Tensor, "B E"],
    eps: float,
    in_place: bool,
) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]:
    """(stream + gate addend, its layer norm times 1 + scale plus shift); b is B or 1.

    With `in_place` the stream is overwritten. Sums are rounded before they are normalised, as without the
    kernel.
    """
    stream = stream if in_place else stream.contiguous()
    added = stream if in_place else torch.empty_like(stream)
    normed = torch.empty_like(stream)
    _launch(stream, addend, gate, added, (normed, shift, scale), eps)
    return added, normed


def add_gated(
    stream: Float[Tensor, "B N E"], addend: Float[Tensor, "B N E"], gate: Float[Tensor, "B E"]
) -> Float[Tensor, "B N E"]:
    """The stream + gate addend, in its place."""
    _launch(stream, addend, gate, stream, None, 0.0)
    return stream


def normalise_and_rotate(
    projected: Float[Tensor, "B N C"],
    num_heads: int,
    weight: Float[Tensor, " D"],
    eps: float,
    rotation: tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]] | None,
) -> Float[Tensor, "B N H D"]:
    """Heads over their root mean square, times the weight, turned by their rotary angles; in place."""
    projected = projected.contiguous()
    num_samples, num_tokens, width = projected.shape
    head_dim = width // num_heads
    cosines, sines = (weight, weight) if rotation is None else (part.contiguous() for part in rotation)
    with torch.cuda.device_of(projected):
        _normalise_and_rotate_kernel[(num_tokens, num_samples)](
            projected,
            weight,
            cosines,
            sines,
            eps,
            num_heads,
            HALF=head_dim // 2,
            HEAD_BLOCK=triton.next_power_of_2(num_heads),
            HALF_BLOCK=triton.next_power_of_2(head_dim // 2),
            HAS_ROTATION=rotation is not None,
            num_warps=4,
        )
    return projected.view(num_samples, num_tokens, num_heads, head_dim)


def _launch(
    stream: Tensor,
    addend: Tensor,
    gate: Tensor | None,
    added: Tensor,
    norm: tuple[Tensor, Tensor, Tensor] | None,
    eps: float,
) -> None:
    num_samples, num_tokens, width = stream.shape
    if not stream.is_contiguous():
        raise ValueError(f"the stream of tokens must be contiguous, found strides {stream.stride()}")
    addend = addend.contiguous()
    # Unused pointers must point somewhere.
    normed, shift, scale = norm if norm is not None else (added, added, added)
    with torch.cuda.device_of(stream):
        _add_and_modulate_kernel[(num_tokens, num_samples)](
            stream,
            addend,
            gate.contiguous() if gate is not None else addend,
            shift.contiguous(),
            scale.contiguous(),
            added,
            normed,
            num_tokens,
            addend.stride(0) if len(addend) == num_samples > 1 else 0,
            eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            HAS_GATE=gate is not None,
            HAS_NORM=norm is not None,
            num_warps=8 if width >= 2048 else 4,
        )


@triton.jit
def _add_and_modulate_kernel(
    stream,
    addend,
    gate,
    shift,
    scale,
    added,
    normed,
    num_tokens,
    addend_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """One token."""
    token, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    mask = channel < WIDTH
    row = (sample * num_tokens + token) * WIDTH + channel
    given = tl.load(stream + row, mask=mask, other=0.0).to(tl.float32)
    place = sample * addend_stride + token * WIDTH + channel
    more = tl.load(addend + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_GATE:
        more *= tl.load(gate + sample * WIDTH + channel, mask=mask, other=0.0).to(tl.float32)
    rounded = (given + more).to(added.dtype.element_ty)
    tl.store(added + row, rounded, mask=mask)
    if HAS_NORM:
        values = rounded.to(tl.float32)
        centred = tl.where(mask, values - tl.sum(values, 0) / WIDTH, 0.0)
        values = centred * tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
        gain = tl.load(scale + sample * WIDTH + channel, mask=mask, other=0.0).to(tl.float32)
        offset = tl.load(shift + sample * WIDTH + channel, mask=mask, other=0.0).to(tl.float32)
        tl.store(normed + row, values * (1.0 + gain) + offset, mask=mask)


@triton.jit
def _normalise_and_rotate_kernel(
    heads,
    weight,
    cosines,
    sines,
    eps,
    num_heads,
    HALF: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HAS_ROTATION: tl.constexpr,
):
    """All heads of one token, in two halves that the rotation mixes."""
    token, sample = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head = tl.arange(0, HEAD_BLOCK)[:, None]
    channel = tl.arange(0, HALF_BLOCK)[None, :]
    inside = channel < HALF
    mask = (head < num_heads) & inside
    start = heads + (sample * tl.num_programs(0) + token) * num_heads * (2 * HALF)
    place = start + head * (2 * HALF) + channel
    first = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=mask, other=0.0).to(tl.float32)
    squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
    factor = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
    first *= factor * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    second *= factor * tl.load(weight + HALF + channel, mask=inside, other=0.0).to(tl.float32)
    if HAS_ROTATION:
        angle = token * (2 * HALF) + channel
        first_cosine = tl.load(cosines + angle, mask=inside, other=0.0)
        second_cosine = tl.load(cosines + angle + HALF, mask=inside, other=0.0)
        first_sine = tl.load(sines + angle, mask=inside, other=0.0)
        second_sine = tl.load(sines + angle + HALF, mask=inside, other=0.0)
        turned = second * second_cosine + first * second_sine
        first = first * first_cosine - second * first_sine
        second = turned
    tl.store(place, first, mask=mask)
    tl.store(place + HALF, second, mask=mask)
