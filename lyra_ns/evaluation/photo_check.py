"""A decoder tried on the real stereo photograph: clips from the left one in, the right one as the truth.

Shape letters: V trajectories, L frames, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.data.sampling import EVALUATION_ORDER
from lyra_ns.evaluation.baselines import pixel_gaussians, render_splats
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
    "reconstruction": "reconstruction",
}
"""Scores in the order in which they are read."""


@dataclass(frozen=True)
class PhotoCheckResult:
    """Numbers and images of the check."""

    photo: StereoPhoto
    """The pair at the size of the clips."""
    scores: dict[str, PhotoScores]
    """Closeness to the right photograph: `reconstruction`, `left_copied`, `left_warped`."""
    rgb: Float[Tensor, "H W 3"]
    """The reconstruction seen from the right camera."""
    depth: Float[Tensor, "H W"]
    """Its z-depth there, in metres."""
    num_gaussians: int
    """Gaussians that pruning left."""

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
    # The paths start at the left camera, so its frame is the one that the Gaussians come in.
    gaussians = reconstruct(z, cameras)
    right = render(gaussians, photo.right_camera.reshape(1).to(reconstruct.device), settings)
    rgb = right.rgb.clamp(0, 1).cpu()
    scores = evaluate_stereo_photo(lambda _: rgb, photo, perceptual)
    return PhotoCheckResult(photo, scores, rgb[0], right.depth[0].cpu(), gaussians.num)


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
            for trajectory in EVALUATION_ORDER
        ]
    )


def photo_sheet(result: PhotoCheckResult) -> Image.Image:
    """One row: left | right | reconstruction | left warped | depth."""
    photo = result.photo
    splats = pixel_gaussians(photo.left, photo.depth, photo.left_camera)
    warped = render_splats(splats, photo.right_camera.reshape(1))
    return contact_sheet(
        {
            "left photograph (input)": photo.left[None],
            "right photograph (truth)": photo.right[None],
            "reconstruction": result.rgb[None],
            "left warped by its depth": warped.rgb,
            "reconstructed depth": result.depth[None],
        }
    )
