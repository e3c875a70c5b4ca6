"""What the small depth network is trained on: a pool of rendered scenes that is renewed all the time.

Batches are random crops of the pool, made more like photographs: exposure, colour cast, uneven light, blur,
shallow focus, noise. Nothing waits for the device.

Shape letters: N images, s side of stored images, h w size of a batch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.synthetic.render import build_atlas
from lyra_ns.synthetic.textures import TextureBank, packaged_textures
from training.small_depth.groups import build_groups
from training.small_depth.rendering import render_scenes
from training.small_depth.scenes import BatchDraws, SceneDrawer

FARTHEST = 10.0
"""Depths are cut at this many times the median of what is no sky; the sky lies there."""
MEDIAN_STRIDE = 4
"""Every so many pixels along each side count for that median."""
BATCH_SHAPES = ((192, 256), (192, 256), (224, 224), (256, 192))
"""Height and width of batches, drawn alike often; about equally many pixels, multiples of 32."""
SMALLEST_CROP = 0.55
"""Least longer side of a crop over the side of a stored image."""


@dataclass(frozen=True)
class DepthBatch:
    """Pictures and what the network is to say."""

    rgb: Float[Tensor, "N 3 h w"]
    """Colours from 0 to 1."""
    log_depth: Float[Tensor, "N h w"]
    """Log of the z-depth, cut at `FARTHEST` times its median."""


class SceneSource:
    """Renders random scenes on one device."""

    def __init__(
        self,
        device: torch.device | str,
        seed: int,
        *,
        held_out: bool,
        num_groups: int = 2000,
        bank: TextureBank | None = None,
    ) -> None:
        """`held_out` takes the pictures of the bank (None: the packaged one) that no training scene shows."""
        bank = bank or packaged_textures()
        textures = bank.indices(held_out, True) + bank.indices(held_out, False)
        groups = build_groups(num_groups, seed)
        self.device = torch.device(device)
        self.drawer = SceneDrawer(groups, textures, self.device)
        self.atlas = build_atlas(bank.images.to(self.device).float() / 255)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def render(self, count: int, size: int) -> tuple[Float[Tensor, "N 3 s s"], Float[Tensor, "N s s"]]:
        """Images and log depths of new scenes."""
        rendered = render_scenes(self.drawer.draw(count, self.generator), self.atlas, size)
        return rendered.rgb, capped_log_depth(rendered.depth, rendered.is_sky)


def capped_log_depth(depth: Float[Tensor, "N s s"], is_sky: Bool[Tensor, "N s s"]) -> Float[Tensor, "N s s"]:
    """Log depth, no farther than `FARTHEST` medians of what is no sky, which is where the sky lies."""
    coarse, sky = (x[:, ::MEDIAN_STRIDE, ::MEDIAN_STRIDE].flatten(1) for x in (depth, is_sky))
    ordered = torch.where(sky, torch.inf, coarse).sort(-1).values
    middle = ((~sky).sum(-1, keepdim=True) - 1).clamp(min=0) // 2
    cap = (FARTHEST * ordered.gather(-1, middle)).clamp(max=1e4)[..., None]
    return torch.where(is_sky, cap, torch.minimum(depth, cap)).log()


class ScenePool:
    """Rendered scenes from which batches are cut; the oldest make room for new ones."""

    def __init__(self, source: SceneSource, num_images: int, size: int, at_once: int) -> None:
        """`num_images` images of `size` pixels a side, rendered `at_once` at a time (a divisor)."""
        if num_images % at_once:
            raise ValueError(
                f"expected a pool of a multiple of {at_once} images, which are rendered at once, "
                f"found {num_images}"
            )
        self.source, self.size, self.at_once = source, size, at_once
        device = source.device
        self._rgb = torch.empty(num_images, 3, size, size, dtype=torch.uint8, device=device)
        self._log_depth = torch.empty(num_images, size, size, dtype=torch.float16, device=device)
        self._oldest = 0
        for _ in range(num_images // at_once):
            self.renew()

    def renew(self) -> None:
        """Replaces the oldest images by new ones."""
        rgb, log_depth = self.source.render(self.at_once, self.size)
        here = slice(self._oldest, self._oldest + self.at_once)
        self._rgb[here] = (rgb * 255).round().to(torch.uint8)
        self._log_depth[here] = log_depth.half()
        self._oldest = (self._oldest + self.at_once) % len(self._rgb)

    def batch(self, count: int, shape: tuple[int, int]) -> DepthBatch:
        """Random crops, half of them mirrored, brought to a shape and made like photographs."""
        draws = BatchDraws(count, self.source.generator)
        chosen = draws.integer(len(self._rgb))
        grid = _crop_grid(draws, shape)
        rgb = self._rgb.index_select(0, chosen).float() / 255
        log_depth = self._log_depth.index_select(0, chosen).float()[:, None]
        rgb = functional.grid_sample(rgb, grid, mode="bilinear", padding_mode="border", align_corners=False)
        log_depth = functional.grid_sample(
            log_depth, grid, mode="nearest", padding_mode="border", align_corners=False
        )
        return DepthBatch(like_photographs(draws, rgb, log_depth), log_depth[:, 0])


def draw_shape(choice: random.Random) -> tuple[int, int]:
    """Height and width of a batch."""
    return choice.choice(BATCH_SHAPES)


def _crop_grid(draws: BatchDraws, shape: tuple[int, int]) -> Float[Tensor, "N h w 2"]:
    """Where the pixels of random crops lie in stored images."""
    longer = 1 - (1 - SMALLEST_CROP) * draws.uniform(0.0, 1.0).square()
    wide, tall = (longer * side / max(shape) for side in (shape[1], shape[0]))
    left, top = ((1 - share) * draws.uniform(-1.0, 1.0) for share in (wide, tall))
    mirror = torch.where(draws.chance(0.5), -1.0, 1.0)
    zero = torch.zeros_like(longer)
    rows = torch.stack([wide * mirror, zero, left, zero, tall, top], -1).unflatten(-1, (2, 3))
    return functional.affine_grid(rows, [draws.count, 3, *shape], align_corners=False)


@torch.no_grad()
def like_photographs(
    draws: BatchDraws, rgb: Float[Tensor, "N 3 h w"], log_depth: Float[Tensor, "N 1 h w"]
) -> Float[Tensor, "N 3 h w"]:
    """The images under other light and through worse lenses and sensors."""
    size = (rgb.shape[2], rgb.shape[3])
    rgb = rgb * _uneven_light(draws, size)
    rgb = _defocused(draws, _exposed(draws, rgb), log_depth)
    grey = rgb.mean(1, keepdim=True)
    saturation = torch.where(draws.chance(0.06), 0.0, draws.uniform(0.5, 1.3))[:, None, None, None]
    rgb = grey + saturation * (rgb - grey)
    contrast, bright = draws.uniform(0.7, 1.3, 1, 1, 1), draws.normal(0.0, 0.06, 1, 1, 1)
    cast = (0.08 * draws.normal(0.0, 1.0, 3, 1, 1)).exp()
    rgb = ((rgb * cast - 0.5) * contrast + 0.5 + bright).clamp(1e-3, 1)
    rgb = rgb ** draws.normal(0.0, 0.25, 1, 1, 1).exp()
    strength = torch.where(draws.chance(0.4), draws.uniform(0.0, 0.03), 0.004)[:, None, None, None]
    fine, coarse = draws.normal(0.0, 1.0, 3, *size), draws.normal(0.0, 1.0, 3, size[0] // 2, size[1] // 2)
    noise = fine + functional.interpolate(coarse, size, mode="bilinear")
    return (rgb + strength * noise).clamp(0, 1)


def _uneven_light(draws: BatchDraws, size: tuple[int, int]) -> Float[Tensor, "N 1 h w"]:
    """A smooth change of light, darker corners, and shadows with sharp edges."""
    smooth = functional.interpolate(draws.normal(0.0, 0.3, 1, 3, 4), size, mode="bicubic")
    smooth = smooth * draws.chance(0.5)[:, None, None, None]
    shadow = functional.interpolate(draws.normal(0.0, 1.0, 1, 5, 6), size, mode="bicubic")
    edge = torch.sigmoid((shadow - 0.4) * draws.log_uniform(5.0, 60.0, 1, 1, 1))
    depth = torch.where(draws.chance(0.25), draws.uniform(0.2, 0.6), 0.0)[:, None, None, None]
    y, x = (torch.linspace(-1, 1, side, device=smooth.device) for side in size)
    corners = (x.square() + y.square()[:, None]) * draws.uniform(0.0, 0.2, 1, 1, 1)
    return smooth.exp() * (1 - depth * edge) * (1 - corners)


def _exposed(draws: BatchDraws, rgb: Tensor) -> Float[Tensor, "N 3 h w"]:
    """Images of ordinary mean brightness, as cameras make them."""
    mean = rgb.mean((1, 2, 3), keepdim=True)
    return rgb * (draws.uniform(0.3, 0.55, 1, 1, 1) / mean).clamp(0.5, 4.0)


def _defocused(draws: BatchDraws, rgb: Tensor, log_depth: Tensor) -> Float[Tensor, "N 3 h w"]:
    """Images that are a little soft all over, or sharp at one depth only."""
    soft = _blurred(rgb, 1.0)
    softer = _blurred(soft, 2.5)
    share = torch.where(draws.chance(0.6), draws.uniform(0.0, 1.0), 0.0)[:, None, None, None]
    share = share * torch.where(draws.chance(0.15), 2.0, 1.0)[:, None, None, None]
    inverse = (log_depth.amin((1, 2, 3), keepdim=True) - log_depth).exp()
    off_focus = (inverse - draws.uniform(0.0, 1.0, 1, 1, 1)).abs() * draws.uniform(1.0, 6.0, 1, 1, 1)
    shallow = torch.where(draws.chance(0.2), 1.0, 0.0)[:, None, None, None]
    share = torch.maximum(share, shallow * off_focus).clamp(max=2)
    near, far = share.clamp(max=1), (share - 1).clamp(min=0)
    return rgb + near * (soft - rgb) + far * (softer - soft)


def _blurred(rgb: Float[Tensor, "N 3 h w"], sigma: float) -> Float[Tensor, "N 3 h w"]:
    """Gaussian blur."""
    reach = round(2.5 * sigma)
    steps = torch.arange(-reach, reach + 1, device=rgb.device, dtype=rgb.dtype)
    weights = torch.exp(-0.5 * (steps / sigma).square())
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    across = functional.conv2d(functional.pad(rgb, (reach, reach, 0, 0), "replicate"), weights, groups=3)
    padded = functional.pad(across, (0, 0, reach, reach), "replicate")
    return functional.conv2d(padded, weights.transpose(-1, -2), groups=3)
