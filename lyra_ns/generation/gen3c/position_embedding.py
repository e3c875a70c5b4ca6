"""Positions of the network's tokens, computed once for each size of video and kept.

diffusers computes both embeddings in every evaluation: the learnable one through three float32 tensors of
tokens x channels, 0.9 GB each at full size. Both depend on nothing but the size. The values are the same.

The official code computes rotary angles in bfloat16 (docs/reference/gen3c.md, "Rotary positions"), up to
0.15 rad off; `bf16_legacy` does so, too, to compare on released weights.

Shape letters: B samples, D channels, T latent frames, h w latent; N tokens, E channels of a token, R rotary
channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
