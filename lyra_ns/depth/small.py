"""A small network that guesses depth up to scale from one photograph, trained on procedural scenes only.

Small and soft: it knows rooms, open grounds and solid objects, not people or plants. Take MoGe or DepthPro
where quality counts. Beside the picture it sees features of the frozen AlexNet trunk that ships for LPIPS,
which were learned on real photographs; they are read from that file and are no part of this one. Its small
map is brought to the size of the photograph so that its edges lie on the photograph's, by joint bilateral
upsampling: J. Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007. How it was made:
training/small_depth.

Shape letters: N images, H W image, h w working size, C channels.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from lyra_ns.data.atomic import write_whole
from lyra_ns.depth.base import DepthPrediction, checked_image
from lyra_ns.ops.lpips import find_lpips_trunk

RADIUS = 2
"""Neighbours on each side, in cells of the small map."""
SPATIAL_SIGMA = 1.0
"""Reach of the weights, in cells of the small map."""
COLOUR_SIGMA = 0.06
"""Difference of colours (root of the summed squares) at which a neighbour counts little."""
LEAST_WEIGHT = 1e-4
"""Share of the purely spatial weight that every neighbour keeps, where no colour matches."""


def upsample_by_colour(
    values: Float[Tensor, "h w"], small: Float[Tensor, "3 h w"], image: Float[Tensor, "3 H W"]
) -> Float[Tensor, "H W"]:
    """`values` at the size of `image`, each the mean of near cells weighed by likeness of colour.

    `small` is the image at the size of the values.
    """
    height, width = image.shape[1:]
    cells = functional.pad(torch.cat([values[None], small])[None], (RADIUS,) * 4, mode="replicate")[0]
    row, row_offset = _nearest_cells(height, values.shape[0], image)
    column, column_offset = _nearest_cells(width, values.shape[1], image)
    total, weights = torch.zeros_like(image[0]), torch.zeros_like(image[0])
    for down in range(2 * RADIUS + 1):
        for right in range(2 * RADIUS + 1):
            near = cells[:, row + down][:, :, column + right]
            distance = (row_offset + down - RADIUS).square()[:, None] + (
                column_offset + right - RADIUS
            ).square()
            likeness = torch.exp((near[1:] - image).square().sum(0) * (-0.5 / COLOUR_SIGMA**2))
            weight = torch.exp(distance * (-0.5 / SPATIAL_SIGMA**2)) * (likeness + LEAST_WEIGHT)
            total += weight * near[0]
            weights += weight
    return total / weights


def _nearest_cells(length: int, num_cells: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel along a side the nearest cell, and where that cell's centre lies from it in cells."""
    place = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) * (num_cells / length) - 0.5
    nearest = place.round().clamp(0, num_cells - 1)
    return nearest.long(), nearest - place


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input is led."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = norm(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.gelu(self.first_norm(self.first(x)))
        return functional.gelu(x + self.second_norm(self.second(inner)))


class WideBlock(nn.Module):
    """A 5 x 5 convolution of each channel, then a hidden layer three times as wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        self.norm = norm(channels)
        self.widen = nn.Conv2d(channels, 3 * channels, 1)
        self.narrow = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(functional.gelu(self.widen(self.norm(self.spatial(x)))))


class Attention(nn.Module):
    """Attention of every cell to every cell."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = norm(channels)
        self.read = nn.Conv2d(channels, 3 * channels, 1)
        self.write = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        heads = self.read(self.norm(x)).flatten(2).unflatten(1, (3, self.num_heads, -1))
        query, key, value = heads.transpose(-1, -2).contiguous().unbind(1)
        found = functional.scaled_dot_product_attention(query, key, value)
        return x + self.write(found.transpose(-1, -2).flatten(1, 2).unflatten(-1, (height, width)))


