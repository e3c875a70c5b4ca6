"""GEN3C's network: a configuration of diffusers' CosmosTransformer3DModel, and guided calls of it.

Source: docs/reference/gen3c.md, "Network". The channels that go in are, in this order,
[latents 16 | known 1 | for each buffer: colours 16, mask 16 | padding 1].
The last one is all zeros, since videos fill their frame. Where it is "appended" by diffusers (81 channels)
torchvision has to be there; where it is "folded" into what we hand over (82 channels) nothing else is needed.
Both forms have the same 570 tensors and the same values.

Shape letters: B samples, D channels of all buffers, T latent frames, h w latent, S and R text tokens, E text
channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.gen3c.parallel import GuidanceHalves
from lyra_ns.gen3c.step_cache import StepCache

LATENT_CHANNELS = 16
BUFFER_CHANNELS = 2 * LATENT_CHANNELS
"""Channels of one 3D buffer: its colours and its mask, each encoded as a video."""
NUM_BUFFERS = 2
"""3D buffers of the released network; those that are missing are zeros."""
FPS = 24
"""Frames per second that the released network was trained with: its rotary times stay as they are."""

PaddingForm = Literal["folded", "appended"]


def gen3c_config(num_buffers: int = NUM_BUFFERS, padding: PaddingForm = "folded") -> dict[str, Any]:
    """Arguments of CosmosTransformer3DModel for GEN3C-Cosmos-7B (7.24 billion weights)."""
    return {
        "in_channels": in_channels(num_buffers, padding),
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": 32,
        "attention_head_dim": 128,
        "num_layers": 28,
        "mlp_ratio": 4.0,
        "text_embed_dim": 1024,
        "adaln_lora_dim": 256,
        "max_size": (128, 240, 240),
        "patch_size": (1, 2, 2),
        "rope_scale": (2.0, 1.0, 1.0),
        "concat_padding_mask": padding == "appended",
        "extra_pos_embed_type": "learnable",
    }


def in_channels(num_buffers: int, padding: PaddingForm = "folded") -> int:
    """The configuration's `in_channels`: what we hand over to the network."""
    return LATENT_CHANNELS + 1 + num_buffers * BUFFER_CHANNELS + (padding == "folded")


def num_buffers_of(config: Mapping[str, Any]) -> int:
    """How many 3D buffers a network of this configuration reads; ValueError if it is no GEN3C network."""
    given = config["in_channels"] - in_channels(0, "appended" if config["concat_padding_mask"] else "folded")
    if given <= 0 or given % BUFFER_CHANNELS or config["out_channels"] != LATENT_CHANNELS:
        raise ValueError(
            f"GEN3C's network takes {in_channels(NUM_BUFFERS, 'appended')} channels, or "
            f"{in_channels(NUM_BUFFERS)} with the padding folded in, and returns {LATENT_CHANNELS}; found "
            f"{config['in_channels']} and {config['out_channels']}: give a GEN3C checkpoint, not one of "
            "another Cosmos model, which reads no 3D buffers"
        )
    return given // BUFFER_CHANNELS


@dataclass(frozen=True)
class Evaluation:
    """How the two views of guidance go through the network; only a step cache changes results."""

    in_one_batch: bool = False
    """Both views in one call, which holds twice the activations; for small videos, where calls are short."""
    step_cache: StepCache | None = None
    """Predicts some evaluations from earlier ones."""
    halves: GuidanceHalves | None = None
    """Two processes, each of which computes one view."""

    def __post_init__(self) -> None:
        if self.in_one_batch and self.halves is not None:
            raise ValueError("both views cannot go in one batch and on two processes: choose one of them")


PLAIN = Evaluation()
"""One view after the other, every one of them computed here."""


