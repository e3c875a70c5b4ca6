"""What stands beside the decoder: frozen networks, its first weights, and a moving average of its weights.

Frozen networks are loaded when they are first needed. Which weights a decoder refuses is said here, too.
Evaluation and export see the average; the official training has none (docs/reference/lyra_training.md,
"Optimiser"). The average of the last steps is steadier than the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from lyra_ns.codec import VideoCodec, VideoLatentSpec, codec_for
from lyra_ns.decoder.checkpoints import load_decoder
from lyra_ns.decoder.conditioning import ConditioningBuilder, NetworkCodec, RayDtype
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.ops.attention import choose_attention_backend, describe_attention_backend
from lyra_ns.ops.lpips import PerceptualDistance, load_lpips
from lyra_ns.ops.ssd import describe_scan_backend
from lyra_ns.plugin.errors import CheckpointMismatch, DataError, reading_data
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import describe_backend

if TYPE_CHECKING:
    from lyra_ns.plugin.model_config import LyraModelConfig

SHIPPED_DECODER = "lyra_tiny.safetensors"
"""File in `lyra_ns.weights` of the decoder that ships with the package."""

RUN_TIME_CHOICES = {"parity", "trunk_dtype", "ssd_backend", "attention", "recompute", "init"}
"""Fields of DecoderConfig that change how the weights are computed with, not what they mean."""


def load_initial_weights(decoder: LatentGaussianDecoder, init_from: str) -> None:
    """Fill `decoder` from `shipped`, a file, or (`none`) leave it as it is.

    FileNotFoundError if there is no such file, ValueError if its network is another one.
    """
    if init_from == "none":
        return
    if init_from != "shipped":
        _copy_weights(decoder, Path(init_from), init_from)
        return
    resource = files("lyra_ns.weights") / SHIPPED_DECODER
    if not resource.is_file():
        raise FileNotFoundError(
            f"this installation has no {SHIPPED_DECODER}: install a released version, "
            "or train from random weights with --pipeline.model.init-from none"
        )
    with as_file(resource) as path:
        _copy_weights(decoder, path, "the decoder that ships with this package")


def _copy_weights(decoder: LatentGaussianDecoder, path: Path, name: str) -> None:
    source = load_decoder(path)
    found = source.config
    if decoder.config.use_time:
        # A static decoder has the time embeddings too, untrained; dynamic training starts from one.
        found = replace(found, use_time=True)
    differing = differing_fields(found, decoder.config)
    if differing:
        raise ValueError(
            f"{name} is another network than --pipeline.model.decoder asks for: {', '.join(differing)}; "
            "give the same values, or train from random weights with --pipeline.model.init-from none"
        )
    decoder.load_state_dict(source.state_dict())


def differing_fields(found: DecoderConfig, wanted: DecoderConfig) -> list[str]:
    """Fields that two decoders must share for their weights to mean the same, where they do not."""
    return [
        f"{field.name} {getattr(found, field.name)} instead of {getattr(wanted, field.name)}"
        for field in fields(DecoderConfig)
        if field.name not in RUN_TIME_CHOICES and getattr(found, field.name) != getattr(wanted, field.name)
    ]


def refuse_other_network(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """CheckpointMismatch unless `given` has the names and shapes of `own`, the weights of the network."""
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    reshaped = [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    if missing or unexpected or reshaped:
        raise CheckpointMismatch(
            f"the checkpoint belongs to another network: missing {missing[:5]}, "
            f"unexpected {unexpected[:5]}, of another shape {sorted(reshaped)[:5]}; "
            "give the --pipeline.model.decoder options that it was trained with"
        )


AVERAGED = "averaged."
"""What stands before the averaged weights in the model's state dict."""
LEARNED = "decoder."
"""What stands before those that are optimised."""


def averaged_copy(decoder: LatentGaussianDecoder, decay: float) -> LatentGaussianDecoder:
    """A copy of `decoder` in float32 that nothing optimises; ValueError for a decay outside (0, 1)."""
    if not 0.0 < decay < 1.0:
        raise ValueError(
            f"ema_decay must lie between 0 (off) and 1, found {decay}: 0.999 averages the last thousand steps"
        )
    return deepcopy(decoder).float().requires_grad_(False)


