"""Layers of GEN3C's network that do the work of diffusers' in fewer passes: attention, blocks, positions.

diffusers' attention processors for Cosmos carry neither `_attention_backend` nor `_parallel_config`: for them
`set_attention_backend` and `enable_parallelism` change nothing and say nothing (docs/reference/gen3c.md,
"Attention and parallelism in diffusers"). Ours computes the same, holds heads behind tokens throughout, so
that nothing is transposed in memory, and can normalise and rotate queries and keys in one kernel.

A Gen3CBlock holds the modules of a CosmosTransformerBlock under the same names, so that state dicts, hooks
for offloading and diffusers' plan for context parallelism go on as before. On CUDA it uses our kernels, else
the operations of diffusers in their order.

Positions of the tokens are computed once for each size of video and kept. diffusers computes both embeddings
in every evaluation: the learnable one through three float32 tensors of tokens x channels, 0.9 GB each at full
size. The values are the same. The official code computes rotary angles in bfloat16 (docs/reference/gen3c.md,
"Rotary positions"), up to 0.15 rad off; `bf16_legacy` does so, too, to compare on released weights.

The large matrices can be kept in 8-bit floats (e4m3), with a scale for each of their rows. `store` halves the
memory of the weights and multiplies in the tokens' precision. `multiply` rounds the tokens as well, each with
a scale of its own, and uses the 8-bit tensor cores of Hopper and newer; elsewhere the same numbers are
multiplied in float32. diffusers' layerwise casting stores 8 bits without scales: a weight under 1/64, which
most are, then loses more bits the smaller it is. **This changes results**, and cannot be undone: load the
network again.

Shape letters: B samples, N tokens, K tokens that are attended to (of the text), E channels of a token, H
heads, D channels (of a head, or of a sample), T latent frames, h w latent, R rotary channels; M rows, I and O
channels in and out of a matrix.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lyra_ns.gen3c.step_cache import StepCache

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
            from lyra_ns.gen3c.triton import normalise_and_rotate

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
    from lyra_ns.gen3c.triton import add_and_modulate

    assert addend is not None
    shift, scale, own_gate = modulation(norm, time)
    added, normed = add_and_modulate(stream, addend, gate, shift, scale, norm.norm.eps, in_place)
    return added, normed, own_gate


def _fused_add(stream: Tensor, addend: Tensor, gate: Tensor) -> Tensor:
    from lyra_ns.gen3c.triton import add_gated

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


RopeType = Literal["fp32", "bf16_legacy"]
Key = tuple[Any, ...]


class KeptRotation(nn.Module):
    """Stands for a CosmosRotaryPosEmbed: cosines and sines, float32, kept for the last size."""

    def __init__(self, rotation: nn.Module, rope_dtype: RopeType = "fp32") -> None:
        super().__init__()
        self.rotation = rotation
        self.rope_dtype = rope_dtype
        self._key: Key = ()
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(
        self, hidden_states: Float[Tensor, "B D T h w"], fps: int | None = None
    ) -> tuple[Float[Tensor, "N R"], Float[Tensor, "N R"]]:
        """(cosines, sines) of every token."""
        key = (hidden_states.shape[2:], hidden_states.device, fps)
        if self._kept is None or key != self._key:
            is_legacy = self.rope_dtype == "bf16_legacy"
            angles = legacy_angles(self.rotation, hidden_states, fps) if is_legacy else None
            self._kept = (
                self.rotation(hidden_states, fps=fps) if angles is None else (angles.cos(), angles.sin())
            )
            self._key = key
        return self._kept


def legacy_angles(
    rotation: Any, hidden_states: Float[Tensor, "B D T h w"], fps: int | None = None
) -> Float[Tensor, "N R"]:
    """Rotary angles of every token as the official code has them: computed in bfloat16 throughout."""
    device = hidden_states.device
    num_frames, height, width = (
        size // patch for size, patch in zip(hidden_states.shape[2:], rotation.patch_size, strict=True)
    )

    def angles_of(places: Tensor, num_channels: int, factor: float) -> Tensor:
        exponents = torch.arange(0, num_channels, 2, device=device, dtype=torch.float32) / num_channels
        frequencies = 1.0 / ((10000.0 * factor) ** exponents.bfloat16())
        return torch.outer(places, frequencies).float()

    def places(length: int) -> Tensor:
        return torch.arange(length, device=device, dtype=torch.float32).bfloat16()

    times = places(num_frames) if fps is None else places(num_frames) / fps * rotation.base_fps
    in_time = angles_of(times, rotation.dim_t, rotation.t_ntk_factor)
    in_rows = angles_of(places(height), rotation.dim_h, rotation.h_ntk_factor)
    in_columns = angles_of(places(width), rotation.dim_w, rotation.w_ntk_factor)
    grid = (num_frames, height, width)
    angles = [
        in_time[:, None, None].expand(*grid, -1),
        in_rows[None, :, None].expand(*grid, -1),
        in_columns[None, None].expand(*grid, -1),
    ]
    return torch.cat(angles * 2, dim=-1).flatten(0, 2)


class KeptPositions(nn.Module):
    """Stands for a CosmosLearnablePositionalEmbed with the same weights, under the same names.

    What is kept belongs to the weights at the time of the first call; loading others forgets it. Weights
    that want a gradient are computed with as before.
    """

    def __init__(self, positions: Any) -> None:
        super().__init__()
        self.patch_size, self.eps = positions.patch_size, positions.eps
        self.pos_emb_t, self.pos_emb_h, self.pos_emb_w = (
            positions.pos_emb_t,
            positions.pos_emb_h,
            positions.pos_emb_w,
        )
        self._key: Key = ()
        self._kept: Tensor | None = None

    def forward(self, hidden_states: Float[Tensor, "B D T h w"]) -> Float[Tensor, "1 N E"]:
        """The normalised sum over time, rows and columns, for any number of samples."""
        key = (hidden_states.shape[2:], hidden_states.device, hidden_states.dtype)
        wants_gradient = torch.is_grad_enabled() and self.pos_emb_t.requires_grad
        if self._kept is None or key != self._key or wants_gradient:
            made = self._sum(hidden_states)
            if wants_gradient:
                return made
            self._kept, self._key = made, key
        return self._kept

    def _sum(self, hidden_states: Tensor) -> Tensor:
        """Latent frame by latent frame, so that only one of them exists in float32."""
        num_frames, height, width = (
            size // patch for size, patch in zip(hidden_states.shape[2:], self.patch_size, strict=True)
        )
        in_time, in_rows = self.pos_emb_t[:num_frames], self.pos_emb_h[:height]
        in_columns = self.pos_emb_w[:width]
        alpha = self.pos_emb_t.shape[1] ** -0.5
        frames = []
        for at_time in in_time:
            frame = (at_time + in_rows[:, None] + in_columns[None]).flatten(0, 1)
            norm = torch.linalg.vector_norm(frame, dim=-1, keepdim=True, dtype=torch.float32)
            frames.append((frame / torch.add(self.eps, norm, alpha=alpha)).type_as(hidden_states))
        return torch.cat(frames)[None]

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*arguments, **options)


def keep_positions(transformer: Any, rope_dtype: RopeType = "fp32") -> None:
    """Replaces both embeddings of a CosmosTransformer3DModel in place; its state dict stays as it is."""
    if not isinstance(transformer.rope, KeptRotation):
        transformer.rope = KeptRotation(transformer.rope, rope_dtype)
    transformer.rope.rope_dtype = rope_dtype
    transformer.rope._kept = None
    positions = transformer.learnable_pos_embed
    if positions is not None and not isinstance(positions, KeptPositions):
        transformer.learnable_pos_embed = KeptPositions(positions)


EightBits = Literal["store", "multiply"]

LARGEST = 448.0
"""The largest number of e4m3."""
FEWEST_TOKENS = 17
"""Rows from which 8-bit products pay; the kernels want more than 16."""


class EightBitLinear(nn.Module):
    """Stands for an nn.Linear without bias; no gradient reaches its weights.

    They are parameters, because diffusers' group offloading leaves buffers on the device.
    """

    def __init__(self, linear: nn.Linear, mode: EightBits) -> None:
        super().__init__()
        bias: Tensor | None = linear.bias
        if bias is not None:
            raise ValueError("8-bit matrices have no bias, and GEN3C's linear layers neither: found one")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.mode: EightBits = mode
        weight8, scale = rounded_rows(linear.weight.detach())
        self.weight8 = nn.Parameter(weight8, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, tokens: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        """The product in the dtype of the tokens."""
        rows = tokens.flatten(0, -2)
        if self.mode == "store" or len(rows) < FEWEST_TOKENS:
            return functional.linear(tokens, (self.weight8.float() * self.scale).to(tokens.dtype))
        return multiply(rows, self.weight8, self.scale).unflatten(0, tokens.shape[:-1])

    def _apply(self, function: Any, recurse: bool = True) -> EightBitLinear:
        """Follows to other devices, and keeps its numbers where other layers change theirs."""
        return super()._apply(lambda tensor: tensor.to(function(tensor[:0]).device), recurse)


def rounded_rows(matrix: Float[Tensor, "M I"]) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """(e4m3 numbers [M, I], the scale of each row): their product is about `matrix`."""
    largest = matrix.abs().amax(1, keepdim=True).float()
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
    return (matrix.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def multiply(
    rows: Float[Tensor, "M I"], weight8: Tensor, scale: Float[Tensor, "O 1"]
) -> Float[Tensor, "M O"]:
    """Rounded rows times rounded weights, in the dtype of the rows."""
    rows8, row_scale = _rounded_tokens(rows)
    if not can_multiply(rows.device) or rows.dtype != torch.bfloat16:
        return (rows8.float() @ weight8.float().t() * row_scale * scale.t()).to(rows.dtype)
    return torch._scaled_mm(
        rows8, weight8.t(), row_scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _rounded_tokens(rows: Tensor) -> tuple[Tensor, Tensor]:
    if rows.is_cuda:
        from lyra_ns.gen3c.triton import round_rows

        return round_rows(rows)
    return rounded_rows(rows)


def can_multiply(device: torch.device) -> bool:
    """Whether the device has 8-bit tensor cores that take a scale for each row."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def use_eight_bits(transformer: Any, mode: EightBits) -> int:
    """Puts EightBitLinears into the blocks in place, for all but modulation; returns the bytes saved."""
    saved = 0
    for block in transformer.transformer_blocks:
        for part in (block.attn1, block.attn2, block.ff):
            for owner in list(part.modules()):
                for name, linear in list(owner.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(owner, name, EightBitLinear(linear, mode))
                        saved += linear.weight.numel() * (linear.weight.element_size() - 1)
    return saved
