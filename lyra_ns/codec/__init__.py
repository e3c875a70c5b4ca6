"""Codecs: video <-> latents behind one small interface; decoding latents is the teacher.

`raw` latents are what a codec's encoder gives and what the Gaussian decoder reads. On disk and inside the
diffusion model latents live in diffusion space, z = 0.5 (raw - mean) / std (docs/reference/data_layout.md,
"Latents"); `to_diffusion` and `from_diffusion` go between the two.
"""

from lyra_ns.codec.base import VideoCodec, VideoLatentSpec
from lyra_ns.codec.registry import codec_for, load_codec

__all__ = ["VideoCodec", "VideoLatentSpec", "codec_for", "load_codec"]
