"""The state scan of Mamba-2 with gradient: our own kernels both ways, as an operator of torch.

The scan is that of docs/reference/decoder.md, "Blocks". Going back, the states before every chunk are walked
once more, the gradients of the states behind every chunk by the same kernel from the end; nothing of the
forward pass is kept but its inputs. For each chunk two states in the type of the tokens go through memory.
The kernels and their notation are in ssd_triton_backward_kernels.py.

The operator (`torch.ops.lyra_ns.scan_states`) lets a checkpoint keep its result by name while it computes the
rest once more (decoder/blocks.py). Its gradients are another, which has none itself, so that a second
derivative is an error and torch.compile can trace both without running them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from lyra_ns.ops.ssd_triton import (
    accumulate,
    check_inputs,
    chunks_per_segment_of,
    join,
    ssd_forward,
    tiles_of,
    walk,
)
from lyra_ns.ops.ssd_triton_backward_kernels import (
    HOPPER_BACKWARD_TILES,
    BackwardTiles,
    meet,
    product_gradients,
    step_gradients,
    sum_over_heads,
    written_gradients,
)


class ScanGradients(NamedTuple):
    """Gradients of the inputs of `ssd_forward`, in their order."""

    x: Float[Tensor, "B N H P"]
    step: Float[Tensor, "B N H"]
    write: Float[Tensor, "B N G S"]
    read: Float[Tensor, "B N G S"]
    decay: Float[Tensor, " H"]
    skip: Float[Tensor, " H"]
    step_bias: Float[Tensor, " H"]


class _States(NamedTuple):
    """States at one border of every chunk, of a walk in one direction."""

    at_chunks: Tensor
    """From zero at the start of the segment, [chunk, H, P, S]."""
    since_start: Tensor
    """Logarithm of how far the start of the segment has faded by then, [chunk, H]."""
    at_segments: Tensor
    """At the start of each segment, [segment, H, P, S]."""


def ssd_backward(
    grad_y: Float[Tensor, "B N H P"],
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
    decay: Float[Tensor, " H"],
    skip: Float[Tensor, " H"],
    step_bias: Float[Tensor, " H"],
    tiles: BackwardTiles = HOPPER_BACKWARD_TILES,
) -> ScanGradients:
    """Gradients of the inputs of `ssd_forward` where that of its result is `grad_y`; the same for every run.

    Those of tokens are contiguous and in their dtypes, those of a head's numbers float32. Takes what
    `ssd_forward` takes, and `grad_y` as `x`.
    """
    if grad_y.shape != x.shape:
        raise ValueError(
            f"grad_y must be of the shape of x, {tuple(x.shape)}, found {tuple(grad_y.shape)}: "
            "give the gradient of the result for these inputs"
        )
    check_inputs(x, step, write, read)
    check_inputs(grad_y, step, write, read)
    of_tokens = tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, device=x.device) for tensor in (x, step, write, read)
    )
    of_heads = tuple(x.new_zeros(x.shape[2], dtype=torch.float32) for _ in range(3))
    with torch.cuda.device_of(x):
        for item in range(x.shape[0] if x.shape[1] else 0):
            sequence = _Sequence(x[item], step[item], write[item], read[item], decay, skip, step_bias, tiles)
            parts = sequence.gradients(grad_y[item], *(tensor[item] for tensor in of_tokens))
            for total, part in zip(of_heads, parts, strict=True):
                total += part
    return ScanGradients(*of_tokens, *of_heads)


class _Sequence:
    """The inputs of one sequence with its lengths and fading."""

    def __init__(
        self,
        x: Tensor,
        step: Tensor,
        write: Tensor,
        read: Tensor,
        decay: Tensor,
        skip: Tensor,
        step_bias: Tensor,
        tiles: BackwardTiles,
    ) -> None:
        self.x, self.step, self.write, self.read = x, step, write, read
        self.decay, self.skip, self.step_bias = decay, skip, step_bias
        self.tiles = tiles
        self.elapsed, self.length, self.left = accumulate(step, step_bias, decay, tiles.walk)
        self.num_heads, self.channels = x.shape[1:]
        self.num_groups, self.state = write.shape[1:]
        self.num_chunks = self.elapsed.shape[1] // tiles.walk.chunk
        self.per_segment = chunks_per_segment_of(self.num_chunks, tiles.walk)

    def gradients(
        self, grad_y: Tensor, grad_x: Tensor, grad_step: Tensor, grad_write: Tensor, grad_read: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Those of decay, skip and step bias; fills the others."""
        risen = torch.exp2(self.elapsed)
        before = self._states(self.x, self.write, self.left, False)
        behind = self._states(grad_y, self.read, risen, True)
        of_length, grad_skip = self._written(grad_y, behind, grad_x)
        product, of_written, of_read = self._products(grad_y)
        read_across = self._sum_over_heads(grad_y, before, risen, product, grad_read, True)
        written_across = self._sum_over_heads(self.x, behind, self.left, product, grad_write, False)
        met = self._meet(before, behind)
        grad_decay, grad_bias = self._steps(
            met, of_length, of_written, of_read, read_across, written_across, grad_step
        )
        return grad_decay, grad_skip, grad_bias

    def _states(self, rows: Tensor, shared: Tensor, weight: Tensor, is_reversed: bool) -> _States:
        at_chunks, since_start, last_state, last_faded = walk(
            rows, shared, self.elapsed, weight, self.tiles.walk, is_reversed
        )
        return _States(at_chunks, since_start, join(last_state, last_faded, rows.dtype))

    def _written(self, grad_y: Tensor, behind: _States, grad_x: Tensor) -> tuple[Tensor, Tensor]:
        """What inputs say about lengths, [H, tokens], and the gradient of the skip; fills `grad_x`."""
        chunk = self.tiles.walk.chunk
        of_length = torch.empty_like(self.elapsed)
        of_skip = self.elapsed.new_empty(self.num_chunks, self.num_heads)
        written_gradients[(self.num_chunks, self.num_groups)](
            tiles_of(self.x.flatten(1), chunk, self.channels),
            tiles_of(grad_y.flatten(1), chunk, self.channels),
            tiles_of(self.write.flatten(1), chunk, self.state),
            tiles_of(self.read.flatten(1), chunk, self.state),
            tiles_of(behind.at_chunks.flatten(0, 2), self.channels, self.state),
            tiles_of(behind.at_segments.flatten(0, 2), self.channels, self.state),
            tiles_of(grad_x.flatten(1), chunk, self.channels),
            self.elapsed,
            self.length,
            behind.since_start,
            self.skip,
            of_length,
            of_skip,
            self.num_chunks,
            self.per_segment,
            self.elapsed.shape[1],
            **self._sizes,
            STAGES=self.tiles.written_stages,
            num_warps=self.tiles.written_warps,
        )
        return of_length, of_skip.sum(0)

    def _products(self, grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of products of write and read [chunk G j, i]; sums of M over rows and columns."""
        chunk, block = self.tiles.walk.chunk, self.tiles.walk.chunk // 2
        # Pairs that the kernel leaves out have no gradient.
        product = self.x.new_zeros(self.num_chunks * self.num_groups * chunk, chunk)
        of_written = self.elapsed.new_zeros(2, *self.elapsed.shape)
        of_read = torch.zeros_like(of_written)
        product_gradients[(3 * self.num_chunks, self.num_groups)](
            tiles_of(self.x.flatten(1), block, self.channels),
            tiles_of(grad_y.flatten(1), block, self.channels),
            tiles_of(self.write.flatten(1), block, self.state),
            tiles_of(self.read.flatten(1), block, self.state),
            tiles_of(product, block, block),
            self.elapsed,
            self.length,
            of_written,
            of_read,
            self.elapsed.shape[1],
            **self._sizes,
            BLOCK=block,
            STAGES=self.tiles.product_stages,
            num_warps=self.tiles.product_warps,
        )
        return product, of_written, of_read

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            "NUM_HEADS": self.num_heads,
            "HEADS_PER_GROUP": self.num_heads // self.num_groups,
            "CHANNELS": self.channels,
            "STATE": self.state,
            "CHUNK": self.tiles.walk.chunk,
        }

    def _sum_over_heads(
        self, rows: Tensor, states: _States, weight: Tensor, product: Tensor, result: Tensor, of_read: bool
    ) -> Tensor:
        """Sums of M over other chunks, [state block, H, tokens]; fills `result`."""
        chunk, block_state = self.tiles.walk.chunk, min(self.tiles.sum_state, self.state)
        own, other = (self.read, self.write) if of_read else (self.write, self.read)
        num_blocks = self.state // block_state
        across = self.elapsed.new_empty(num_blocks, *self.elapsed.shape)
        sum_over_heads[(self.num_chunks, self.num_groups * num_blocks)](
            tiles_of(rows.flatten(1), chunk, self.channels),
            tiles_of(states.at_chunks.flatten(0, 2), self.channels, block_state),
            tiles_of(states.at_segments.flatten(0, 2), self.channels, block_state),
            tiles_of(own.flatten(1), chunk, block_state),
            tiles_of(other.flatten(1), chunk, block_state),
            tiles_of(product, chunk, chunk),
            tiles_of(result.flatten(1), chunk, block_state),
            weight,
            states.since_start,
            across,
            self.num_chunks,
            self.per_segment,
            self.elapsed.shape[1],
            **self._sizes,
            BLOCK_STATE=block_state,
            OF_READ=of_read,
            STAGES=self.tiles.sum_stages,
            num_warps=self.tiles.sum_warps,
        )
        return across

    def _meet(self, before: _States, behind: _States) -> Tensor:
        """What pairs around each chunk say about the fading across it, [H, chunk]."""
        met = self.elapsed.new_empty(self.num_heads, self.num_chunks)
        elements = self.channels * self.state
        meet[(self.num_chunks, self.num_heads)](
            before.at_chunks,
            before.at_segments,
            before.since_start,
            behind.at_chunks,
            behind.at_segments,
            behind.since_start,
            self.elapsed,
            met,
            self.num_chunks,
            self.per_segment,
            self.elapsed.shape[1],
            NUM_HEADS=self.num_heads,
            ELEMENTS=elements,
            BLOCK=min(4096, elements),
            CHUNK=self.tiles.walk.chunk,
            num_warps=8,
        )
        return met

    def _steps(
        self,
        met: Tensor,
        of_length: Tensor,
        of_written: Tensor,
        of_read: Tensor,
        read_across: Tensor,
        written_across: Tensor,
        grad_step: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of decay and step bias; fills `grad_step`."""
        of_decay = self.elapsed.new_empty(self.num_chunks, self.num_heads)
        of_bias = torch.empty_like(of_decay)
        heads = min(8, triton.next_power_of_2(self.num_heads))
        step_gradients[(self.num_chunks, triton.cdiv(self.num_heads, heads))](
            self.step,
            self.step_bias,
            self.decay,
            self.length,
            met,
            of_length,
            of_written,
            of_read,
            read_across,
            written_across,
            grad_step,
            of_decay,
            of_bias,
            self.step.shape[0],
            self.num_chunks,
            self.elapsed.shape[1],
            self.step.stride(0),
            self.step.stride(1),
            NUM_HEADS=self.num_heads,
            HEADS=heads,
            CHUNK=self.tiles.walk.chunk,
            STATE_BLOCKS=read_across.shape[0],
            num_warps=4,
        )
        return of_decay.sum(0), of_bias.sum(0)


INPUTS = ScanGradients._fields
"""Tensors that the scan takes, in the order of their gradients."""


def scan_with_gradient(
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
    decay: Float[Tensor, " H"],
    skip: Float[Tensor, " H"],
    step_bias: Float[Tensor, " H"],
) -> Float[Tensor, "B N H P"]:
    """What `ssd_forward` gives, differentiable once; RuntimeError in the second derivative."""
    return torch.ops.lyra_ns.scan_states(x, step, write, read, decay, skip, step_bias)


def _forward(
    x: Tensor, step: Tensor, write: Tensor, read: Tensor, decay: Tensor, skip: Tensor, step_bias: Tensor
) -> Tensor:
    return ssd_forward(x, step, write, read, decay, skip, step_bias)


def _gradients(
    grad_y: Tensor,
    x: Tensor,
    step: Tensor,
    write: Tensor,
    read: Tensor,
    decay: Tensor,
    skip: Tensor,
    step_bias: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(ssd_backward(grad_y, x, step, write, read, decay, skip, step_bias))


def _shape_of_result(x: Tensor, *others: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _shapes_of_gradients(grad_y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    of_tokens, of_heads = inputs[:4], inputs[4:]
    shapes = [tensor.new_empty(tensor.shape) for tensor in of_tokens]
    return *shapes, *(tensor.new_empty(tensor.shape, dtype=torch.float32) for tensor in of_heads)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.lyra_ns.scan_gradients(grad_y.contiguous(), *ctx.saved_tensors)


_TENSORS = ", ".join(f"Tensor {name}" for name in INPUTS)
scan_states = torch.library.custom_op(
    "lyra_ns::scan_states", _forward, mutates_args=(), schema=f"({_TENSORS}) -> Tensor"
)
scan_gradients = torch.library.custom_op(
    "lyra_ns::scan_gradients",
    _gradients,
    mutates_args=(),
    schema=f"(Tensor grad_y, {_TENSORS}) -> ({', '.join(['Tensor'] * len(INPUTS))})",
)
scan_states.register_fake(_shape_of_result)
scan_gradients.register_fake(_shapes_of_gradients)
scan_states.register_autograd(_backward, setup_context=_keep_inputs)
