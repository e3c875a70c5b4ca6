"""Training scenes of single photographs: a Gaussian a pixel by the depth that ships, seen along six paths.

That is the paper's self-distillation with the teacher that everybody has. Sometimes cut-outs stand before the
photograph: behind them lies the photograph itself, so that what appears at their edges is true.

Shape letters: V trajectories, L frames, F fine views, H W image.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.cache3d.inpaint import background_weights, fill_holes
from lyra_ns.camera_paths import TRAJECTORIES, trajectory_path
from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.codec.base import VideoCodec
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.depth.base import DepthPrediction
from lyra_ns.evaluation.baselines import COVERED_ALPHA, WARP_SETTINGS, pixel_gaussians
from lyra_ns.gaussians import Gaussians, concatenate
from lyra_ns.rendering import render
from training.decoder.scenes import FINE_SCALE, TrainingScene, complete_scene

NEAREST_UNIT = 1.3
"""Nothing but a few pixels may lie nearer: the decoder's Gaussians begin at distance 1."""
NEAR_QUANTILE = 0.05
"""Share of the pixels that may be nearer than what is called near here."""
CLEAR_SHARE = 0.7
"""Paths are shortened where near things are nearer than this share of the median depth."""
BLURS = (WARP_SETTINGS.dilation, 0.3)
"""Dilations of the splats: sharp, and as soft as others draw them."""


class ReadsDepth(Protocol):
    """An estimator of depth."""

    def predict(
        self, image: Float[Tensor, "3 H W"], intrinsics: Float[Tensor, " 4"] | None = None
    ) -> DepthPrediction:
        """Depth of one picture."""
        ...


@dataclass(frozen=True)
class PhotographRecipe:
    """How a scene is made out of a photograph."""

    height: int
    """Of the clips, in pixels."""
    width: int
    """Of the clips, in pixels."""
    num_frames: int = 17
    """Of a clip."""
    focal_length: float = 0.9
    """In widths."""
    unit: float = 4.5
    """Median depth in units of length; more where near things would come too near."""
    path_share: float = 0.5
    """Lengths of the paths: 0 the shortest of the official ranges, 1 the longest."""
    path_factor: float = 1.0
    """Makes all paths so many times as long."""
    crop: tuple[float, float, float] = (1.0, 0.5, 0.5)
    """Share of the largest fitting window that is cut out, and where its top and left are, 0 to 1."""
    is_mirrored: bool = False
    """Left becomes right."""
    blur: float = BLURS[0]
    """Dilation of the splats."""
    cutouts: tuple[tuple[int, float, float, float, float], ...] = ()
    """Number of a cut-out, its height and its place down and across (shares of the picture), and its depth as
    a share of that of the photograph behind it."""


def draw_recipe(draws: random.Random, size: tuple[int, int], num_cutouts: int) -> PhotographRecipe:
    """A random recipe for clips of this height and width."""
    longest = 1.4 * max(1.0, size[0] / size[1])
    chosen = draws.choices((0, 1, 2), (0.65, 0.25, 0.1))[0] if num_cutouts else 0
    return PhotographRecipe(
        *size,
        focal_length=0.65 * (longest / 0.65) ** draws.random(),
        unit=draws.uniform(2.5, 7.5),
        path_share=draws.random(),
        path_factor=draws.choice((1.0, draws.uniform(0.4, 1.0))),
        crop=(draws.uniform(0.6, 1.0), draws.random(), draws.random()),
        is_mirrored=draws.random() < 0.5,
        blur=draws.choice(BLURS),
        cutouts=tuple(
            (draws.randrange(num_cutouts), draws.uniform(0.25, 0.7), draws.random(), draws.random(),
             draws.uniform(0.45, 0.85))
            for _ in range(chosen)
        ),
    )  # fmt: skip


