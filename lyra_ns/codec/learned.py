"""The learned codec: a small causal 8x8x8 autoencoder with 16 channels, trained on photographs in motion.

Latents are the means that the encoder gives: nothing is drawn, equal videos have equal latents. The first
latent frame depends on the first frame alone, and later ones on no later frame. A file holds the weights in
float16; the network runs in float32, on a CUDA device with its convolutions in bfloat16.

Ray maps and times are smooth: a linear codec encodes them nearly as well in a hundredth of the time. So the
codec carries one for them (`encode_maps`), the shipped one of the day it was exported. The network has seen
ray maps too, and `encode` and `decode` keep them, should anything pass them as videos.

Why the network is built so, one line each:
- Patches of 4 x 4 pixels and 2 frames come first: most of the time goes where 16 pixels share one vector.
- Convolutions are two-dimensional over frames and three-tap over time: several times faster than in 3D.
- The encoder looks back in time only, so that the first latent frame is the first frame's alone; the decoder
  looks both ways, since it always holds all latents: what a later group shows sharpens the earlier one.
- Time is padded with zeros, by which the network knows where a clip begins and ends.
- The first latent frame stands for one frame, the others for eight: it has its own layers at the bottleneck.
- Beside the network runs a linear codec, at first the shipped one with its latents made unit: training begins
  at its quality and the network learns what is missing. All of it is trained.
- One normalisation per block, over channels: enough for stability, and memory traffic is the cost on a CPU.
- The decoder is larger than the encoder: the latents are few, what they mean takes the work.

Shape letters: N videos, L frames (8k + 1), T latent frames (k + 1), C channels, H W image, h w latent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from lyra_ns.codec.base import LatentStatistics, VideoLatentSpec
from lyra_ns.codec.linear import (
    BLOCK,
    DIGEST_DIGITS,
    FIRST_SIZE,
    GROUP_GAIN,
    GROUP_SIZE,
    LinearCodec,
    linear_codec_of,
    outside_basis,
)

PATCH = 4
"""Side in pixels of the patches that the finest layers see."""
PATCH_FRAMES = 2
"""Frames in such a patch."""
LEVEL_FRAMES = (PATCH_FRAMES, 2, 2)
"""Frames joined on entering each of the three levels; their product is the codec's stride in time."""
LOWEST_LOG_VARIANCE, HIGHEST_LOG_VARIANCE = -14.0, 4.0
FIRST_LOG_VARIANCE = -6.0
"""Logarithm of the latents' variance before training."""


@dataclass(frozen=True)
class LearnedCodecConfig:
    """Sizes of the network; levels are (4 x 4 x 2), (8 x 8 x 4) and (8 x 8 x 8), finest first."""

    num_channels: int = 16
    """Latent channels."""
    encoder_widths: tuple[int, int, int] = (128, 192, 224)
    """Channels of the encoder's levels."""
    encoder_blocks: tuple[int, int, int] = (2, 2, 2)
    """Residual blocks of the encoder's levels."""
    decoder_widths: tuple[int, int, int] = (128, 192, 256)
    """Channels of the decoder's levels."""
    decoder_blocks: tuple[int, int, int] = (6, 2, 2)
    """Residual blocks of the decoder's levels."""