def decay_at(step: int, decay: float) -> float:
    """Share of the old average after step `step` (the first is 0), less while there are few steps."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: LatentGaussianDecoder, decoder: LatentGaussianDecoder, decay: float) -> None:
    """Move `average` towards the weights of `decoder`, keeping the share `decay` of what it was."""
    old: list[Tensor] = list(average.parameters())
    new = [
        parameter.detach().to(like.dtype) for parameter, like in zip(decoder.parameters(), old, strict=True)
    ]
    torch._foreach_lerp_(old, new, 1.0 - decay)
    for kept, current in zip(average.buffers(), decoder.buffers(), strict=True):
        kept.copy_(current)


def fitting_state(state: dict[str, Tensor], averages: bool) -> tuple[dict[str, Tensor], str]:
    """The weights of a checkpoint for a model that does or does not average, and a sentence if they changed.

    Without an average in it, the checkpoint's weights start one; one that nothing reads is left out.
    """
    has_average = any(name.startswith(AVERAGED) for name in state)
    if has_average == averages:
        return state, ""
    if has_average:
        learned = {name: value for name, value in state.items() if not name.startswith(AVERAGED)}
        return (
            learned,
            "the checkpoint's averaged weights are not used: give --pipeline.model.ema-decay for them",
        )
    started = {
        AVERAGED + name.removeprefix(LEARNED): value.float()
        for name, value in state.items()
        if name.startswith(LEARNED)
    }
    return state | started, "the checkpoint holds no averaged weights: the average starts from its weights"


class FrozenParts:
    """Codec, conditioning and perceptual distance of a model.

    A plain object, not a module, so that none of it enters the state dict, the optimiser or DDP.
    """

    def __init__(self, config: LyraModelConfig, latents: VideoLatentSpec) -> None:
        """Take the model's configuration and what the data says about its latents."""
        self._config = config
        self._latents = latents
        self._codec_name = latents.codec if config.codec == "auto" else config.codec
        self._codec: VideoCodec | None = None
        self._conditioning: ConditioningBuilder | None = None
        self._perceptual: PerceptualDistance | None = None
        self._perceptual_is_missing = False

    def codec(self, device: torch.device) -> VideoCodec:
        """The codec that made the latents; DataError if that is not known or has other weights now."""
        if self._codec_name == "unknown":
            raise DataError(
                "the data has no manifest that names the codec of its latents: "
                "give --pipeline.model.codec cosmos:PATH (official data) or linear"
            )
        if self._codec is None:
            with reading_data():
                self._codec = codec_for(self._latents, device, self._codec_name)
        return self._codec

    def conditioning(self, device: torch.device) -> ConditioningBuilder:
        """Encoder of cameras, in the precision that the decoder's regime asks for."""
        if self._conditioning is None:
            decoder = self._config.decoder
            usual: RayDtype = "bfloat16" if decoder.parity else "float32"
            plucker_dtype, ray_dtype = self._config.plucker_dtype, self._config.ray_dtype
            codec = self.codec(device)
            # A linear transform encodes rays faster than a cache could look them up.
            is_cheap = not isinstance(codec, NetworkCodec)
            self._conditioning = ConditioningBuilder(
                codec,
                decoder.cell_size,
                views_at_once=64 if is_cheap else None,
                plucker_dtype=usual if plucker_dtype == "auto" else plucker_dtype,
                ray_dtype=usual if ray_dtype == "auto" else ray_dtype,
                max_cache_bytes=0 if is_cheap else 2**30,
            )
        return self._conditioning

    def perceptual(self, device: torch.device) -> PerceptualDistance:
        """LPIPS with the net of the loss configuration."""
        if self._perceptual is None:
            loss = self._config.loss
            self._perceptual = load_lpips(loss.lpips_net, weights=loss.lpips_weights).to(device)
        return self._perceptual

    def training_perceptual(self, device: torch.device) -> PerceptualDistance:
        """The same for the loss: on CUDA the trunk runs in bfloat16, half the time for an equal gradient."""
        dtype = torch.bfloat16 if device.type == "cuda" else None
        return self.perceptual(device).computing_in(dtype)

    def perceptual_if_present(self, device: torch.device) -> PerceptualDistance | None:
        """As `perceptual`, or None where its weights cannot be had, which is logged once."""
        if self._perceptual_is_missing:
            return None
        try:
            return self.perceptual(device)
        except FileNotFoundError as error:
            CONSOLE.log(f"lyra: LPIPS is not measured: {error}")
            self._perceptual_is_missing = True
            return None

    def reconstructor(self, decoder: LatentGaussianDecoder, device: torch.device) -> Reconstructor:
        """The feed-forward pass for stored latents, unpruned, sharing this object's codec and cache."""
        conditioning = self.conditioning(device)
        reconstructor = Reconstructor(
            decoder,
            self.codec(device),
            plucker_dtype=conditioning.plucker_dtype,
            ray_dtype=conditioning.ray_dtype,
        )
        reconstructor.conditioning = conditioning
        return reconstructor

    def describe(self, decoder: LatentGaussianDecoder, device: torch.device) -> list[str]:
        """One line for each part in use; LPIPS only once it is loaded."""
        codec = self._codec_name
        if codec == "linear":
            codec = "embedded linear 8x8x8 transform (no network, not the Cosmos tokenizer)"
        num_parameters = sum(parameter.numel() for parameter in decoder.parameters())
        cell = decoder.config.cell_size
        lines = [
            f"Decoder: {num_parameters:,} parameters, one Gaussian per {cell}x{cell} pixels",
            describe_scan_backend(decoder.scan),
            describe_attention_backend(choose_attention_backend(decoder.config.attention)),
            describe_backend(self._config.render, device),
            f"Codec: {codec}",
        ]
        if self._perceptual is not None:
            lines.append(f"Perceptual distance: {self._perceptual.name}")
        return lines
