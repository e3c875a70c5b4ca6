"""The linear recurrence inside a Mamba-2 scan: token after token, and in chunks with matrix products.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t (x) B_t        y_t = h_t C_t

The paper's A, B, C and dt are called decay, write, read and step here. Shape letters: B batch, N tokens,
H heads, P channels of a head, G groups that share write and read, S state size, Q tokens of a chunk,
n chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

TORCH_CHUNK = 64
"""Tokens of a chunk in torch: a matter of speed only (fastest of 32 to 256 on CPU)."""


def recurrent_states(
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    decay: Float[Tensor, " H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
) -> Float[Tensor, "B N H P"]:
    """What the states read out, token after token."""
    heads_per_group = x.shape[2] // write.shape[2]
    write = write.repeat_interleave(heads_per_group, 2)
    read = read.repeat_interleave(heads_per_group, 2)
    fade = torch.exp(step * decay)
    state = x.new_zeros(x.shape[0], *x.shape[2:], write.shape[-1])
    outputs = []
    for token in range(x.shape[1]):
        update = (step[:, token, :, None] * x[:, token])[..., None] * write[:, token, :, None]
        state = fade[:, token, :, None, None] * state + update
        outputs.append((state * read[:, token, :, None]).sum(-1))
    return torch.stack(outputs, 1)


class _PassStates(torch.autograd.Function):
    """States before each chunk from what every chunk adds [B, n, H, S, P] and how much it keeps [B, n, H].

    Written out by hand because autograd would keep a copy of the whole tensor for every chunk.
    """

    @staticmethod
    def forward(ctx: Any, added: Tensor, kept: Tensor) -> Tensor:
        before = torch.empty_like(added)
        state = torch.zeros_like(added[:, 0])
        for chunk in range(added.shape[1]):
            before[:, chunk] = state
            state = torch.addcmul(added[:, chunk], state, kept[:, chunk, :, None, None])
        ctx.save_for_backward(before, kept)
        return before

    @staticmethod
    def backward(ctx: Any, grad_before: Tensor) -> tuple[Tensor, Tensor]:
        before, kept = ctx.saved_tensors
        grad_added, grad_kept = torch.empty_like(before), torch.empty_like(kept)
        grad_state = torch.zeros_like(before[:, 0])
        for chunk in range(before.shape[1] - 1, -1, -1):
            grad_added[:, chunk] = grad_state
            grad_kept[:, chunk] = (grad_state * before[:, chunk]).sum((-1, -2))
            grad_state = torch.addcmul(grad_before[:, chunk], grad_state, kept[:, chunk, :, None, None])
        return grad_added, grad_kept


def chunked_states(
    x: Float[Tensor, "B N H P"],
    step: Float[Tensor, "B N H"],
    decay: Float[Tensor, " H"],
    write: Float[Tensor, "B N G S"],
    read: Float[Tensor, "B N G S"],
    chunk: int = TORCH_CHUNK,
) -> Float[Tensor, "B N H P"]:
    """What the states read out, with matrix products inside chunks and a short recurrence between them."""
    num_tokens, num_heads, num_groups = x.shape[1], x.shape[2], write.shape[2]
    x, step, write, read = (_into_chunks(tensor, chunk) for tensor in (x, step, write, read))
    elapsed = torch.cumsum(step * decay, 2).transpose(2, 3)  # [B, n, H, Q], logarithm of what is left
    x = (x * step[..., None]).transpose(2, 3)  # [B, n, H, Q, P]
    write, read = write.transpose(2, 3), read.transpose(2, 3)  # [B, n, G, Q, S]

    within = (read @ write.mT).unsqueeze(3) * _decay_between_tokens(elapsed).unflatten(2, (num_groups, -1))
    outputs = within.flatten(2, 3) @ x

    until_end = torch.exp(elapsed[..., -1:] - elapsed)
    added = _ungroup(write.mT @ _group(x * until_end[..., None], num_groups), num_heads)
    before = _PassStates.apply(added, torch.exp(elapsed[..., -1]))
    from_before = _ungroup(read @ _group(before, num_groups), num_heads)
    outputs = outputs + from_before * torch.exp(elapsed)[..., None]
    return outputs.transpose(2, 3).flatten(1, 2)[:, :num_tokens]


def _into_chunks(tensor: Tensor, chunk: int) -> Tensor:
    """[B, N, ...] as [B, n, chunk, ...], filled up with zeros (a zero step leaves the state alone)."""
    missing = -tensor.shape[1] % chunk
    if missing:
        tensor = functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing))
    return tensor.unflatten(1, (-1, chunk))


def _decay_between_tokens(elapsed: Float[Tensor, "B n H Q"]) -> Float[Tensor, "B n H Q Q"]:
    """How much of token j's update is left at token i >= j of the same chunk; zero above the diagonal."""
    future = torch.ones(elapsed.shape[-1], elapsed.shape[-1], dtype=torch.bool, device=elapsed.device).triu(1)
    # Mask the exponent, not the result: exp of the masked half overflows and its gradient would be NaN.
    return torch.exp((elapsed[..., :, None] - elapsed[..., None, :]).masked_fill(future, -torch.inf))


def _group(tensor: Tensor, num_groups: int) -> Tensor:
    """[B, n, H, R, P] as [B, n, G, R, (H/G) P], so that heads of a group share one matrix product."""
    return tensor.unflatten(2, (num_groups, -1)).transpose(3, 4).flatten(4)


def _ungroup(tensor: Tensor, num_heads: int) -> Tensor:
    """[B, n, G, R, (H/G) P] as [B, n, H, R, P]."""
    heads_per_group = num_heads // tensor.shape[2]
    return tensor.unflatten(4, (heads_per_group, -1)).transpose(3, 4).flatten(2, 3)
