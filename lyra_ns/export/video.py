"""Renders as a video that every browser plays, and the camera loop to render them along.

Shape letters: N frames, V trajectories, L frames of one, H W image.
"""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lyra_ns.cameras import CameraPath, look_at, relative_to
from lyra_ns.data.atomic import write_whole

QUALITY = "16"
"""x264's constant rate factor; small numbers are close to lossless."""

COVERED_SHARE = 0.8
"""How far the turntable goes towards the outermost cameras: beyond them nothing was ever seen."""

SMALLEST_REACH = 0.04
"""Half the width of the loop where the cameras hardly moved sideways, as a share of the centre depth."""


def save_video(
    frames: Shaped[Tensor, "N H W 3"] | Shaped[np.ndarray, "N H W 3"], path: Path, fps: float = 24
) -> None:
    """Write frames (uint8, or floats from 0 to 1) as an H.264 mp4; the file appears whole or not at all.

    The common 4:2:0 pixel format wants even sizes: an odd last row or column is doubled.
    """
    images = _bytes_from_frames(frames)
    if len(images) == 0:
        raise ValueError(f"expected at least one frame for {path}, found none")
    odd_height, odd_width = images.shape[1] % 2, images.shape[2] % 2
    images = np.pad(images, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread: x264's output depends on how many it uses.
        stream.options = {"crf": QUALITY, "preset": "veryfast", "threads": "1"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    write_whole(path, buffer.getvalue())


def turntable_path(cameras: CameraPath, centre_depth: float, num_frames: int) -> CameraPath:
    """A closed loop of cameras [num_frames] that look at the scene's centre, near the given ones [*any].

    The loop starts and ends beside the first given camera, whose axis holds the centre at `centre_depth`; it
    swings left and right, up and a little forward, within COVERED_SHARE of where the given cameras have been.
    """
    if num_frames < 2 or centre_depth <= 0:
        raise ValueError(
            "a loop needs at least 2 frames and a positive centre depth, "
            f"found {num_frames} and {centre_depth}"
        )
    flat = cameras.reshape(-1)
    reference = flat[0]
    offsets = relative_to(flat, reference.camera_to_world).camera_to_world[:, :3, 3]
    local = _loop(offsets, centre_depth, num_frames)
    target = local.new_tensor([0.0, 0.0, centre_depth]).expand_as(local)
    poses = reference.camera_to_world @ look_at(local, target)
    return CameraPath(
        camera_to_world=poses,
        intrinsics=reference.intrinsics.expand(num_frames, 4),
        times=reference.times.expand(num_frames),
        height=reference.height,
        width=reference.width,
    )


def _loop(offsets: Float[Tensor, "n 3"], centre_depth: float, num_frames: int) -> Float[Tensor, "N 3"]:
    """Camera centres of the loop, from how far the given centres lie from the reference camera."""
    smallest = SMALLEST_REACH * centre_depth
    left, right = (
        max(smallest, COVERED_SHARE * float(reach)) for reach in (-offsets[:, 0].min(), offsets[:, 0].max())
    )
    up = max(0.5 * smallest, COVERED_SHARE * float(-offsets[:, 1].min()))
    forward = 0.5 * COVERED_SHARE * float(offsets[:, 2].max())
    angle = torch.arange(num_frames, device=offsets.device, dtype=offsets.dtype) * (2 * math.pi / num_frames)
    sideways = torch.sin(angle)
    lifted = 0.5 * (1 - torch.cos(angle))
    x = torch.where(sideways < 0, left, right) * sideways
    return torch.stack([x, -up * lifted, forward * lifted], -1)


def _bytes_from_frames(frames: Shaped[Tensor, "N H W 3"] | Shaped[np.ndarray, "N H W 3"]) -> np.ndarray:
    images = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else frames
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"frames must be uint8 or floats from 0 to 1, found {images.dtype}")
    return (images.clip(0.0, 1.0) * 255).round().astype(np.uint8)
