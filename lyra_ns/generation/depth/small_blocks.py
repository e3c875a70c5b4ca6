"""Parts of the small depth network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


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
