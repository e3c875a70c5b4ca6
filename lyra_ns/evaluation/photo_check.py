"""A decoder tried on a real stereo photograph: clips from the left one in, the right one as the truth.

The pair is Middlebury's Motorcycle, which lies inside scikit-image: D. Scharstein et al., "High-Resolution
Stereo Datasets with Subpixel-Accurate Ground Truth", GCPR 2014. The left photograph, moved along camera paths
by its measured depth, is the input. World coordinates are those of the left camera, in metres.

A unit of length is a free choice that a decoder trained on other lenses and rooms does care about. So the
photograph is read twice: in metres, and in the unit in which the decoder reproduces its own input best. The
right photograph has no part in that choice. Beside it stands what needs no decoder: one Gaussian per pixel,
by the depth that ships and by the measured one.

Shape letters: V trajectories, L frames, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lyra_ns.cache3d.inpaint import background_weights, fill_holes
from lyra_ns.camera_paths import TRAJECTORIES, trajectory_path
from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.depth.small import load_small_depth
from lyra_ns.evaluation.baselines import COVERED_ALPHA, WarpedImages, pixel_gaussians, render_splats
from lyra_ns.gaussians import Gaussians
from lyra_ns.generation.length_unit import SUBJECT_AT, LengthUnit, fitted_unit, in_unit
from lyra_ns.losses import ImageDistance
from lyra_ns.metrics import psnr
from lyra_ns.pictures import contact_sheet
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings, render

FOCAL_PIXELS = 994.978
PRINCIPAL_POINT = (311.193, 254.877)
"""Of the left photograph, where the centre of the first pixel is (0, 0)."""
DISPARITY_OFFSET = 31.086
"""How much farther right the principal point of the right photograph lies."""
BASELINE_METRES = 0.193001
SPLATS_PER_PIXEL_SIDE = 2.0
"""Resolution of the moved photograph relative to the clips, so that splatting does not blur them."""
VIEWS_AT_ONCE = 8
CENTRE_SHARE = 0.1
"""Side of the central window whose median is the scene's centre depth, relative to the image's."""


@dataclass(frozen=True)
class StereoPhoto:
    """A real stereo pair with the depth of its left photograph."""

    left: Float[Tensor, "H W 3"]
    """Left photograph, 0 to 1."""
    right: Float[Tensor, "H W 3"]
    """Right photograph, 0 to 1."""
    depth: Float[Tensor, "H W"]
    """z-depth of the left photograph in metres, 0 where it was not measured."""
    left_camera: CameraPath
    """One camera, [], at the origin."""
    right_camera: CameraPath
    """One camera, [], 0.193 m to the right."""

    @property
    def centre_depth(self) -> float:
        """Median depth in the middle of the photograph, by which camera paths are scaled."""
        height, width = self.depth.shape
        top, left = (round(side * (1 - CENTRE_SHARE) / 2) for side in (height, width))
        window = self.depth[top : height - top, left : width - left]
        return window[window > 0].median().item()


@dataclass(frozen=True)
class PhotoClips:
    """The left photograph as seen along camera paths."""

    rgb: Float[Tensor, "V L 3 H W"]
    """Frames, 0 to 1, holes filled."""
    depth: Float[Tensor, "V L H W"]
    """z-depth, 0 in holes."""
    cameras: CameraPath
    """The paths [V, L], in the left camera's frame."""


def load_stereo_photo() -> StereoPhoto:
    """The pair at its full size, 500 x 741 pixels."""
    from skimage.data import stereo_motorcycle

    left, right, disparity = stereo_motorcycle()
    disparity = torch.from_numpy(disparity.astype(np.float32))
    depth = torch.where(
        torch.isfinite(disparity), BASELINE_METRES * FOCAL_PIXELS / (disparity + DISPARITY_OFFSET), 0.0
    )
    return StereoPhoto(
        left=torch.from_numpy(left.astype(np.float32) / 255),
        right=torch.from_numpy(right.astype(np.float32) / 255),
        depth=depth,
        left_camera=_camera(0.0, 0.0, *depth.shape),
        right_camera=_camera(BASELINE_METRES, DISPARITY_OFFSET, *depth.shape),
    )


