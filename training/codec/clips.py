"""Clips to train on: photographs that move, textures and cut-outs that move before them, and ray maps.

Motion is measured in pixels of a clip of 160 x 256 and grows with the clip's size. Everything is drawn from
one seed, so that a step's clips follow from its number.

Shape letters: B clips, L frames, H W image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, look_at, plucker_map, ray_grid
from training.codec.pictures import NUM_LEVELS, PictureStack, TrainingPictures, sample_pixels

STILL_SHARE = 0.12
"""Share of clips in which nothing moves."""
SLOWEST, FASTEST = 0.15, 7.0
"""Motion in pixels a frame, drawn evenly on a logarithmic scale."""
ZOOM = 0.02
"""Largest growth a frame."""
TURN = 0.008
"""Largest turn a frame, in radians."""
BEND = 0.6
"""Largest share of the motion by which parts of a photograph move faster or slower, as near and far do."""
MOST_LAYERS = 3
SHARPNESS = (0.6, 1.5)
"""Pixels of the stored picture for one of the clip: below 1 enlarged, above it reduced."""
LAYER_SIZES = (40.0, 300.0)
"""Sides of textures and cut-outs in pixels of a clip of 160 x 256."""
REFERENCE_PIXELS = 160 * 256


@dataclass(frozen=True)
class ClipShape:
    """What one batch looks like."""

    num_clips: int
    num_frames: int
    height: int
    width: int

    @property
    def scale(self) -> float:
        """Length of a pixel of 160 x 256 in pixels of this size."""
        return math.sqrt(self.height * self.width / REFERENCE_PIXELS)


class Draws:
    """Random numbers on one device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self._host = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers between `low` and `high`."""
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def logarithmic(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers between `low` and `high`, even on a logarithmic scale."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def indices(self, num: int, *shape: int) -> Tensor:
        """Whole numbers from 0 to `num` - 1."""
        return torch.randint(num, shape, generator=self.generator, device=self.device)

    def choice(self, num: int) -> int:
        """One whole number from 0 to `num` - 1 that the host knows without waiting for the device."""
        return int(torch.randint(num, (), generator=self._host))

    def number(self, low: float, high: float) -> float:
        """One number that the host knows."""
        return low + (high - low) * float(torch.rand((), generator=self._host))


@dataclass(frozen=True)
class Motion:
    """How a picture moves: a shift along a line, growth and a turn, each from 0 on."""

    shift: Float[Tensor, "B L 2"]
    """Pixels of the clip."""
    growth: Float[Tensor, "B L"]
    """Factors of size."""
    angle: Float[Tensor, "B L"]
    """Radians."""


def moving_pictures(pictures: TrainingPictures, shape: ClipShape, draws: Draws) -> Float[Tensor, "B 3 L H W"]:
    """Clips of photographs with up to three layers before them, colours from -1 to 1."""
    is_still = draws.uniform(0, 1, shape.num_clips) < STILL_SHARE
    motion = draw_motion(shape, draws, is_still)
    video = _photographs(pictures.photographs, shape, motion, draws)
    for _ in range(draws.choice(MOST_LAYERS + 1)):
        stack = pictures.cutouts if draws.choice(2) else pictures.textures
        video = _put_before(video, stack, shape, motion, is_still, draws)
    gain = draws.uniform(0.7, 1.05, shape.num_clips, 1, 1, 1, 1)
    return (video * gain * 2 - 1).clamp(-1, 1)


def draw_motion(shape: ClipShape, draws: Draws, is_still: Bool[Tensor, " B"]) -> Motion:
    """One motion for each clip, none where `is_still`."""
    count, last = shape.num_clips, max(shape.num_frames - 1, 1)
    steps = torch.arange(shape.num_frames, device=draws.device) / last
    # Motions speed up or slow down; `time` still counts frames.
    time = last * steps ** draws.uniform(0.7, 1.5, count, 1)
    time = torch.where(is_still[:, None], torch.zeros_like(time), time)
    speed = draws.logarithmic(SLOWEST, FASTEST, count, 1) * shape.scale
    heading = draws.uniform(0, 2 * math.pi, count, 1)
    direction = torch.stack([heading.cos(), heading.sin()], -1)
    growth = (draws.uniform(-ZOOM, ZOOM, count, 1) * time).exp()
    angle = draws.uniform(-1, 1, count, 1) ** 3 * TURN * time
    return Motion((speed * time)[..., None] * direction, growth, angle)


def _photographs(
    stack: PictureStack, shape: ClipShape, motion: Motion, draws: Draws
) -> Float[Tensor, "B 3 L H W"]:
    """Photographs from 0 to 1, the frames a window on them that moves, mirrored beyond their sides."""
    level = _photograph_level(stack, shape, draws)
    canvases, sizes = stack.take(draws.indices(len(stack), shape.num_clips), level)
    density = draws.uniform(*SHARPNESS, shape.num_clips, 1)
    frame_size = sizes.new_tensor([shape.width, shape.height])
    room = (sizes - density * frame_size).clamp(min=0) / 2
    centre = sizes / 2 + room * draws.uniform(-1, 1, shape.num_clips, 2)
    points = _window_points(shape, motion, draws) * density[:, :, None, None, None]
    is_mirrored = draws.indices(2, shape.num_clips, 1, 1, 1) * 2 - 1
    points = torch.stack([points[..., 0] * is_mirrored, points[..., 1]], -1)
    return sample_pixels(canvases, sizes, points + centre[:, None, None, None], "mirror").clamp(0, 1)


def _photograph_level(stack: PictureStack, shape: ClipShape, draws: Draws) -> int:
    """A level whose canvas is not much smaller than the clip, one for the batch."""
    side = stack.levels[0].shape[-1]
    fitting = [level for level in range(NUM_LEVELS) if side >> level >= 0.9 * max(shape.height, shape.width)]
    return draws.choice(max(len(fitting), 1))


def _window_points(shape: ClipShape, motion: Motion, draws: Draws) -> Float[Tensor, "B L H W 2"]:
    """Where each pixel of a moving window looks, in pixels of the clip from the window's first centre."""
    pixels = _pixels_from_centre(shape, draws.device)
    turned = _turn(pixels, motion.angle) * motion.growth[..., None, None, None]
    bends = functional.interpolate(
        draws.normal(shape.num_clips, 1, 3, 4),
        (shape.height, shape.width),
        mode="bicubic",
        align_corners=False,
    )
    share = 1 + draws.uniform(0, BEND, shape.num_clips, 1, 1, 1) * bends.tanh()
    return turned + motion.shift[:, :, None, None] * share[..., None]


