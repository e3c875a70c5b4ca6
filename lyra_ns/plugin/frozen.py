"""The frozen networks beside the decoder, each loaded when it is first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from nerfstudio.utils.rich_utils import CONSOLE

from lyra_ns.attention import choose_attention_backend, describe_attention_backend
from lyra_ns.codec import VideoCodec, VideoLatentSpec, codec_for
from lyra_ns.conditioning import ConditioningBuilder, NetworkCodec, RayDtype
from lyra_ns.decoder import LatentGaussianDecoder
from lyra_ns.perceptual import PerceptualDistance, load_lpips
from lyra_ns.plugin.errors import DataError, reading_data
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import describe_backend
from lyra_ns.ssd import describe_scan_backend

if TYPE_CHECKING:
    from lyra_ns.plugin.model_config import LyraModelConfig


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
            self._perceptual = load_lpips(self._config.loss.lpips_net).to(device)
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
