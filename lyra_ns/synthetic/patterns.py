"""Procedural textures: drawn at twice their size and averaged down, so that no edge is a staircase."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.synthetic.draws import Draws, generator_for

Pattern = Callable[[Draws, Tensor, Tensor], Tensor]


def fractal_noise(
    draws: Draws, size: int, coarsest: int = 4, octaves: int = 5, persistence: float = 0.55
) -> Float[Tensor, "size size"]:
    """Value noise from 0 to 1 whose octaves halve in size, from `coarsest` cells a side."""
    total = torch.zeros(1, 1, coarsest, coarsest)
    for octave in range(octaves):
        cells = coarsest * 2**octave
        total = functional.interpolate(total, (cells, cells), mode="bilinear", align_corners=False)
        total += persistence**octave * torch.rand(1, 1, cells, cells, generator=draws.generator)
    total = functional.interpolate(total, (size, size), mode="bilinear", align_corners=False)
    low, high = total.min(), total.max()
    return ((total - low) / (high - low))[0, 0]


def draw_pattern(seed: int, index: int, size: int, held_out: bool) -> Float[Tensor, "3 size size"]:
    """Pattern number `index` of a split; the held-out split has kinds of its own and other draws."""
    kinds = HELD_OUT_PATTERNS if held_out else TRAINING_PATTERNS
    draws = Draws(generator_for("pattern", seed, index, "held-out" if held_out else "training"))
    fine = torch.arange(2 * size) / (2 * size)
    v, u = torch.meshgrid(fine, fine, indexing="ij")
    image = kinds[index % len(kinds)](draws, u, v)
    grain = 0.12 * (fractal_noise(draws, 2 * size, coarsest=8) - 0.5)
    return functional.avg_pool2d((image + grain).clamp(0, 1)[None], 2)[0]


def _colour(draws: Draws) -> Tensor:
    """A colour [3, 1, 1], seldom garish."""
    grey, spread = draws.uniform(0.15, 0.9), draws.choice([0.08, 0.18, 0.35])
    return torch.tensor([grey + draws.uniform(-spread, spread) for _ in range(3)]).clamp(0, 1)[:, None, None]


def _blend(draws: Draws, mask: Tensor) -> Tensor:
    """Two colours mixed by a mask from 0 to 1."""
    return _colour(draws) * mask + _colour(draws) * (1 - mask)


def _stripes(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Stripes in any direction, of unequal widths."""
    angle, frequency = draws.uniform(0.0, math.pi), draws.uniform(3.0, 9.0)
    along = frequency * (u * math.cos(angle) + v * math.sin(angle)) % 1
    return _blend(draws, (along < draws.uniform(0.25, 0.7)).float())


def _checks(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Chequered tiles with joints."""
    count = draws.integer(3, 7)
    parity = ((u * count).floor() + (v * count).floor()) % 2
    joint = ((u * count % 1 < 0.04) | (v * count % 1 < 0.04)).float()
    return _blend(draws, parity) * (1 - joint) + _colour(draws) * joint


def _bricks(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Bricks in running bond, each of its own shade."""
    rows = draws.integer(5, 10)
    columns = max(2, rows // 2)
    row = (v * rows).floor()
    along = u * columns + 0.5 * (row % 2)
    shade = torch.rand(rows, columns + 1, generator=draws.generator)[
        row.long(), along.floor().long() % columns
    ]
    joint = ((along % 1 < 0.05) | (v * rows % 1 < 0.1)).float()
    return (_colour(draws) * (0.7 + 0.5 * shade)) * (1 - joint) + _colour(draws) * joint


def _planks(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Boards with grain along u."""
    count = draws.integer(4, 9)
    board = (v * count).floor().long()
    shade = torch.rand(count, generator=draws.generator)[board]
    fibres = fractal_noise(draws, len(u), coarsest=8)[:, :: draws.choice([6, 12])]
    grain = functional.interpolate(fibres[None, None], u.shape, mode="bilinear", align_corners=False)[0, 0]
    joint = (v * count % 1 < 0.04).float()
    return _colour(draws) * (0.6 + 0.35 * shade + 0.35 * grain) * (1 - 0.6 * joint)


def _noise(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Soft spots of three colours, as plaster, earth or lichen."""
    first = fractal_noise(draws, len(u), coarsest=draws.integer(3, 8), persistence=draws.uniform(0.5, 0.8))
    second = fractal_noise(draws, len(u), coarsest=draws.integer(2, 6))
    return _blend(draws, first) * (0.6 + 0.4 * second) + 0.2 * _colour(draws) * second


def _gradient(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """A slow change between two colours."""
    angle = draws.uniform(0.0, 2.0 * math.pi)
    return _blend(draws, (0.5 + (u - 0.5) * math.cos(angle) + (v - 0.5) * math.sin(angle)).clamp(0, 1))


def _marble(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Veins: a sine bent by noise."""
    bent = fractal_noise(draws, len(u), coarsest=3)
    wave = torch.sin(2 * math.pi * (draws.uniform(1.0, 4.0) * u + draws.uniform(1.0, 4.0) * v + 2.5 * bent))
    return _blend(draws, wave.abs().sqrt())


def _dots(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Round dots, every other row shifted."""
    count, radius = draws.integer(4, 8), draws.uniform(0.2, 0.4)
    row = (v * count).floor()
    inside = ((u * count + 0.5 * (row % 2)) % 1 - 0.5).square() + (v * count % 1 - 0.5).square() < radius**2
    return _blend(draws, inside.float())


def _rings(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Growth rings about a point, bent by noise."""
    x, y = u - draws.uniform(0.0, 1.0), v - draws.uniform(0.0, 1.0)
    radius = (x.square() + y.square()).sqrt() + 0.08 * fractal_noise(draws, len(u), coarsest=3)
    return _blend(draws, 0.5 + 0.5 * torch.sin(2 * math.pi * draws.uniform(5.0, 12.0) * radius))


def _weave(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Cloth: bands of two directions, one over the other by turns."""
    count = draws.integer(4, 8)
    over = ((u * count).floor() + (v * count).floor()) % 2
    warp, weft = torch.sin(math.pi * (u * count % 1)), torch.sin(math.pi * (v * count % 1))
    return _colour(draws) * warp * over + _colour(draws) * weft * (1 - over) + 0.15


def _zigzags(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Zigzag bands with joints."""
    count = draws.uniform(3.0, 6.0)
    distances = []
    for shift in (0.0, 0.5):
        x = (u * count + shift) % 1 - 0.5
        y = (v * count / math.sqrt(3) + shift) % 1 - 0.5
        distances.append(x.square() + 3 * y.square())
    edge = (distances[0] - distances[1]).abs()
    joint = (edge < 0.05).float()
    return _blend(draws, (distances[0] < distances[1]).float()) * (1 - joint) + _colour(draws) * joint


TRAINING_PATTERNS: tuple[Pattern, ...] = (
    _stripes, _checks, _bricks, _planks, _noise, _marble, _gradient, _dots,
)  # fmt: skip
HELD_OUT_PATTERNS: tuple[Pattern, ...] = (
    _rings, _weave, _zigzags, _bricks, _noise, _planks, _marble, _stripes,
)  # fmt: skip