class GuidedDenoiser:
    """What the sampler calls: the network's prediction, guided away from its view without 3D buffers.

    Guidance in GEN3C's sense is F = Fc + g (Fc - Fu) and always on: g = 1 is 2 in the usual convention. Fu
    sees the negative text and zeros in place of the buffers, but the same known frames. With g = 0 the
    network runs once for each step instead of twice. ValueError for several clips with a step cache.
    """

    def __init__(
        self,
        transformer: Any,
        text: Float[Tensor, "B S E"],
        negative_text: Float[Tensor, "B R E"],
        buffers: Float[Tensor, "B D T h w"],
        num_known: int = 1,
        guidance: float = 1.0,
        fps: int = FPS,
        evaluation: Evaluation = PLAIN,
    ) -> None:
        if evaluation.step_cache is not None and len(buffers) > 1:
            raise ValueError(
                f"a step cache decides for one clip which steps it predicts, found {len(buffers)} together: "
                "make one at a time (samples_at_once 1), or leave the cache out"
            )
        self.transformer = transformer
        self.evaluation = evaluation
        self.guidance = guidance
        self.fps = fps
        dtype = transformer.dtype
        known = torch.zeros_like(buffers[:, :1])
        known[:, :, :num_known] = 1
        padding = [] if transformer.config.concat_padding_mask else [torch.zeros_like(known)]
        self._text, self._negative_text = text.to(dtype), negative_text.to(dtype)
        self._channels = torch.cat([known, buffers, *padding], dim=1).to(dtype)
        self._negative_channels = torch.cat([known, torch.zeros_like(buffers), *padding], dim=1).to(dtype)

    def __call__(
        self, scaled: Float[Tensor, "B 16 T h w"], noise_label: float
    ) -> Float[Tensor, "B 16 T h w"]:
        """The guided prediction in the precision of `scaled`; the network computes in its own."""
        if self.guidance == 0:
            return self._predict(scaled, noise_label, True)
        if self.evaluation.in_one_batch and self._text.shape[1:] == self._negative_text.shape[1:]:
            predicted, negative = self._predict_both(scaled, noise_label)
        elif (halves := self.evaluation.halves) is not None:
            predicted, negative = halves.exchange(
                self._predict(scaled, noise_label, halves.is_conditional).contiguous()
            )
        else:
            predicted = self._predict(scaled, noise_label, True)
            negative = self._predict(scaled, noise_label, False)
        return predicted + self.guidance * (predicted - negative)

    def _predict(self, scaled: Tensor, noise_label: float, is_conditional: bool) -> Tensor:
        """One view."""
        text, channels = (
            (self._text, self._channels) if is_conditional else (self._negative_text, self._negative_channels)
        )
        name = "conditional" if is_conditional else "unconditional"
        with self._remembering(name, noise_label):
            return self._call(scaled, noise_label, text, channels)

    def _predict_both(self, scaled: Tensor, noise_label: float) -> tuple[Tensor, Tensor]:
        """Both views from one call."""
        text = torch.cat([self._text, self._negative_text])
        channels = torch.cat([self._channels, self._negative_channels])
        with self._remembering("both", noise_label):
            predicted = self._call(torch.cat([scaled, scaled]), noise_label, text, channels)
        conditional, unconditional = predicted.chunk(2)
        return conditional, unconditional

    def _remembering(self, branch: str, noise_label: float) -> AbstractContextManager[None]:
        cache = self.evaluation.step_cache
        return nullcontext() if cache is None else cache.branch(branch, noise_label)

    def _call(self, scaled: Tensor, noise_label: float, text: Tensor, channels: Tensor) -> Tensor:
        dtype = channels.dtype
        (predicted,) = self.transformer(
            scaled.to(dtype),
            torch.full((len(scaled),), noise_label, dtype=dtype, device=scaled.device),
            text,
            fps=self.fps,
            condition_mask=channels,
            padding_mask=channels.new_zeros(1, 1, *channels.shape[-2:]),
            return_dict=False,
        )
        return predicted.to(scaled.dtype)
