"""Options that several entrances share: decoder, codec, device and how Gaussians are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lyra_ns.codec import VideoLatentSpec
    from lyra_ns.reconstruction import Reconstructor
    from lyra_ns.rendering import RenderSettings


@dataclass(kw_only=True)
class DecoderChoice:
    """A decoder and how to run it."""

    checkpoint: str = "shipped"
    """shipped, a .safetensors or official .pt file, or the .ckpt or folder of a nerfstudio run."""
    config: Literal["lyra", "lyra-dynamic", "lyra-tiny"] | None = None
    """Method whose network a .pt (official files are known, others: lyra) or .ckpt (lyra-tiny) holds."""
    prune_ratio: float = 0.5
    """Share of Gaussians, the least opaque ones, that are dropped."""
    codec: str = "auto"
    """Codec of the latents: linear, cosmos:PATH, or auto, which takes what the data's manifest names."""
    plucker_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the ray maps that are encoded; official code computes both kinds of rays in bfloat16."""
    ray_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the rays on which the Gaussians are placed."""
    response: Literal["auto", "ewa", "ray3d"] = "auto"
    """How Gaussians answer pixels; auto is ewa for lyra-tiny, and for lyra ray3d where it is to be had."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def check_decoder(self) -> None:
        """ValueError for options that no decoder can be run with; commands ask before their long work."""
        if not 0 <= self.prune_ratio < 1:
            raise ValueError(
                f"expected --prune-ratio from 0 to below 1, found {self.prune_ratio}: 0.8 keeps one in five"
            )
        for name in ("plucker_dtype", "ray_dtype"):
            if getattr(self, name) not in ("float32", "bfloat16"):
                raise ValueError(f"expected float32 or bfloat16 as {name}, found {getattr(self, name)!r}")

    def reconstructor(self, latents: VideoLatentSpec) -> Reconstructor:
        """The feed-forward pass on the chosen device for latents such as these (`LyraStore.spec`)."""
        from lyra_ns.codec import codec_for
        from lyra_ns.decoder.checkpoints import load_any_decoder
        from lyra_ns.device import chosen_device
        from lyra_ns.reconstruction import Reconstructor

        self.check_decoder()
        if self.codec == "auto" and latents.codec == "unknown":
            raise ValueError(
                "the data has no manifest that names the codec of its latents: give --codec cosmos:PATH "
                "(official data) or --codec linear"
            )
        device = chosen_device(self.device)
        codec = codec_for(latents, device, self.codec)
        decoder = load_any_decoder(self.checkpoint, self.config).to(device).eval()
        return Reconstructor(decoder, codec, self.prune_ratio, self.plucker_dtype, self.ray_dtype)

    def render_settings(self, reconstruct: Reconstructor) -> RenderSettings:
        """Settings whose response is the one that this decoder was trained with."""
        from lyra_ns.rendering import RenderSettings, choose_renderer

        response = self.response
        if response == "auto" and reconstruct.decoder.config.head.scale_law == "footprint":
            response = "ewa"
        settings = RenderSettings(response=response)
        return RenderSettings(response=choose_renderer(settings, reconstruct.device).response)


def check_height_and_width(height: int, width: int) -> None:
    """ValueError for sizes of clips that decoders cannot read."""
    if min(height, width) < 16 or height % 16 or width % 16:
        raise ValueError(
            f"expected --height and --width in multiples of 16, as decoders need, found {height} and {width}"
        )