def _put_before(
    video: Float[Tensor, "B 3 L H W"],
    stack: PictureStack,
    shape: ClipShape,
    behind: Motion,
    is_still: Bool[Tensor, " B"],
    draws: Draws,
) -> Float[Tensor, "B 3 L H W"]:
    """The clips with one texture or cut-out each laid over them, moving by itself."""
    count = shape.num_clips
    side = draws.number(math.log(LAYER_SIZES[0]), math.log(LAYER_SIZES[1]))
    side = math.exp(side) * shape.scale
    full_side = stack.levels[0].shape[-1]
    level = min(max(round(math.log2(full_side / side)), 0), NUM_LEVELS - 1)
    canvases, sizes = stack.take(draws.indices(len(stack), count), level)
    own = draw_motion(shape, draws, is_still)
    shift = own.shift * 0.5 + behind.shift * -draws.uniform(0.5, 2.0, count, 1, 1)
    start = draws.uniform(-0.5, 0.5, count, 1, 2) * sizes.new_tensor([shape.width, shape.height])
    pixels = _pixels_from_centre(shape, draws.device) - (start + shift)[:, :, None, None]
    wanted = side * draws.uniform(0.8, 1.25, count, 1) * own.growth
    density = (full_side >> level) / wanted
    angle = draws.uniform(-0.5, 0.5, count, 1) + own.angle * 3
    points = _turn(pixels, angle) * density[..., None, None, None] + sizes[:, None, None, None] / 2
    return _lay_over(video, canvases, sizes, points)


def _lay_over(
    video: Float[Tensor, "B 3 L H W"],
    canvases: Float[Tensor, "B 4 S S"],
    sizes: Float[Tensor, "B 2"],
    points: Float[Tensor, "B L H W 2"],
) -> Float[Tensor, "B 3 L H W"]:
    """Colours are multiplied by their opacity before sampling, or rims would show what lies hidden."""
    opacity = canvases[:, 3:]
    layer = sample_pixels(torch.cat([canvases[:, :3] * opacity, opacity], 1), sizes, points, "nothing")
    return video * (1 - layer[:, 3:].clamp(0, 1)) + layer[:, :3].clamp(0, 1)


def _pixels_from_centre(shape: ClipShape, device: torch.device) -> Float[Tensor, "1 1 H W 2"]:
    y = torch.arange(shape.height, device=device) + 0.5 - shape.height / 2
    x = torch.arange(shape.width, device=device) + 0.5 - shape.width / 2
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], -1)[None, None]


def _turn(points: Float[Tensor, "B L H W 2"], angle: Float[Tensor, "B L"]) -> Float[Tensor, "B L H W 2"]:
    cosine, sine = angle.cos()[..., None, None], angle.sin()[..., None, None]
    x, y = points.unbind(-1)
    return torch.stack([cosine * x - sine * y, sine * x + cosine * y], -1)


def moving_rays(shape: ClipShape, draws: Draws) -> Float[Tensor, "B 3 L H W"]:
    """Ray maps of cameras on the move: moments of half of the clips' paths, then directions; B even."""
    num_paths = shape.num_clips // 2
    time = torch.linspace(0, 1, shape.num_frames, device=draws.device)
    direction = functional.normalize(draws.normal(num_paths, 1, 3), dim=-1)
    reach = draws.logarithmic(0.1, 4.0, num_paths, 1, 1)
    centre = direction * reach * time[None, :, None]
    depth = reach[..., 0] * draws.uniform(1.5, 4.0, num_paths, 1)
    ahead = torch.stack([torch.zeros_like(depth), torch.zeros_like(depth), depth], -1)
    target = ahead + centre * draws.uniform(0, 1.2, num_paths, 1, 1)
    focal = draws.uniform(0.6, 1.5, num_paths) * max(shape.height, shape.width)
    middle = torch.tensor([shape.width / 2, shape.height / 2], device=draws.device).expand(num_paths, 2)
    intrinsics = torch.cat([focal[:, None], focal[:, None], middle], -1)
    cameras = CameraPath(
        look_at(centre, target.expand_as(centre)),
        intrinsics[:, None].expand(-1, shape.num_frames, -1),
        time.expand(num_paths, -1),
        shape.height,
        shape.width,
    )
    maps = plucker_map(ray_grid(cameras, shape.height, shape.width)).permute(0, 4, 1, 2, 3)
    return torch.cat([maps[:, :3], maps[:, 3:]])
