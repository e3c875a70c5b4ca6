"""The feed-forward pass from end to end: stored latents and cameras in, a pruned Gaussian scene out.

Shape letters: V trajectories, L frames, C T h w latent, G Gaussians.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, relative_to
from lyra_ns.codec.base import VideoCodec, VideoLatentSpec
from lyra_ns.decoder.conditioning import Conditioning, ConditioningBuilder, RayDtype
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.decoder.pruned_head import pruned_gaussians
from lyra_ns.gaussians import Gaussians
from lyra_ns.memory import (
    InferencePlan,
    MemoryEstimate,
    SceneSize,
    available_bytes,
    estimate_inference_memory,
    explaining_exhaustion,
    inference_plan,
    too_large,
)
from lyra_ns.progress import StageMeter

MemoryWay = Literal["auto", "whole", "chunked"]


def check_codec(decoder: LatentGaussianDecoder, spec: VideoLatentSpec) -> None:
    """ValueError if the decoder says that it was trained on latents of another codec."""
    wanted, found = decoder.codec_digest, spec.digest
    if wanted and wanted != found:
        raise ValueError(
            f"the decoder was trained on latents of a codec of digest {wanted}, found the codec "
            f"{spec.codec} of digest {found or 'unknown'}: take the weights of this version "
            "of lyra-ns, or train on data of this codec"
        )


@dataclass
class Reconstructor:
    """A decoder with all that it needs to read latents as they are stored."""

    decoder: LatentGaussianDecoder
    """The network, on the device where it should run."""
    codec: VideoCodec
    """The codec that made the latents; it also encodes the Plücker maps."""
    prune_ratio: float = 0.0
    """Share of Gaussians, the least opaque ones, that are dropped."""
    plucker_dtype: RayDtype = "float32"
    """Precision of the ray maps that are encoded; official code computes both in bfloat16
    (docs/reference/decoder.md, "Precision")."""
    ray_dtype: RayDtype = "float32"
    """Precision of the rays on which the Gaussians are placed."""
    memory: MemoryWay = "auto"
    """Hold a scene whole, or its maps by view and raw channels by latent frame; auto: whole if it fits."""

    def __post_init__(self) -> None:
        """Refuse a codec whose latents the decoder was not trained to read."""
        check_codec(self.decoder, self.codec.spec)
        self.conditioning = ConditioningBuilder(
            self.codec,
            self.decoder.config.cell_size,
            plucker_dtype=self.plucker_dtype,
            ray_dtype=self.ray_dtype,
        )

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        return next(self.decoder.parameters()).device

    def estimate(self, size: SceneSize, plan: InferencePlan) -> MemoryEstimate:
        """Bytes that a scene of this size takes beyond the weights, by arithmetic."""
        config, device_type = self.decoder.config, self.device.type
        return estimate_inference_memory(
            config,
            size,
            plan,
            prune_ratio=self.prune_ratio,
            codec=self.codec.spec.codec,
            scan=config.scan_form(self.decoder.scan.form_on(self.device), self.device),
            is_low_precision=config.parity or self.decoder.uses_autocast(device_type),
        )

    def plan(self, size: SceneSize, free: int | None) -> tuple[InferencePlan, MemoryEstimate]:
        """The way that `memory` asks for, or with auto the whole one if it fits into `free` bytes.

        DoesNotFit if not even the chunked way does; where nothing says what is free, all is taken to fit.
        """
        whole, chunked = (inference_plan(self.codec.spec.codec, is_chunked) for is_chunked in (False, True))
        plan = chunked if self.memory == "chunked" else whole
        estimate = self.estimate(size, plan)
        if free is None or estimate.peak <= free:
            return plan, estimate
        smallest = self.estimate(size, chunked)
        if smallest.peak > free:
            raise too_large(smallest, free, self.device)
        return (whole, estimate) if self.memory == "whole" else (chunked, smallest)

    @torch.no_grad()
    def __call__(
        self,
        z: Float[Tensor, "V C T h w"],
        cameras: CameraPath,
        target_time: float | None = None,
        meter: StageMeter | None = None,
        announce: Callable[[InferencePlan, MemoryEstimate], None] | None = None,
    ) -> Gaussians:
        """The Gaussians [G] of one scene, in the frame of the first camera of the first trajectory.

        `z` are latents in diffusion space and `cameras` the paths [V, L] in one common world, both in the
        order in which the decoder shall read them; `target_time` in [0, 1] for dynamic scenes. `meter`
        measures the stages; `announce` hears the plan and its estimate before anything is computed.
        DoesNotFit if memory does not suffice.
        """
        if z.shape[0] != cameras.shape[0]:
            raise ValueError(
                f"latents of {z.shape[0]} trajectories came with cameras of {cameras.shape[0]}: "
                "give one path each"
            )
        num_views, _, latent_frames, height, width = z.shape
        free = available_bytes(self.device)
        plan, estimate = self.plan(SceneSize(num_views, latent_frames, height, width), free)
        if announce is not None:
            announce(plan, estimate)
        was_training = self.decoder.training
        self.decoder.eval()
        try:
            with explaining_exhaustion(self.device, estimate, free, plan.is_chunked):
                return self._reconstruct(z, cameras, target_time, plan, meter)
        finally:
            self.decoder.train(was_training)

    def _reconstruct(
        self,
        z: Float[Tensor, "V C T h w"],
        cameras: CameraPath,
        target_time: float | None,
        plan: InferencePlan,
        meter: StageMeter | None,
    ) -> Gaussians:
        def stage(name: str) -> AbstractContextManager[None]:
            return nullcontext() if meter is None else meter.stage(name)

        with stage("conditioning"):
            conditioning = self._condition(cameras, target_time, plan)
            raw = self.codec.from_diffusion(z[None].to(self.device).float())
        with stage("trunk"):
            tokens = self.decoder.encode(raw, conditioning.plucker, conditioning.time)
        with stage("head"):
            gaussians = pruned_gaussians(
                self.decoder,
                tokens,
                raw.shape,
                conditioning.rays,
                self.prune_ratio,
                plan.latent_frames_at_once,
            )
        return gaussians.scene(0)

    def _condition(self, cameras: CameraPath, target_time: float | None, plan: InferencePlan) -> Conditioning:
        relative = relative_to(cameras, cameras.camera_to_world[0, 0])
        time = None if target_time is None else torch.tensor([target_time], device=self.device)
        usual = self.conditioning.views_at_once
        if plan.is_chunked:
            self.conditioning.views_at_once = plan.views_at_once
        try:
            return self.conditioning.build(relative[None].to(self.device), time)
        finally:
            self.conditioning.views_at_once = usual