def _camera(x: float, principal_point_shift: float, height: int, width: int) -> CameraPath:
    pose = torch.eye(4)
    pose[0, 3] = x
    # Half a pixel more: here the centre of the first pixel is (0.5, 0.5).
    cx, cy = PRINCIPAL_POINT[0] + principal_point_shift + 0.5, PRINCIPAL_POINT[1] + 0.5
    intrinsics = torch.tensor([FOCAL_PIXELS, FOCAL_PIXELS, cx, cy])
    return CameraPath(pose, intrinsics, torch.tensor(0.0), height, width)


def cropped_and_resized(photo: StereoPhoto, height: int, width: int) -> StereoPhoto:
    """The pair cut to the aspect ratio in the middle and resized; depths are picked, never mixed."""
    full_height, full_width = photo.depth.shape
    ratio = min(full_height / height, full_width / width)
    crop_height, crop_width = int(height * ratio), int(width * ratio)
    top, left = (full_height - crop_height) // 2, (full_width - crop_width) // 2
    rows, columns = slice(top, top + crop_height), slice(left, left + crop_width)

    def camera(full: CameraPath) -> CameraPath:
        intrinsics = full.intrinsics - full.intrinsics.new_tensor([0.0, 0.0, left, top])
        cropped = CameraPath(full.camera_to_world, intrinsics, full.times, crop_height, crop_width)
        return cropped.resized(height, width)

    return StereoPhoto(
        left=_resized_photo(photo.left[rows, columns], height, width),
        right=_resized_photo(photo.right[rows, columns], height, width),
        depth=functional.interpolate(
            photo.depth[None, None, rows, columns], (height, width), mode="nearest-exact"
        )[0, 0],
        left_camera=camera(photo.left_camera),
        right_camera=camera(photo.right_camera),
    )


def _resized_photo(rgb: Float[Tensor, "H W 3"], height: int, width: int) -> Float[Tensor, "h w 3"]:
    image = rgb.movedim(-1, 0)[None]
    resized = functional.interpolate(image, (height, width), mode="bilinear", antialias=True)
    # The weights of the filter add up to 1 but for rounding.
    return resized[0].movedim(0, -1).clamp(0, 1)


def clips_of_photo(photo: StereoPhoto, cameras: CameraPath) -> PhotoClips:
    """The left photograph of the full-size pair moved along `cameras` [V, L] by its depth.

    Pixels of unmeasured depth get the depth of the farther surroundings; what no pixel reaches (behind edges,
    beyond the border) the colours of the farther surroundings, smoothly continued (`fill_holes`).
    """
    scale = min(1.0, SPLATS_PER_PIXEL_SIDE * cameras.intrinsics.flatten(0, -2)[0, 0].item() / FOCAL_PIXELS)
    source = cropped_and_resized(photo, *(round(side * scale) for side in photo.depth.shape))
    measured = source.depth[None, None]
    whole_depth = fill_holes(measured, background_weights(measured))[0, 0]
    splats = pixel_gaussians(source.left, whole_depth, source.left_camera)
    views = cameras.reshape(-1)
    parts = [
        _filled_views(splats, views[start : start + VIEWS_AT_ONCE])
        for start in range(0, views.shape[0], VIEWS_AT_ONCE)
    ]
    rgb, depth = (torch.cat(part).unflatten(0, cameras.shape) for part in zip(*parts, strict=True))
    return PhotoClips(rgb, depth, cameras)


def _filled_views(splats: Gaussians, cameras: CameraPath) -> tuple[Tensor, Tensor]:
    """Frames [n, 3, H, W] without holes and depth [n, H, W] with them."""
    rendered = render_splats(splats, cameras)
    depth = torch.where(rendered.alpha > COVERED_ALPHA, rendered.depth, 0.0)
    rgb = fill_holes(rendered.rgb.movedim(-1, 1), background_weights(depth[:, None]))
    return rgb, depth


@dataclass(frozen=True)
class PhotoScores:
    """How close an image is to the real right photograph."""

    psnr: float
    """In dB, over all pixels."""
    lpips: float
    """Over all pixels."""
    psnr_covered: float
    """In dB, over the pixels that the left photograph shows as well."""
    lpips_covered: float
    """With all other pixels taken from the truth."""


