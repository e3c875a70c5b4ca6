"""Blocks of GEN3C's network that do the work between their large products in few passes.

A Gen3CBlock holds the modules of a CosmosTransformerBlock under the same names, so that state dicts, hooks
for offloading and diffusers' plan for context parallelism go on as before. On CUDA it uses our kernels, else
the operations of diffusers in their order.

Shape letters: B samples, N tokens, E channels, K text tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lyra_ns.generation.gen3c.attention import Gen3CAttnProcessor, Rotation
from lyra_ns.generation.gen3c.step_cache import StepCache

NAMES = ("norm1", "attn1", "norm2", "attn2", "norm3", "ff")
"""Parts of a block, in their order."""
WHOLE = 1
"""Parts in which the perceptron takes the tokens, where memory does not matter."""


class Gen3CBlock(nn.Module):
    """Stands for a CosmosTransformerBlock; ValueError if that one belongs to another Cosmos network.

    `num_parts` splits the tokens for the perceptron, whose inner width is four times theirs.
    """

    norm1: Any
    attn1: Any
    norm2: Any
    attn2: Any
    norm3: Any
    ff: Any

    def __init__(self, block: Any, index: int, is_fused: bool, num_parts: int = WHOLE) -> None:
        super().__init__()
        if block.img_context or block.before_proj is not None or block.after_proj is not None:
            raise ValueError(
                "these blocks read pictures or belong to a ControlNet, which GEN3C's do not: give the "
                "network of a GEN3C checkpoint"
            )
        for name in NAMES:
            setattr(self, name, getattr(block, name))
        self.index = index
        self.is_fused = is_fused
        self.num_parts = num_parts
        self.step_cache: StepCache | None = None
        self._compiled: Any = None

    def forward(
        self,
        hidden_states: Float[Tensor, "B N E"],
        encoder_hidden_states: Float[Tensor, "B K F"],
        embedded_timestep: Float[Tensor, "B E"],
        temb: Float[Tensor, "B E3"] | None = None,
        image_rotary_emb: Rotation | None = None,
        extra_pos_emb: Float[Tensor, "b N E"] | None = None,
        attention_mask: Tensor | None = None,
        controlnet_residual: Tensor | None = None,
    ) -> Float[Tensor, "B N E"]:
        """The stream behind the block; a step cache may stand in for the work."""
        if controlnet_residual is not None:
            raise ValueError("GEN3C has no ControlNet, found a residual of one: leave it out")

        def work() -> Tensor:
            return (self._compiled or self._run)(
                hidden_states,
                encoder_hidden_states,
                embedded_timestep,
                temb,
                image_rotary_emb,
                extra_pos_emb,
                attention_mask,
            )

        return work() if self.step_cache is None else self.step_cache.through(self.index, hidden_states, work)

    def compile_work(self) -> None:
        """Compiles what the block computes; its choice whether to compute stays outside."""
        self._compiled = torch.compile(self._run, dynamic=False)

    def _run(
        self,
        stream: Tensor,
        text: Tensor,
        embedded_timestep: Tensor,
        temb: Tensor | None,
        rotation: Rotation | None,
        positions: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        is_fused = self.is_fused and stream.is_cuda and positions is not None
        add_norm, add = (_fused_add_norm, _fused_add) if is_fused else (_plain_add_norm, _plain_add)
        time = (embedded_timestep, temb)
        stream, normed, gate = add_norm(stream, positions, None, self.norm1, time, False)
        mixed = self.attn1(normed, image_rotary_emb=rotation)
        stream, normed, gate = add_norm(stream, mixed, gate, self.norm2, time, True)
        mixed = self.attn2(normed, encoder_hidden_states=text, attention_mask=mask)
        stream, normed, gate = add_norm(stream, mixed, gate, self.norm3, time, True)
        del mixed
        return add(stream, self._perceptron(normed), gate)

    def _perceptron(self, normed: Tensor) -> Tensor:
        """The perceptron over all tokens, or over parts, whose results take the place of its input."""
        if self.num_parts == WHOLE or torch.is_grad_enabled():
            return self.ff(normed)
        for part in normed.chunk(self.num_parts, dim=1):
            part.copy_(self.ff(part))
        return normed


Time = tuple[Tensor, Tensor | None]


def modulation(norm: Any, time: Time) -> tuple[Tensor, Tensor, Tensor]:
    """(shift, scale, gate) [B, E] of a CosmosAdaLayerNormZero for one moment."""
    embedded_timestep, temb = time
    numbers = norm.linear_2(norm.linear_1(norm.activation(embedded_timestep)))
    shift, scale, gate = (numbers if temb is None else numbers + temb).chunk(3, dim=-1)
    return shift, scale, gate


def _plain_add_norm(
    stream: Tensor, addend: Tensor | None, gate: Tensor | None, norm: Any, time: Time, _: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(stream + gate addend, its modulated norm, the norm's own gate), as diffusers computes them."""
    if addend is not None:
        stream = stream + (addend if gate is None else gate[:, None] * addend)
    shift, scale, own_gate = modulation(norm, time)
    return stream, norm.norm(stream) * (1 + scale[:, None]) + shift[:, None], own_gate


def _plain_add(stream: Tensor, addend: Tensor, gate: Tensor) -> Tensor:
    return stream + gate[:, None] * addend


def _fused_add_norm(
    stream: Tensor, addend: Tensor | None, gate: Tensor | None, norm: Any, time: Time, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_plain_add_norm`, in one pass; only a stream that this block has made is overwritten."""
    from lyra_ns.generation.gen3c.fused_kernels import add_and_modulate

    assert addend is not None
    shift, scale, own_gate = modulation(norm, time)
    added, normed = add_and_modulate(stream, addend, gate, shift, scale, norm.norm.eps, in_place)
    return added, normed, own_gate


def _fused_add(stream: Tensor, addend: Tensor, gate: Tensor) -> Tensor:
    from lyra_ns.generation.gen3c.fused_kernels import add_gated

    return add_gated(stream, addend, gate)


def use_own_blocks(transformer: Any, is_fused: bool = True, num_parts: int = WHOLE) -> None:
    """Puts Gen3CBlocks and their attention into a CosmosTransformer3DModel, in place.

    Before hooks are set, which would stay with the blocks that go. Attention backends that were set before
    are kept.
    """
    for index, block in enumerate(transformer.transformer_blocks):
        if isinstance(block, Gen3CBlock):
            block.is_fused, block.num_parts = is_fused, num_parts
        elif hasattr(block, "_diffusers_hook") or hasattr(block, "_hf_hook"):
            raise ValueError("the blocks carry hooks (offloading, parallelism): use own blocks before that")
        else:
            transformer.transformer_blocks[index] = Gen3CBlock(block, index, is_fused, num_parts)
        for attention in (transformer.transformer_blocks[index].attn1, block.attn2):
            if not isinstance(attention.processor, Gen3CAttnProcessor):
                attention.set_processor(Gen3CAttnProcessor())
            attention.processor.is_fused = is_fused