class LearnedNetwork(nn.Module):
    """Encoder and decoder. Latents are about unit in size; convolutions may run in bfloat16 by autocast."""

    def __init__(self, config: LearnedCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(
        self, video: Float[Tensor, "N 3 L H W"]
    ) -> tuple[Float[Tensor, "N C T h w"], Float[Tensor, "N C T h w"]]:
        """Means and logarithms of the variances of the latents, float32."""
        return self.encoder(video)

    def decode(self, latents: Float[Tensor, "N C T h w"]) -> Float[Tensor, "N 3 L H W"]:
        """The video of these latents, float32, colours about -1 to 1 (not clamped)."""
        return self.decoder(latents)

    @torch.no_grad()
    def start_from(self, linear: LinearCodec) -> None:
        """Gives the shortcut the weights of a linear codec; before training the network then equals it."""
        mean, std = linear.statistics.mean, linear.statistics.std
        bases = (linear.first_basis, linear.group_basis * GROUP_GAIN)
        inverses = (linear.first_basis, linear.group_basis / GROUP_GAIN)
        rests = (
            outside_basis(linear.first_mean, linear.first_basis),
            outside_basis(linear.group_mean, linear.group_basis),
        )
        shortcuts = zip(_linears(self.encoder.shortcuts), _linears(self.decoder.shortcuts), strict=True)
        for column, (into, out) in enumerate(shortcuts):
            into.weight.copy_(bases[column] / std[:, column, None])
            into.bias.copy_(-mean[:, column] / std[:, column])
            out.weight.copy_((inverses[column] * std[:, column, None]).T)
            out.bias.copy_(inverses[column].T @ mean[:, column] + rests[column])


class Encoder(nn.Module):
    """Video to means and log variances of latents; looks back in time only."""

    def __init__(self, config: LearnedCodecConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.encoder_widths
        num_fine, num_middle, num_coarse = config.encoder_blocks
        self.patches = SpatialConv(3 * PATCH**2 * PATCH_FRAMES, fine, bias=True)
        self.fine = _level(fine, num_fine, is_causal=True)
        self.to_middle = nn.Linear(fine * 2 * 2 * LEVEL_FRAMES[1], middle)
        self.middle = _level(middle, num_middle, is_causal=True)
        self.to_coarse = nn.Linear(middle * LEVEL_FRAMES[2], coarse)
        self.coarse = _level(coarse, num_coarse, is_causal=True)
        self.norm = ChannelNorm(coarse)
        self.first_head = SpatialConv(coarse, 2 * config.num_channels, bias=True)
        self.later_head = SpatialConv(coarse, 2 * config.num_channels, bias=True)
        self.shortcuts = nn.ModuleList(nn.Linear(n, config.num_channels) for n in (FIRST_SIZE, GROUP_SIZE))
        for head in (self.first_head, self.later_head):
            _, bias = _make_zero(head)
            nn.init.constant_(bias[config.num_channels :], FIRST_LOG_VARIANCE)

    def forward(
        self, video: Float[Tensor, "N 3 L H W"]
    ) -> tuple[Float[Tensor, "N C T h w"], Float[Tensor, "N C T h w"]]:
        """Means and logarithms of the variances."""
        x = self.fine(self.patches(patches_of_video(video)))
        x = self.middle(self.to_middle(join_cells(x, LEVEL_FRAMES[1], 2)))
        x = self.coarse(self.to_coarse(join_cells(x, LEVEL_FRAMES[2], 1)))
        x = self.norm(x)
        heads = [self.first_head(x[:, :1])]
        if x.shape[1] > 1:
            heads.append(self.later_head(x[:, 1:]))
        with torch.autocast(video.device.type, enabled=False):
            mean, log_variance = torch.cat(heads, 1).float().chunk(2, -1)
            mean = mean + self._shortcut(video.float())
        log_variance = log_variance.clamp(LOWEST_LOG_VARIANCE, HIGHEST_LOG_VARIANCE)
        return mean.permute(0, 4, 1, 2, 3), log_variance.permute(0, 4, 1, 2, 3)

    def _shortcut(self, video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N T h w C"]:
        first, later = self.shortcuts
        latents = first(blocks_of_frames(video[:, :, :1], 1))
        if video.shape[2] == 1:
            return latents
        return torch.cat([latents, later(blocks_of_frames(video[:, :, 1:], BLOCK))], 1)


class Decoder(nn.Module):
    """Latents to video; looks both ways in time."""

    def __init__(self, config: LearnedCodecConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.decoder_widths
        num_fine, num_middle, num_coarse = config.decoder_blocks
        self.first_latent = SpatialConv(config.num_channels, coarse, bias=True)
        self.later_latents = SpatialConv(config.num_channels, coarse, bias=True)
        self.coarse = _level(coarse, num_coarse, is_causal=False)
        self.to_middle = nn.Linear(coarse, middle * LEVEL_FRAMES[2])
        self.middle = _level(middle, num_middle, is_causal=False)
        self.to_fine = nn.Linear(middle, fine * 2 * 2 * LEVEL_FRAMES[1])
        self.fine = _level(fine, num_fine, is_causal=False)
        self.norm = ChannelNorm(fine)
        self.patches = SpatialConv(fine, 3 * PATCH**2 * PATCH_FRAMES, bias=True)
        self.shortcuts = nn.ModuleList(nn.Linear(config.num_channels, n) for n in (FIRST_SIZE, GROUP_SIZE))
        _make_zero(self.patches)

    def forward(self, latents: Float[Tensor, "N C T h w"]) -> Float[Tensor, "N 3 L H W"]:
        """The video."""
        z = latents.float().permute(0, 2, 3, 4, 1).contiguous()
        parts = [self.first_latent(z[:, :1])]
        if z.shape[1] > 1:
            parts.append(self.later_latents(z[:, 1:]))
        x = self.coarse(torch.cat(parts, 1))
        x = self.middle(part_cells(self.to_middle(x), LEVEL_FRAMES[2], 1))
        x = self.fine(part_cells(self.to_fine(x), LEVEL_FRAMES[1], 2))
        patches = self.patches(self.norm(x))
        with torch.autocast(z.device.type, enabled=False):
            return video_of_patches(patches.float()) + self._shortcut(z)

    def _shortcut(self, z: Float[Tensor, "N T h w C"]) -> Float[Tensor, "N 3 L H W"]:
        first, later = self.shortcuts
        frames = frames_of_blocks(first(z[:, :1]), 1)
        if z.shape[1] == 1:
            return frames
        return torch.cat([frames, frames_of_blocks(later(z[:, 1:]), BLOCK)], 2)


class ResidualBlock(nn.Module):
    """Space, time, space, added to what came in; begins as the identity."""

    def __init__(self, width: int, is_causal: bool) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.first = SpatialConv(width, width)
        self.time = TemporalConv(width, is_causal)
        self.second = SpatialConv(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "N T h w C"]) -> Float[Tensor, "N T h w C"]:
        """The same cells, refined."""
        h = _silu(self.first(self.norm(x)))
        h = _silu(self.time(h))
        return x + self.second(h)


def _level(width: int, num_blocks: int, is_causal: bool) -> nn.Sequential:
    return nn.Sequential(*[ResidualBlock(width, is_causal) for _ in range(num_blocks)])


def _linears(modules: nn.ModuleList) -> list[nn.Linear]:
    return [module for module in modules if isinstance(module, nn.Linear)]


def _make_zero(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters of a layer, now all zero."""
    parameters = list(layer.parameters())
    for parameter in parameters:
        nn.init.zeros_(parameter)
    return parameters


class ChannelNorm(nn.Module):
    """Normalises every cell over its channels, then SiLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "*cells C"]) -> Float[Tensor, "*cells C"]:
        """The same type as `x`: autocast would give float32, which costs more than it gains."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return _silu(functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-6))


def _silu(x: Tensor) -> Tensor:
    # In place where no gradient is wanted: with one, a copy would be kept for it.
    return functional.silu(x, inplace=not torch.is_grad_enabled())


class SpatialConv(nn.Conv2d):
    """3 x 3 over the cells of each frame."""

    def __init__(self, width_in: int, width_out: int, bias: bool = False) -> None:
        super().__init__(width_in, width_out, 3, padding=1, bias=bias)

    def forward(self, x: Float[Tensor, "N T h w C"]) -> Float[Tensor, "N T h w D"]:
        """Frames keep their order; memory stays channels-last."""
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        return super().forward(frames).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class TemporalConv(nn.Conv2d):
    """Three taps over the frames of each cell: the two before and itself, or the neighbours and itself."""

    def __init__(self, width: int, is_causal: bool) -> None:
        super().__init__(width, width, (3, 1), padding=(0 if is_causal else 1, 0), bias=False)
        self.is_causal = is_causal

    def forward(self, x: Float[Tensor, "N T h w C"]) -> Float[Tensor, "N T h w C"]:
        """Frames as rows and cells as columns of one picture, which is a view of channels-last memory."""
        rows = x.flatten(2, 3)
        if self.is_causal:
            rows = functional.pad(rows, (0, 0, 0, 0, 2, 0))
        mixed = super().forward(rows.permute(0, 3, 1, 2))
        return mixed.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4])


def join_cells(x: Float[Tensor, "N T h w C"], num_frames: int, side: int) -> Float[Tensor, "N t h2 w2 D"]:
    """Cells joined over `num_frames` frames and `side` x `side` places, the first frame with itself."""
    x = torch.cat([x[:, :1]] * (num_frames - 1) + [x], 1)
    count, frames, rows, columns, width = x.shape
    x = x.reshape(count, frames // num_frames, num_frames, rows // side, side, columns // side, side, width)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)


def part_cells(x: Float[Tensor, "N t h2 w2 D"], num_frames: int, side: int) -> Float[Tensor, "N T h w C"]:
    """The inverse of `join_cells`."""
    count, frames, rows, columns, _ = x.shape
    x = x.reshape(count, frames, rows, columns, num_frames, side, side, -1)
    x = x.permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(count, frames * num_frames, rows * side, columns * side, -1)[:, num_frames - 1 :]


def patches_of_video(video: Float[Tensor, "N 3 L H W"]) -> Float[Tensor, "N T2 h4 w4 96"]:
    """Pairs of frames in patches; the first frame is paired with itself."""
    return join_cells_of_pixels(video.permute(0, 2, 3, 4, 1))


def join_cells_of_pixels(pixels: Float[Tensor, "N L H W 3"]) -> Float[Tensor, "N T2 h4 w4 96"]:
    """Pixels joined into patches of the finest level."""
    return join_cells(pixels, PATCH_FRAMES, PATCH)


def video_of_patches(patches: Float[Tensor, "N T2 h4 w4 96"]) -> Float[Tensor, "N 3 L H W"]:
    """The inverse of `patches_of_video`."""
    return part_cells(patches, PATCH_FRAMES, PATCH).permute(0, 4, 1, 2, 3)


def blocks_of_frames(video: Float[Tensor, "N 3 L H W"], num_frames: int) -> Float[Tensor, "N T h w D"]:
    """Blocks (colour, frame, y, x) of `num_frames` x 8 x 8 pixels, as the linear codec orders them."""
    count, _, frames, height, width = video.shape
    groups, rows, columns = frames // num_frames, height // BLOCK, width // BLOCK
    blocks = video.reshape(count, 3, groups, num_frames, rows, BLOCK, columns, BLOCK)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def frames_of_blocks(blocks: Float[Tensor, "N T h w D"], num_frames: int) -> Float[Tensor, "N 3 L H W"]:
    """The inverse of `blocks_of_frames`, differentiable."""
    count, groups, rows, columns, _ = blocks.shape
    blocks = blocks.reshape(count, groups, rows, columns, 3, num_frames, BLOCK, BLOCK)
    frames = blocks.permute(0, 4, 1, 5, 2, 6, 3, 7)
    return frames.reshape(count, 3, groups * num_frames, rows * BLOCK, columns * BLOCK)


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