@torch.no_grad()
def evaluate_stereo_photo(
    images: Mapping[str, Float[Tensor, "1 H W 3"]],
    photo: StereoPhoto,
    perceptual: ImageDistance,
) -> dict[str, PhotoScores]:
    """Scores of reconstructions from the left photograph, beside a floor and a reference line.

    `images` are what the right camera sees of each. Besides their names: `left_copied`, the left photograph
    taken for the right one (the floor); `left_warped`, the left photograph moved by its measured depth, holes
    filled (the reference line).
    """
    warped = left_warped(photo, photo.depth)
    judged = {**images, "left_copied": photo.left[None], "left_warped": warped.rgb}
    return {
        name: _scores(image.clamp(0, 1), photo.right[None], warped.covered, perceptual)
        for name, image in judged.items()
    }


def left_warped(photo: StereoPhoto, depth: Float[Tensor, "H W"]) -> WarpedImages:
    """The left photograph at the right camera [1], a Gaussian per pixel by depth in metres; holes filled."""
    splats = pixel_gaussians(photo.left, depth, photo.left_camera)
    warped = render_splats(splats, photo.right_camera.reshape(1))
    covered = warped.alpha > COVERED_ALPHA
    weights = background_weights(torch.where(covered, warped.depth, 0.0)[:, None])
    return WarpedImages(fill_holes(warped.rgb.movedim(-1, 1), weights).movedim(1, -1), covered)


def in_metres(depth: Float[Tensor, "H W"], photo: StereoPhoto) -> Float[Tensor, "H W"]:
    """Depth of the left photograph in a unit of its own, made as deep in the median as the measured one."""
    measured = photo.depth > 0
    return depth * (photo.depth[measured].median() / depth[measured].median())


def _scores(
    rgb: Float[Tensor, "1 H W 3"],
    true_rgb: Float[Tensor, "1 H W 3"],
    covered: Bool[Tensor, "1 H W"],
    perceptual: ImageDistance,
) -> PhotoScores:
    def lpips(image: Tensor) -> float:
        return perceptual(image.movedim(-1, 1), true_rgb.movedim(-1, 1)).item()

    return PhotoScores(
        psnr=psnr(rgb, true_rgb).item(),
        lpips=lpips(rgb),
        psnr_covered=psnr(rgb, true_rgb, covered).item(),
        lpips_covered=lpips(torch.where(covered[..., None], rgb, true_rgb)),
    )


TITLES = {
    "left_copied": "left copied (floor)",
    "own_pixels": "one Gaussian per pixel, own depth",
    "left_warped": "one per pixel, measured depth (reference)",
    "reconstruction": "decoder, in metres",
    "reconstruction_fitted": "decoder, in the fitted unit",
}
"""Scores in the order in which they are read."""


@dataclass(frozen=True)
class PhotoView:
    """A reconstruction seen from the right camera."""

    units_per_metre: float
    """Unit in which the decoder was given the cameras."""
    rgb: Float[Tensor, "H W 3"]
    """Colours, 0 to 1."""
    depth: Float[Tensor, "H W"]
    """z-depth in metres."""
    num_gaussians: int
    """Gaussians that pruning left."""


@dataclass(frozen=True)
class PhotoCheckResult:
    """Numbers and images of the check."""

    photo: StereoPhoto
    """The pair at the size of the clips."""
    scores: dict[str, PhotoScores]
    """Closeness to the right photograph, by the keys of TITLES."""
    metric: PhotoView
    """The reconstruction in metres."""
    fitted: PhotoView
    """The reconstruction in the unit that reproduces the input best."""
    units_tried: dict[str, float]
    """Closeness of the input in dB by units per metre."""

    def as_table(self) -> str:
        """The scores as aligned text; `covered` counts only what the left photograph shows too."""
        lines = [f"{'right photograph':<42}{'PSNR dB':>9}{'LPIPS':>8}{'covered dB':>12}{'LPIPS':>8}"]
        for name, title in TITLES.items():
            scores = self.scores[name]
            lines.append(
                f"{title:<42}{scores.psnr:>9.2f}{scores.lpips:>8.3f}"
                f"{scores.psnr_covered:>12.2f}{scores.lpips_covered:>8.3f}"
            )
        return "\n".join(lines)