@torch.no_grad()
def photograph_scene(
    photograph: UInt8[Tensor, "3 h w"],
    recipe: PhotographRecipe,
    depth_of: ReadsDepth,
    codec: VideoCodec,
    cutouts: list[UInt8[Tensor, "4 a b"]] | None = None,
    num_fine: int = 3,
    draws: random.Random | None = None,
) -> TrainingScene:
    """The scene that the recipe makes of a photograph, on its device."""
    draws = draws or random.Random(0)
    device = photograph.device
    fine_size = recipe.height * FINE_SCALE, recipe.width * FINE_SCALE
    picture = _window(photograph, recipe, fine_size)
    lens = torch.tensor(
        [recipe.focal_length * recipe.width] * 2 + [recipe.width / 2, recipe.height / 2], device=device
    )
    camera = CameraPath(
        torch.eye(4, device=device), lens, torch.zeros((), device=device), recipe.height, recipe.width
    ).resized(*fine_size)
    depth = depth_of.predict(picture, camera.intrinsics).depth
    near_share = float(depth.flatten().kthvalue(max(1, int(NEAR_QUANTILE * depth.numel()))).values)
    unit = max(recipe.unit, NEAREST_UNIT / near_share)
    splats = pixel_gaussians(picture.movedim(0, -1), depth * unit, camera)
    splats = concatenate(
        [splats, *(_cutout(cutouts[row[0]], row, depth * unit, camera) for row in recipe.cutouts if cutouts)]
    )
    cameras = _paths(recipe, unit, near_share, lens.cpu()).to(device)
    rgb, seen_depth = _seen(splats, cameras.reshape(-1), recipe.blur)
    frames = [draws.randrange(cameras.shape[0] * cameras.shape[1]) for _ in range(num_fine - 1)]
    fine_cameras = cameras.reshape(-1)[[0, *frames]].resized(*fine_size)
    fine_rgb, _ = _seen(splats, fine_cameras, WARP_SETTINGS.dilation)
    if not recipe.cutouts:  # The photograph itself, as `generate` shows it.
        fine_rgb[0] = picture
        rgb.unflatten(0, cameras.shape)[:, 0] = functional.interpolate(
            picture[None], rgb.shape[-2:], mode="bilinear", antialias=True
        )
    return complete_scene(
        _to_uint8(rgb).unflatten(0, cameras.shape),
        seen_depth.unflatten(0, cameras.shape),
        cameras,
        _to_uint8(fine_rgb),
        fine_cameras.camera_to_world,
        codec,
    )


def _window(
    photograph: UInt8[Tensor, "3 h w"], recipe: PhotographRecipe, size: tuple[int, int]
) -> Float[Tensor, "3 H W"]:
    """The cut-out part of the photograph at the given size, 0 to 1."""
    share, down, across = recipe.crop
    height, width = photograph.shape[1:]
    ratio = min(height / size[0], width / size[1]) * share
    rows, columns = int(size[0] * ratio), int(size[1] * ratio)
    top, left = int((height - rows) * down), int((width - columns) * across)
    window = photograph[None, :, top : top + rows, left : left + columns].float() / 255
    window = functional.interpolate(window, size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    return window.flip(-1) if recipe.is_mirrored else window


def _cutout(
    picture: UInt8[Tensor, "4 a b"],
    place: tuple[int, float, float, float, float],
    depth: Float[Tensor, "H W"],
    camera: CameraPath,
) -> Gaussians:
    """A cut-out that stands upright before what is behind its foot, one Gaussian per pixel."""
    _, share, down, across, nearer = place
    height, width = depth.shape
    rows = min(height, max(16, int(share * height)))
    columns = min(width, max(16, int(rows * picture.shape[2] / picture.shape[1])))
    top, left = int((height - rows) * down), int((width - columns) * across)
    small = functional.interpolate(
        picture[None].float() / 255, (rows, columns), mode="bilinear", antialias=True
    )[0]
    behind = depth[top : top + rows, left : left + columns]
    nearest = float(behind.flatten().kthvalue(max(1, behind.numel() // 10)).values)
    own = torch.zeros_like(depth)
    own[top : top + rows, left : left + columns] = max(NEAREST_UNIT, nearer * nearest) * (small[3] > 0.5)
    colours = torch.zeros(height, width, 3, device=depth.device)
    colours[top : top + rows, left : left + columns] = small[:3].movedim(0, -1)
    return pixel_gaussians(colours, own, camera)


def _paths(recipe: PhotographRecipe, unit: float, near_share: float, lens: Float[Tensor, " 4"]) -> CameraPath:
    """The six paths [V, L] in the order in which they are read; shorter where something near stands."""
    shortened = min(1.0, near_share / CLEAR_SHARE) * recipe.path_factor
    paths = []
    for trajectory in READING_ORDER:
        shortest, longest = TRAJECTORIES[trajectory].distance_range
        distance = (shortest + (longest - shortest) * recipe.path_share) * shortened
        paths.append(
            trajectory_path(
                trajectory, distance, centre_depth=unit, num_frames=recipe.num_frames, intrinsics=lens,
                height=recipe.height, width=recipe.width,
            )
        )  # fmt: skip
    return stack_cameras(paths)


def _seen(
    splats: Gaussians, cameras: CameraPath, dilation: float
) -> tuple[Float[Tensor, "N 3 H W"], Float[Tensor, "N H W"]]:
    """Frames and z-depth with what no pixel reaches inpainted from the far side."""
    seen = render(splats, cameras, replace(WARP_SETTINGS, dilation=dilation))
    rgb = (seen.rgb / seen.alpha[..., None].clamp(min=0.05)).clamp(0, 1).movedim(-1, 1)
    known = (seen.alpha > COVERED_ALPHA)[:, None]
    weights = background_weights(torch.where(known, seen.depth[:, None], 0.0))
    depth = fill_holes(seen.depth[:, None], weights)[:, 0]
    return fill_holes(rgb, weights).clamp(0, 1), depth


def _to_uint8(images: Float[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N 3 H W"]:
    return (images * 255).round().to(torch.uint8)
