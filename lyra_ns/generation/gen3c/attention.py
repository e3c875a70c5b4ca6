"""An attention processor for GEN3C's network that attention backends and context parallelism reach.

diffusers' processors for Cosmos carry neither `_attention_backend` nor `_parallel_config`: for them
`set_attention_backend` and `enable_parallelism` change nothing and say nothing (docs/reference/gen3c.md,
"Attention and parallelism in diffusers").
This one computes the same, holds heads behind tokens throughout, so that nothing is transposed in memory,
and can normalise and rotate queries and keys in one kernel.

Shape letters: B samples, N tokens, K tokens that are attended to, E their channels, H heads, D channels of a
head.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines [N, D]."""

FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Order in which torch's own kernels are tried where no backend was chosen."""


ORDERED: dict[str, Any] = (
    {"set_priority": True} if "set_priority" in inspect.signature(sdpa_kernel).parameters else {}
)
"""Before torch 2.6 the order could not be given, and cuDNN's came first where they could run."""


class Gen3CAttnProcessor:
    """Attention among tokens, and from tokens to text, through diffusers' table of backends.

    Without a backend of its own torch's kernels run, cuDNN's first. `is_fused` takes our kernel for the norm
    and the rotation of queries and keys on CUDA, which rounds once where diffusers rounds three times.
    """

    def __init__(self, is_fused: bool = False) -> None:
        self.is_fused = is_fused
        # Names that diffusers looks for.
        self._attention_backend: Any = None
        self._parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "B N E"],
        encoder_hidden_states: Float[Tensor, "B K F"] | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotation | None = None,
    ) -> Float[Tensor, "B N E"]:
        """The mixed values behind the last matrix."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        is_cross = encoder_hidden_states is not None
        attended = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = self._prepared(attn.to_q(hidden_states), attn.heads, attn.norm_q, image_rotary_emb)
        key = self._prepared(attn.to_k(attended), attn.heads, attn.norm_k, image_rotary_emb)
        value = attn.to_v(attended).unflatten(2, (attn.heads, -1))
        with self._kernels(query):
            mixed = dispatch_attention_fn(
                query,
                key,
                value,
                attn_mask=attention_mask,
                dropout_p=0.0,
                is_causal=False,
                backend=self._attention_backend,
                # Text is whole on every device: only attention among tokens is split.
                parallel_config=None if is_cross else self._parallel_config,
            )
        mixed = mixed.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](mixed))

    def _prepared(self, projected: Tensor, num_heads: int, norm: Any, rotation: Rotation | None) -> Tensor:
        """Queries or keys [B, N, H, D], normalised and rotated."""
        if self.is_fused and projected.is_cuda:
            from lyra_ns.generation.gen3c.fused_kernels import normalise_and_rotate

            return normalise_and_rotate(projected, num_heads, norm.weight, norm.eps, rotation)
        return rotated(norm(projected.unflatten(2, (num_heads, -1))), rotation)

    def _kernels(self, query: Tensor) -> Any:
        """Kernels of torch in the order of their speed, where no backend was chosen."""
        if self._attention_backend is not None or not query.is_cuda:
            return contextlib.nullcontext()
        return sdpa_kernel(FASTEST_FIRST, **ORDERED)


def rotated(heads: Float[Tensor, "B N H D"], rotation: Rotation | None) -> Float[Tensor, "B N H D"]:
    """Heads turned by the rotary angles of their tokens; as they are without."""
    if rotation is None:
        return heads
    cosines, sines = (part[None, :, None] for part in rotation)
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (heads.float() * cosines + turned.float() * sines).to(heads.dtype)


def use_own_attention(transformer: nn.Module, is_fused: bool = False, backend: str | None = None) -> None:
    """Gives every attention of a CosmosTransformer3DModel its own Gen3CAttnProcessor, in place.

    `backend` is one of diffusers' attention backends, such as `_native_cudnn` or `_flash_3_hub`; ValueError
    if it is none, what diffusers raises if it cannot run.
    """
    from diffusers.models.attention_processor import Attention

    for module in transformer.modules():
        if isinstance(module, Attention):
            processor: Any = Gen3CAttnProcessor(is_fused)
            module.set_processor(processor)
    if backend is not None:
        _choose(transformer, backend)


def _choose(transformer: Any, backend: str) -> None:
    """As diffusers does, but for this network alone: diffusers changes the default of all others, too."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before, _ = _AttentionBackendRegistry.get_active_backend()
    try:
        transformer.set_attention_backend(backend)
    finally:
        _AttentionBackendRegistry.set_active_backend(before)
