"""The feed-forward pass from end to end: stored latents and cameras in, a pruned Gaussian scene out.

Shape letters: V trajectories, L frames, C T h w latent, G Gaussians.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, relative_to
from lyra_ns.codec.interface import VideoCodec
from lyra_ns.conditioning import ConditioningBuilder, RayDtype
from lyra_ns.decoder import LatentGaussianDecoder
from lyra_ns.gaussians import Gaussians, prune


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
    """Precision of the ray maps that are encoded; official code computes both in bfloat16 (spec 1.10)."""
    ray_dtype: RayDtype = "float32"
    """Precision of the rays on which the Gaussians are placed."""

    def __post_init__(self) -> None:
        """Refuse a codec whose latents the decoder was not trained to read."""
        wanted, found = self.decoder.codec_digest, self.codec.spec.digest
        if wanted and wanted != found:
            raise ValueError(
                f"the decoder was trained on latents of a codec of digest {wanted}, found the codec "
                f"{self.codec.spec.codec} of digest {found or 'unknown'}: take the weights of this version "
                "of lyra-ns, or train on data of this codec"
            )
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

    @torch.no_grad()
    def __call__(
        self, z: Float[Tensor, "V C T h w"], cameras: CameraPath, target_time: float | None = None
    ) -> Gaussians:
        """The Gaussians [G] of one scene, in the frame of the first camera of the first trajectory.

        `z` are latents in diffusion space and `cameras` the paths [V, L] in one common world, both in the
        order in which the decoder shall read them; `target_time` in [0, 1] for dynamic scenes.
        """
        if z.shape[0] != cameras.shape[0]:
            raise ValueError(
                f"latents of {z.shape[0]} trajectories came with cameras of {cameras.shape[0]}: "
                "give one path each"
            )
        relative = relative_to(cameras, cameras.camera_to_world[0, 0])
        time = None if target_time is None else torch.tensor([target_time], device=self.device)
        conditioning = self.conditioning.build(relative[None].to(self.device), time)
        raw = self.codec.from_diffusion(z[None].to(self.device).float())
        was_training = self.decoder.training
        self.decoder.eval()
        gaussians = self.decoder(raw, conditioning)
        self.decoder.train(was_training)
        return prune(gaussians, self.prune_ratio).scene(0)
