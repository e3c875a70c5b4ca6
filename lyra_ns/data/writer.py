"""Writer of clips in the official layout. Every file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.data.camera_files import indexed_bytes
from lyra_ns.data.depth_files import depth_bytes
from lyra_ns.data.files import write_whole
from lyra_ns.data.latent_files import LatentFormat, latent_bytes
from lyra_ns.data.video_files import video_bytes


def write_clip(
    root: Path,
    scene: str,
    trajectory: int,
    cameras: CameraPath,
    z: Float[Tensor, "C T h w"] | None = None,
    rgb: UInt8[Tensor, "L 3 H W"] | None = None,
    depth: Float[Tensor, "L H W"] | None = None,
    latent_format: LatentFormat = "pkl",
) -> Path:
    """Writes one clip under ROOT/{trajectory} and returns that folder.

    `root` holds the numbered folders (ROOT/static, ROOT/novel, ...). Latents are in diffusion space. The
    pose file comes last, and a reader takes a clip for stored when it has one, so an interrupted writer
    leaves no half clip. Equal arguments give equal bytes.
    """
    _check_sizes(cameras, rgb, depth)
    folder = Path(root) / str(trajectory)
    if z is not None:
        write_whole(folder / "latent" / f"{scene}.{latent_format}", latent_bytes(z, latent_format))
    if rgb is not None:
        write_whole(folder / "rgb" / f"{scene}.mp4", video_bytes(rgb))
    if depth is not None:
        write_whole(folder / "depth" / f"{scene}.zip", depth_bytes(depth))
    write_whole(folder / "intrinsics" / f"{scene}.npz", indexed_bytes(cameras.intrinsics))
    write_whole(folder / "pose" / f"{scene}.npz", indexed_bytes(cameras.camera_to_world))
    return folder


def _check_sizes(cameras: CameraPath, rgb: Tensor | None, depth: Tensor | None) -> None:
    expected = (*cameras.shape, cameras.height, cameras.width)
    for what, images in (("rgb", rgb), ("depth", depth)):
        found = None if images is None else (images.shape[0], *images.shape[-2:])
        if found not in (None, expected):
            raise ValueError(
                f"{what} must be {expected} frames, rows, columns like the cameras, found {found}"
            )
