"""The learned codec: a small causal 8x8x8 autoencoder with 16 channels, trained on photographs in motion.

Latents are the means that the encoder gives: nothing is drawn, equal videos have equal latents. The first
latent frame depends on the first frame alone, and later ones on no later frame. A file holds the weights in
float16; the network runs in float32, on a CUDA device with its convolutions in bfloat16.

Ray maps and times are smooth: a linear codec encodes them nearly as well in a hundredth of the time. So the
codec carries one for them (`encode_maps`), the shipped one of the day it was exported. The network has seen
ray maps too, and `encode` and `decode` keep them, should anything pass them as videos.

Shape letters: N videos, L frames (8k + 1), T latent frames (k + 1), C latent channels, H W image, h w latent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lyra_ns.codec.interface import VideoLatentSpec
from lyra_ns.codec.learned_network import LearnedCodecConfig, LearnedNetwork
from lyra_ns.codec.linear import BLOCK, DIGEST_DIGITS, LinearCodec, linear_codec_of
from lyra_ns.codec.statistics import LatentStatistics

FILE_NAME = "learned_codec.safetensors"
"""Name of the codec's file among the shipped weights."""
FORMAT = "lyra_ns learned codec 1"
"""Value of `format` in a file's metadata."""
SIZE_MULTIPLE = 2 * BLOCK
"""Sides of pictures are multiples of this many pixels, so that a decoder may join 2 x 2 latent cells."""


class LearnedCodec:
    """`LearnedNetwork` behind the codec interface, always frozen.

    The weights are rounded to float16 here, so that a codec and its file are the same and have one digest.
    """

    def __init__(
        self,
        network: LearnedNetwork,
        statistics: LatentStatistics,
        map_codec: LinearCodec,
        name: str = "learned",
    ) -> None:
        self._network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        for parameter in self._network.parameters():
            parameter.copy_(parameter.half())
        self.statistics = statistics
        self._map_codec = map_codec
        self._name = name
        self.digest = sha256(self.to_bytes()).hexdigest()[:DIGEST_DIGITS]

    @property
    def config(self) -> LearnedCodecConfig:
        """Sizes of the network."""
        return self._network.config

    @property
    def spec(self) -> VideoLatentSpec:
        """Sizes of the latents, and the digest."""
        return VideoLatentSpec(self._name, self.config.num_channels, BLOCK, BLOCK, self.digest)

    def to(self, device: torch.device | str) -> LearnedCodec:
        """This codec, moved to `device` in place."""
        self._network.to(device)
        self.statistics = self.statistics.to(device)
        self._map_codec = self._map_codec.to(device)
        return self

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        """Raw latents, float32: the means, about unit in size. Video by video, to bound the memory."""
        self._check(video)
        with self._autocast():
            return torch.cat([self._network.encode(one)[0] for one in video.float().split(1)])

    @torch.no_grad()
    def decode(self, raw: Float[Tensor, "N C T h w"]) -> Float[Tensor, "N 3 L H W"]:
        """Videos, float32, colours about -1 to 1 (not clamped)."""
        with self._autocast():
            return torch.cat([self._network.decode(one) for one in raw.split(1)])

    def encode_maps(self, maps: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N C T h w"]:
        """Latents of ray maps or times, linear in them."""
        self._check(maps)
        return self._map_codec.encode(maps)

    def to_diffusion(self, raw: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Latents in diffusion space: 0.5 (raw - mean) / std."""
        return self.statistics.to_diffusion(raw)

    def from_diffusion(self, z: Float[Tensor, "*batch C T h w"]) -> Float[Tensor, "*batch C T h w"]:
        """Raw latents from diffusion space: (z / 0.5) std + mean."""
        return self.statistics.from_diffusion(z)

    def to_bytes(self) -> bytes:
        """The codec as a safetensors file; equal codecs give equal bytes."""
        tensors = {
            f"network.{key}": tensor.detach().half().contiguous().cpu()
            for key, tensor in self._network.state_dict().items()
        }
        tensors |= {f"maps.{key}": tensor.cpu() for key, tensor in self._map_codec.to_tensors().items()}
        tensors["latent_mean"] = self.statistics.mean.float().contiguous().cpu()
        tensors["latent_std"] = self.statistics.std.float().contiguous().cpu()
        config = json.dumps(asdict(self.config), sort_keys=True)
        return _with_metadata(tensors, {"format": FORMAT, "config": config})

    def _check(self, video: Tensor) -> None:
        self.spec.latent_shape(*video.shape[2:])
        height, width = video.shape[-2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
            raise ValueError(
                f"height and width must be multiples of {SIZE_MULTIPLE}, found {height}x{width}: "
                "crop or resize the video"
            )

    def _autocast(self) -> torch.autocast:
        device = self.statistics.mean.device
        return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _with_metadata(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose bytes do not depend on the order in which its writer hashes keys."""
    body = save(tensors)
    length = int.from_bytes(body[:8], "little")
    header = {"__metadata__": metadata, **json.loads(body[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body[8 + length :]


def load_learned_codec(path: Path | None = None, device: torch.device | str = "cpu") -> LearnedCodec:
    """The codec in `path`, or the one that ships with the package; FileNotFoundError or ValueError."""
    name = "learned" if path is None else f"learned:{path}"
    path = path or Path(str(files("lyra_ns.weights").joinpath(FILE_NAME)))
    if not path.is_file():
        raise FileNotFoundError(
            f"learned codec {path} does not exist: name a file that `python -m training.codec.train` wrote, "
            "learned:FILE, or use the codec linear"
        )
    with _reading(path):
        tensors, network = _read(path)
        statistics = LatentStatistics(tensors["latent_mean"], tensors["latent_std"], repeat_last=True)
        return LearnedCodec(network, statistics, linear_codec_of(_part(tensors, "maps.")), name).to(device)


def read_learned_network(path: Path) -> LearnedNetwork:
    """The network of a codec's file, for training it further; FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"learned codec {path} does not exist: name the file of one")
    with _reading(path):
        return _read(path)[1]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says of everything that can go wrong with a file that it is no learned codec."""
    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is not a learned codec ({reason}): name a file that `python -m training.codec.train` "
            "wrote"
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], LearnedNetwork]:
    """All tensors of a file, and the network that is made of some of them."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"expected the format {FORMAT!r}, found {metadata.get('format')!r}")
    network = LearnedNetwork(config_of(json.loads(metadata["config"])))
    network.load_state_dict(_part(tensors, "network."))
    return tensors, network


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def config_of(values: dict[str, Any]) -> LearnedCodecConfig:
    """The configuration that `dataclasses.asdict` turned into `values`; ValueError if that is not one."""
    names = {field.name for field in fields(LearnedCodecConfig)}
    if values.keys() != names:
        raise ValueError(f"expected a configuration with {sorted(names)}, found {sorted(values)}")
    own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return LearnedCodecConfig(**own)
