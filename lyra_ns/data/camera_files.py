"""Camera files: pose/CLIP.npz and intrinsics/CLIP.npz, each with `data` and frame ids `inds`."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.data.files import Source

ROTATION_TOLERANCE = 1e-3
"""How far R Rᵀ may be from the identity; float32 poses of the official set stay well below."""


def read_indexed(path: Source, what: str, num_frames: int | None) -> np.ndarray:
    """The rows of frames 0 .. num_frames-1 (None: all) of an npz with `data` and ascending `inds`.

    FileNotFoundError when missing; ValueError when damaged or when a frame is not among `inds`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path} does not exist: write it, or leave the clip out")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            data, ids = archive["data"], archive["inds"]
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{what} {path} must be an npz with `data` and `inds`, found damage ({error}): write it again"
        ) from error
    if ids.ndim != 1 or len(ids) != len(data) or len(ids) == 0 or (np.diff(ids) <= 0).any():
        raise ValueError(
            f"{what} {path} must have ascending frame ids `inds`, one per row of `data`, found "
            f"{len(data)} rows and ids of shape {ids.shape}: write it again"
        )
    wanted = np.arange(len(ids) if num_frames is None else num_frames)
    missing = np.setdiff1d(wanted, ids)
    if len(missing):
        raise ValueError(
            f"{what} {path} must cover frames 0 to {wanted[-1]}, found none for frame {missing[0]} "
            f"({len(missing)} missing): write the cameras of all frames"
        )
    return data[np.searchsorted(ids, wanted)]


def read_poses(path: Source, num_frames: int | None) -> Float[Tensor, "L 4 4"]:
    """OpenCV camera-to-world poses; ValueError unless they are finite, with orthonormal rotations."""
    poses = _float_tensor(read_indexed(path, "pose", num_frames), (4, 4), f"pose {path}")
    rotation = poses[:, :3, :3].double()
    error = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    worst = int(error.argmax())
    if error[worst] > ROTATION_TOLERANCE or (torch.linalg.det(rotation) < 0).any():
        raise ValueError(
            f"pose {path} must hold rotations (orthonormal, not mirrored), found one at frame {worst} "
            f"that is off by {float(error[worst]):.3g}: write camera-to-world poses without scale"
        )
    bottom = poses.new_tensor([0.0, 0.0, 0.0, 1.0])
    if not torch.allclose(poses[:, 3], bottom.expand(len(poses), 4), atol=1e-6):
        raise ValueError(
            f"pose {path} must end in the row 0 0 0 1, found another: store camera-to-world, not transposed"
        )
    return poses


def read_intrinsics(path: Source, num_frames: int | None) -> Float[Tensor, "L 4"]:
    """fx, fy, cx, cy in pixels; ValueError unless they are finite with positive focal lengths."""
    intrinsics = _float_tensor(read_indexed(path, "intrinsics", num_frames), (4,), f"intrinsics {path}")
    if not (intrinsics[:, :2] > 0).all():
        raise ValueError(
            f"intrinsics {path} must have positive focal lengths, found {float(intrinsics[:, :2].min())}: "
            "store fx fy cx cy in pixels"
        )
    return intrinsics


def indexed_bytes(data: Float[Tensor, "L ..."]) -> bytes:
    """An npz with `data` (float32) and `inds` 0 .. L-1."""
    buffer = io.BytesIO()
    np.savez(buffer, data=data.detach().cpu().float().numpy(), inds=np.arange(len(data)))
    return buffer.getvalue()


def _float_tensor(data: np.ndarray, shape: tuple[int, ...], name: str) -> Tensor:
    if data.shape[1:] != shape or data.dtype.kind != "f":
        raise ValueError(
            f"{name} must hold floats of shape [frames, {', '.join(map(str, shape))}], found {data.dtype} "
            f"{data.shape}: write it again"
        )
    if not np.isfinite(data).all():
        raise ValueError(f"{name} must be finite, found NaN or infinity: estimate the cameras again")
    return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
