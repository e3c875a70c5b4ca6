"""A decoder tried on the real stereo photograph: clips from the left one in, the right one as the truth.

A unit of length is a free choice that a decoder trained on other lenses and rooms does care about. So the
photograph is read twice: in metres, and in the unit in which the decoder reproduces its own input best. The
right photograph has no part in that choice.

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
from lyra_ns.evaluation.baselines import pixel_gaussians, render_splats
from lyra_ns.evaluation.metrics import psnr
from lyra_ns.evaluation.pictures import contact_sheet
from lyra_ns.evaluation.stereo_photo import (
    PhotoScores,
    StereoPhoto,
    clips_of_photo,
    cropped_and_resized,
    evaluate_stereo_photo,
    load_stereo_photo,
)
from lyra_ns.losses import ImageDistance
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings, render
from lyra_ns.trajectories import TRAJECTORIES, trajectory_path

TITLES = {
    "left_copied": "left copied (floor)",
    "left_warped": "left warped by its depth (reference)",
    "reconstruction": "reconstruction, in metres",
    "reconstruction_fitted": "reconstruction, in the fitted unit",
}
"""Scores in the order in which they are read."""

UNITS_PER_METRE = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
"""Units that are tried."""


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
    input_psnr: float
    """How well the last frames of the input paths are reproduced, in dB."""


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

    def as_table(self) -> str:
        """The scores as aligned text; `covered` counts only what the left photograph shows too."""
        lines = [f"{'right photograph':<38}{'PSNR dB':>9}{'LPIPS':>8}{'covered dB':>12}{'LPIPS':>8}"]
        for name, title in TITLES.items():
            scores = self.scores[name]
            lines.append(
                f"{title:<38}{scores.psnr:>9.2f}{scores.lpips:>8.3f}"
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
    inputs = (clips.rgb[:, -1].movedim(1, -1), cameras)
    views = [
        _view_from_right(reconstruct, z, inputs, photo.right_camera, settings, unit)
        for unit in UNITS_PER_METRE
    ]
    metric, fitted = views[0], max(views, key=lambda view: view.input_psnr)
    scores = evaluate_stereo_photo(lambda _: metric.rgb[None], photo, perceptual)
    again = evaluate_stereo_photo(lambda _: fitted.rgb[None], photo, perceptual)
    return PhotoCheckResult(
        photo, scores | {"reconstruction_fitted": again["reconstruction"]}, metric, fitted
    )


def _view_from_right(
    reconstruct: Reconstructor,
    z: Float[Tensor, "V C T h w"],
    inputs: tuple[Float[Tensor, "V H W 3"], CameraPath],
    right_camera: CameraPath,
    settings: RenderSettings,
    units_per_metre: float,
) -> PhotoView:
    """The reconstruction in another unit; `inputs` are the last frame of each path and the paths [V, L]."""
    last_frames, cameras = inputs
    cameras = _in_unit(cameras, units_per_metre)
    # The paths start at the left camera, so its frame is the one that the Gaussians come in.
    gaussians = reconstruct(z, cameras)
    device = reconstruct.device
    again = render(gaussians, cameras[:, -1].to(device), settings).rgb.clamp(0, 1).cpu()
    right = render(gaussians, _in_unit(right_camera, units_per_metre).reshape(1).to(device), settings)
    return PhotoView(
        units_per_metre,
        right.rgb[0].clamp(0, 1).cpu(),
        right.depth[0].cpu() / units_per_metre,
        gaussians.num,
        psnr(again, last_frames).mean().item(),
    )


def _in_unit(cameras: CameraPath, units_per_metre: float) -> CameraPath:
    poses = cameras.camera_to_world.clone()
    poses[..., :3, 3] *= units_per_metre
    return replace(cameras, camera_to_world=poses)


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
    """One row: left | right | ours, in metres and in the fitted unit | left warped | our depth."""
    photo = result.photo
    splats = pixel_gaussians(photo.left, photo.depth, photo.left_camera)
    warped = render_splats(splats, photo.right_camera.reshape(1))
    return contact_sheet(
        {
            "left photograph (input)": photo.left[None],
            "right photograph (truth)": photo.right[None],
            "ours, in metres": result.metric.rgb[None],
            f"ours, {result.fitted.units_per_metre:g} units per metre": result.fitted.rgb[None],
            "left warped by its depth": warped.rgb,
            "our depth": result.fitted.depth[None],
        }
    )
