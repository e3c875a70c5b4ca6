"""The Cosmos tokenizer CV8x8x8 through diffusers' AutoencoderKLCosmos: the codec of real GEN3C latents.

diffusers is imported when a codec is loaded, not before. On a GPU clips are encoded by our own program over
the same weights (`cosmos_encoder`), as many at a time as memory allows. diffusers' encode and decode take one
clip at a time: at 121 x 704 x 1280 that is about 30 GB, and the class's own tiling switch has no effect.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.codec.base import LatentStatistics, VideoLatentSpec
from lyra_ns.codec.cosmos_encoder import CosmosEncoder, UnsupportedEncoder

logger = logging.getLogger(__name__)

EncoderName = Literal["auto", "fast", "plain"]

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DIGEST_DIGITS = 16
"""Hexadecimal digits of the SHA-256 over weights and statistics that name a codec."""


class CosmosCodec:
    """AutoencoderKLCosmos behind the codec interface; bfloat16 on CUDA, float32 elsewhere, always frozen.

    `encoder` says who encodes: `fast` our own program, `plain` diffusers (the truth for the other), `auto`
    the fast one on CUDA. ValueError when `fast` cannot run this autoencoder; `auto` then logs so and takes
    `plain`.
    """

    def __init__(
        self, autoencoder: Any, statistics: LatentStatistics, name: str, encoder: EncoderName = "auto"
    ) -> None:
        self._autoencoder = autoencoder.eval().requires_grad_(False)
        self._encoder_name = encoder
        self.statistics = statistics
        config = autoencoder.config
        self.spec = VideoLatentSpec(
            name,
            config.latent_channels,
            config.temporal_compression_ratio,
            config.spatial_compression_ratio,
            _digest(autoencoder, statistics),
        )
        self._fast = self._prepared()

    @property
    def video_dtype(self) -> torch.dtype:
        """Type in which videos are encoded: handing them over in it saves a copy and changes nothing."""
        return self._autoencoder.dtype

    @property
    def encoding(self) -> str:
        """Who encodes, and in which type: with the digest, all that the latents of a video depend on."""
        return f"{'plain' if self._fast is None else 'fast'} {self.video_dtype}"

    def to(self, device: torch.device | str) -> CosmosCodec:
        """This codec, moved to `device` in place (the weights are too large to keep twice)."""
        dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        self._fast = None  # its copies of weights go before the new ones come
        self._autoencoder.to(device=device, dtype=dtype)
        self.statistics = self.statistics.to(device)
        self._fast = self._prepared()
        return self

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        """Raw latents, float32; the tokenizer has no sampling."""
        self.spec.latent_shape(*video.shape[2:])
        if self._fast is not None:
            return self._fast(video)
        clips = (self._autoencoder.encode(clip.to(self._autoencoder.dtype)) for clip in video.split(1))
        return torch.cat([clip.latent_dist.mode().float() for clip in clips])

    def clips_at_once(self, num_frames: int, height: int, width: int) -> int:
        """Clips of this size that `encode` takes through the network together, from the memory free now."""
        return 1 if self._fast is None else self._fast.clips_at_once(num_frames, height, width)

    def _prepared(self) -> CosmosEncoder | None:
        is_wanted = self._encoder_name == "fast" or (
            self._encoder_name == "auto" and self._autoencoder.device.type == "cuda"
        )
        if not is_wanted:
            return None
        try:
            return CosmosEncoder(self._autoencoder)
        except UnsupportedEncoder as error:
            if self._encoder_name == "fast":
                raise
            logger.warning("the fast encoder cannot run this autoencoder (%s): diffusers encodes", error)
            return None

    @torch.no_grad()
    def decode(self, raw: Float[Tensor, "N C T h w"]) -> Float[Tensor, "N 3 L H W"]:
        """Videos, float32, colours about -1 to 1 (not clamped)."""
        clips = (self._autoencoder.decode(clip.to(self._autoencoder.dtype)) for clip in raw.split(1))
        return torch.cat([clip.sample.float() for clip in clips])

    def to_diffusion(self, raw: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Latents in diffusion space: 0.5 (raw - mean) / std, per channel and latent frame."""
        return self.statistics.to_diffusion(raw)

    def from_diffusion(self, z: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Raw latents from diffusion space: (z / 0.5) std + mean, per channel and latent frame."""
        return self.statistics.from_diffusion(z)


def load_cosmos_codec(
    location: str, device: torch.device | str = "cpu", encoder: EncoderName = "auto"
) -> CosmosCodec:
    """The Cosmos codec of a diffusers folder (or its `vae` subfolder, or a file in it) or a hub id.

    A repository of the hub, too, may hold the weights at its root or in the subfolder `vae`.
    An official `mean_std.pt` beside the weights takes precedence over the statistics in config.json.
    FileNotFoundError when nothing is there, ModuleNotFoundError without diffusers.
    """
    try:
        from diffusers import AutoencoderKLCosmos
    except ImportError as error:
        raise ModuleNotFoundError(
            f"codec cosmos:{location} needs diffusers >= 0.32, which cannot be imported ({error}): "
            "install it with `pip install -U diffusers`"
        ) from error
    folder = _weights_folder(Path(location).expanduser())
    if folder is None and not HUB_ID.fullmatch(location):
        raise FileNotFoundError(
            f"codec cosmos:{location}: expected a folder with config.json and weights of AutoencoderKLCosmos "
            "(or a `vae` folder with them), found none: give the folder's path or a hub id owner/name"
        )
    autoencoder = _autoencoder(AutoencoderKLCosmos, location, folder)
    statistics = _statistics(autoencoder.config, folder)
    return CosmosCodec(autoencoder, statistics, f"cosmos:{location}", encoder).to(device)


def _autoencoder(kind: Any, location: str, folder: Path | None) -> Any:
    """What diffusers loads from the folder, or from the root or the `vae` subfolder of a hub repository."""
    places: list[dict[str, str]] = [{}] if folder else [{}, {"subfolder": "vae"}]
    reasons: list[Exception] = []
    for place in places:
        try:
            return kind.from_pretrained(str(folder or location), **place)
        except (OSError, ValueError) as error:
            reasons.append(error)
    told = " and in vae: ".join((str(reason).strip() or "no details").splitlines()[0] for reason in reasons)
    raise FileNotFoundError(
        f"codec cosmos:{location} could not be loaded ({told}): give the path of a folder that "
        "AutoencoderKLCosmos.save_pretrained wrote, or a hub id with its weights at the root or in vae"
    ) from reasons[-1]


def _digest(autoencoder: Any, statistics: LatentStatistics) -> str:
    """Fingerprint of all weights, taken as float32, and of the statistics."""
    digest = hashlib.sha256()
    tensors = {**autoencoder.state_dict(), "mean": statistics.mean, "std": statistics.std}
    for name in sorted(tensors):
        values = tensors[name].detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(values.shape)}".encode())
        digest.update(values.numpy())
    return digest.hexdigest()[:DIGEST_DIGITS]


def _weights_folder(path: Path) -> Path | None:
    candidates = [path.parent] if path.is_file() else [path, path / "vae"]
    return next((folder for folder in candidates if (folder / "config.json").is_file()), None)


def _statistics(config: Any, folder: Path | None) -> LatentStatistics:
    """Statistics [C, S] of mean_std.pt or the config; with neither, mean 0 and deviation 1 (as diffusers)."""
    official = folder / "mean_std.pt" if folder else None
    if official is not None and official.is_file():
        mean, std = torch.load(official, map_location="cpu", weights_only=True)
        source = str(official)
    else:
        mean, std, source = config.latents_mean, config.latents_std, "config.json"
    if mean is None or std is None:
        mean, std = [0.0] * config.latent_channels, [1.0] * config.latent_channels
    mean, std = (torch.as_tensor(values, dtype=torch.float32).flatten() for values in (mean, std))
    if len(mean) != len(std) or len(mean) % config.latent_channels:
        raise ValueError(
            f"{source} must hold as many means as deviations, a multiple of {config.latent_channels}, found "
            f"{len(mean)} and {len(std)}: take mean_std.pt from the tokenizer these weights belong to"
        )
    columns = len(mean) // config.latent_channels
    shape = (config.latent_channels, columns)
    return LatentStatistics(mean.view(shape), std.view(shape), repeat_last=columns == 1)
