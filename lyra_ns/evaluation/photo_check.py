"""A decoder tried on the real stereo photograph: clips from the left one in, the right one as the truth.

A unit of length is a free choice that a decoder trained on other lenses and rooms does care about. So the
photograph is read twice: in metres, and in the unit in which the decoder reproduces its own input best. The
right photograph has no part in that choice. Beside it stands what needs no decoder: one Gaussian per pixel,
by the depth that ships and by the measured one.

Shape letters: V trajectories, L frames, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.data.reading_order import READING_ORDER
from lyra_ns.evaluation.pictures import contact_sheet
from lyra_ns.evaluation.stereo_photo import (
    PhotoClips,
    PhotoScores,
    StereoPhoto,
    clips_of_photo,
    cropped_and_resized,
    evaluate_stereo_photo,
    in_metres,
    left_warped,
    load_stereo_photo,
)
from lyra_ns.generation.depth.small_network import load_small_depth
from lyra_ns.generation.length_unit import SUBJECT_AT, LengthUnit, fitted_unit, in_unit
from lyra_ns.losses import ImageDistance
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings, render
from lyra_ns.trajectories import TRAJECTORIES, trajectory_path

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