class Merge(nn.Module):
    """Brings coarse features up by two and joins them with finer ones."""

    def __init__(self, coarse: int, fine: int, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(coarse, channels, 1)
        self.fine = nn.Conv2d(fine, channels, 1, bias=False)
        self.block = ConvBlock(channels)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        up = functional.interpolate(self.coarse(coarse), scale_factor=2.0, mode="bilinear")
        return self.block(up + self.fine(fine))


FORMAT = "lyra_ns small depth network 1"
SHIPPED_WEIGHTS = "depth_small.safetensors"
STRIDE = 32
"""Sides of pictures are multiples of this."""
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""Colours that the AlexNet trunk was trained with, per channel."""
TRUNK_CHANNELS = (64, 192, 256)
"""Channels of the trunk's features at a quarter, an eighth and a sixteenth of the picture."""
KEPT_CONTRAST = 0.6
"""Power of the predicted depth, whose median is 1.

On pictures unlike those that it was trained on the network overdoes distances; this value serves held-out
scenes of both generators best, and was not chosen on photographs.
"""


@dataclass(frozen=True)
class SmallDepthConfig:
    """Sizes of the network."""

    channels: tuple[int, int, int, int, int] = (24, 48, 80, 128, 192)
    """Channels at 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture; multiples of 8."""
    blocks: tuple[int, int, int, int] = (2, 2, 3, 2)
    """Residual blocks at 1/4 to 1/32."""
    num_heads: int = 6
    """Heads of the attention at 1/32."""
    use_trunk: bool = True
    """Whether the network sees the features of the AlexNet trunk."""
    working_pixels: int = 256 * 192
    """Pixels of the pictures that it was trained on; others are resized to about as many."""


class _Trunk:
    """The frozen convolutions of AlexNet; no module, so that no state dict takes them in."""

    def __init__(self) -> None:
        self._weights = find_lpips_trunk("alex").weights

    def features(self, images: Float[Tensor, "N 3 h w"]) -> list[Tensor]:
        """Features at 1/4, 1/8 and 1/16; padded so that these sizes come out exactly."""
        x = functional.pad(images, (3, 4, 3, 4))
        first = functional.relu(self._convolved(x, 0, stride=4))
        x = functional.max_pool2d(first, 3, stride=2, padding=1)
        second = functional.relu(self._convolved(x, 3, padding=2))
        x = functional.max_pool2d(second, 3, stride=2, padding=1)
        for layer in (6, 8, 10):
            x = functional.relu(self._convolved(x, layer, padding=1))
        return [first, second, x]

    def _convolved(self, x: Tensor, layer: int, stride: int = 1, padding: int = 0) -> Tensor:
        keys = [f"features.{layer}.{kind}" for kind in ("weight", "bias")]
        for key in keys:
            if self._weights[key].device != x.device:
                self._weights[key] = self._weights[key].to(x.device)
        weight, bias = (self._weights[key] for key in keys)
        return functional.conv2d(x, weight, bias, stride=stride, padding=padding)


class SmallDepthNetwork(nn.Module):
    """From pictures to log depth up to a constant."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, config: SmallDepthConfig | None = None) -> None:
        """Random weights; the trunk is read from its file where the configuration asks for it."""
        super().__init__()
        self.config = config = config or SmallDepthConfig()
        half, *coarser = config.channels
        self.stem = nn.Sequential(
            nn.Conv2d(5, half, 3, stride=2, padding=1, bias=False), norm(half), nn.GELU()
        )
        self.downs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), norm(after), nn.GELU()
            )
            for before, after in zip(config.channels, coarser, strict=False)
        )
        self.stages = nn.ModuleList(
            _stage(level, channels, count, config.num_heads)
            for level, (channels, count) in enumerate(zip(coarser, config.blocks, strict=True))
        )
        self.trunk_inputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(given, own, 1, bias=False), norm(own))
            for given, own in zip(TRUNK_CHANNELS, coarser, strict=False)
            if config.use_trunk
        )
        joined = (config.channels[4], 96, 64, 48, 32)
        self.merges = nn.ModuleList(Merge(joined[k], config.channels[3 - k], joined[k + 1]) for k in range(4))
        self.detail = nn.Conv2d(5, 16, 3, padding=1, bias=False)
        self.last_up = nn.Conv2d(joined[4], 16, 1)
        self.last_norm = norm(16)
        self.head = nn.Conv2d(16, 1, 3, padding=1)
        self._trunk = _Trunk() if config.use_trunk else None
        for name, values in (("_mean", IMAGE_MEAN), ("_std", IMAGE_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, images: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N h w"]:
        """Log of the z-depth up to a constant, for images from 0 to 1 whose sides are multiples of 32."""
        colours = (images - self._mean) / self._std
        with_place = torch.cat([colours, _places(colours)], 1)
        levels = [self.stem(with_place)]
        given = self._trunk_features(colours)
        for level, (down, stage) in enumerate(zip(self.downs, self.stages, strict=True)):
            x = down(levels[-1])
            if level < len(given):
                x = x + self.trunk_inputs[level](given[level])
            levels.append(stage(x))
        x = levels[-1]
        for merge, finer in zip(self.merges, reversed(levels[:-1]), strict=True):
            x = merge(x, finer)
        up = functional.interpolate(self.last_up(x), scale_factor=2.0, mode="bilinear")
        x = functional.gelu(self.last_norm(up + self.detail(with_place)))
        return self.head(x)[:, 0].float()

    @torch.no_grad()
    def _trunk_features(self, colours: Tensor) -> list[Tensor]:
        return self._trunk.features(colours) if self._trunk else []


def _stage(level: int, channels: int, count: int, num_heads: int) -> nn.Sequential:
    """The blocks of one size: dense convolutions where there are few channels, attention at the coarsest."""
    if level < 2:
        return nn.Sequential(*(ConvBlock(channels) for _ in range(count)))
    if level == 2:
        return nn.Sequential(*(WideBlock(channels) for _ in range(count)))
    pairs = ((WideBlock(channels), Attention(channels, num_heads)) for _ in range(count))
    return nn.Sequential(*(block for pair in pairs for block in pair))


def _places(images: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N 2 h w"]:
    """Across and down of each pixel from the middle, the longer side from -1 to 1."""
    height, width = images.shape[2:]
    longer = max(height, width)
    x = (torch.arange(width, device=images.device, dtype=images.dtype) + 0.5 - width / 2) * (2 / longer)
    y = (torch.arange(height, device=images.device, dtype=images.dtype) + 0.5 - height / 2) * (2 / longer)
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return grid.expand(len(images), -1, -1, -1)


@dataclass(frozen=True)
class SmallDepth:
    """Depth by the small network: relative, soft, median 1; no camera."""

    network: SmallDepthNetwork
    """The network, in evaluation mode."""
    contrast: float = KEPT_CONTRAST
    """Power of the predicted depth; 1 takes it as it is."""

    @property
    def name(self) -> str:
        """`small`."""
        return "small"

    @torch.inference_mode()
    def predict(
        self, image: Float[Tensor, "3 H W"], intrinsics: Float[Tensor, " 4"] | None = None
    ) -> DepthPrediction:
        """z-depth with median 1, known everywhere (sky is merely far); intrinsics as given.

        The mean of the picture and its mirror image, brought to the image's size along its edges.
        """
        image = checked_image(image)
        device = next(self.network.parameters()).device
        own = image.float().to(device)[None]
        size = working_size(image.shape[1], image.shape[2], self.network.config.working_pixels)
        small = functional.interpolate(own, size, mode="bilinear", antialias=True).clamp(0, 1)
        straight, mirrored = self.network(torch.cat([small, small.flip(-1)]))
        log_depth = (straight + mirrored.flip(-1)) / 2
        log_depth = upsample_by_colour(log_depth, small[0], own[0])
        depth = (self.contrast * (log_depth - log_depth.median())).exp().to(image.device)
        return DepthPrediction(
            depth, intrinsics, is_metric=False, has_training_units=False, estimator=self.name
        )


def working_size(height: int, width: int, num_pixels: int) -> tuple[int, int]:
    """Height and width that the network takes: multiples of 32, the image's aspect, about `num_pixels`."""
    scale = math.sqrt(num_pixels / (height * width))
    rows, columns = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in (height, width))
    return rows, columns


def save_small_depth(network: SmallDepthNetwork, path: Path) -> None:
    """Writes the network as float16 safetensors with its configuration inside."""
    tensors = {key: value.detach().cpu().half().contiguous() for key, value in network.state_dict().items()}
    write_whole(path, save(tensors, {"format": FORMAT, "config": json.dumps(asdict(network.config))}))


def load_small_depth(device: torch.device | str = "cpu", path: Path | None = None) -> SmallDepth:
    """The network in `path`, or the one that ships; FileNotFoundError or ValueError where there is none."""
    path = path or Path(str(files("lyra_ns.weights").joinpath(SHIPPED_WEIGHTS)))
    if not path.is_file():
        raise FileNotFoundError(
            f"expected weights of the small depth network at {path}, found none: train them with "
            f"`python -m training.small_depth.train --output {path}`, or choose another source"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        network = SmallDepthNetwork(_config_from_json(metadata["config"]))
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} holds no small depth network ({reason}): train it again") from error
    return SmallDepth(network.to(device).eval().requires_grad_(False))


def _config_from_json(text: str) -> SmallDepthConfig:
    stored: dict[str, Any] = json.loads(text)
    lists: dict[str, Any] = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
    return SmallDepthConfig(**(stored | lists))