@torch.no_grad()
def check_photo(
    reconstruct: Reconstructor,
    settings: RenderSettings,
    perceptual: ImageDistance,
    height: int = 160,
    width: int = 256,
    num_frames: int = 17,
) -> PhotoCheckResult:
    """Scores and images of `reconstruct` on the stereo pair, given clips of H x W pixels and L frames."""
    full = load_stereo_photo()
    photo = cropped_and_resized(full, height, width)
    cameras = photo_paths(photo, num_frames)
    clips = clips_of_photo(full, cameras)
    codec = reconstruct.codec
    video = clips.rgb.transpose(1, 2) * 2 - 1
    z = codec.to_diffusion(codec.encode(video.to(reconstruct.device)))
    unit = _fitted_unit(reconstruct, z, clips, photo.centre_depth, settings)
    metric, fitted = (
        _view_from_right(reconstruct, z, cameras, photo.right_camera, settings, units_per_metre)
        for units_per_metre in (1.0, unit.factor)
    )
    images = {
        "reconstruction": metric.rgb[None],
        "reconstruction_fitted": fitted.rgb[None],
        "own_pixels": left_warped(photo, _own_depth(photo)).rgb,
    }
    scores = evaluate_stereo_photo(images, photo, perceptual)
    return PhotoCheckResult(photo, scores, metric, fitted, unit.tried)


def _own_depth(photo: StereoPhoto) -> Float[Tensor, "H W"]:
    """Depth of the left photograph by the network that ships, in metres by the median alone."""
    found = load_small_depth().predict(photo.left.movedim(-1, 0), photo.left_camera.intrinsics)
    return in_metres(found.depth, photo)


def _fitted_unit(
    reconstruct: Reconstructor,
    z: Float[Tensor, "V C T h w"],
    clips: PhotoClips,
    centre_depth: float,
    settings: RenderSettings,
) -> LengthUnit:
    """The unit, as units per metre, in which the decoder reproduces its input best."""
    videos = [(video * 255).round().to(torch.uint8) for video in clips.rgb]
    # It is looked for in units of the centre depth, as for every other scene.
    unit = fitted_unit(reconstruct, z, in_unit(clips.cameras, 1 / centre_depth), videos, settings, SUBJECT_AT)
    tried = {f"{float(factor) / centre_depth:.3g}": value for factor, value in unit.tried.items()}
    return replace(unit, factor=unit.factor / centre_depth, tried=tried)


def _view_from_right(
    reconstruct: Reconstructor,
    z: Float[Tensor, "V C T h w"],
    cameras: CameraPath,
    right_camera: CameraPath,
    settings: RenderSettings,
    units_per_metre: float,
) -> PhotoView:
    """The reconstruction in another unit; `cameras` are the paths [V, L] of the input."""
    # The paths start at the left camera, so its frame is the one that the Gaussians come in.
    gaussians = reconstruct(z, in_unit(cameras, units_per_metre))
    camera = in_unit(right_camera, units_per_metre).reshape(1).to(reconstruct.device)
    right = render(gaussians, camera, settings)
    return PhotoView(
        units_per_metre,
        right.rgb[0].clamp(0, 1).cpu(),
        right.depth[0].cpu() / units_per_metre,
        gaussians.num,
    )


def photo_paths(photo: StereoPhoto, num_frames: int) -> CameraPath:
    """The six paths [V, L] in the official order, each as long as the middle of its official range."""
    height, width = photo.depth.shape
    return stack_cameras(
        [
            trajectory_path(
                trajectory,
                sum(TRAJECTORIES[trajectory].distance_range) / 2,
                centre_depth=photo.centre_depth,
                num_frames=num_frames,
                intrinsics=photo.left_camera.intrinsics,
                height=height,
                width=width,
            )
            for trajectory in READING_ORDER
        ]
    )


def photo_sheet(result: PhotoCheckResult) -> Image.Image:
    """One row: left | right | ours, in metres and in the fitted unit | per pixel, twice | our depth."""
    photo = result.photo
    return contact_sheet(
        {
            "left photograph (input)": photo.left[None],
            "right photograph (truth)": photo.right[None],
            "ours, in metres": result.metric.rgb[None],
            f"ours, {result.fitted.units_per_metre:.3g} units per metre": result.fitted.rgb[None],
            "per pixel, own depth": left_warped(photo, _own_depth(photo)).rgb,
            "per pixel, measured depth": left_warped(photo, photo.depth).rgb,
            "our depth": result.fitted.depth[None],
        }
    )
