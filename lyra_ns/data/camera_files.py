"""Cameras on disk: the npz files of data sets, and paths that somebody drew, filmed or reconstructed.

Data sets hold pose/CLIP.npz and intrinsics/CLIP.npz, each with `data` and frame ids `inds`.

Other paths that are read: camera paths of nerfstudio's viewer (.json with `camera_path` or only `keyframes`),
transforms.json, and npz files of Lyra 2 (`w2c, intrinsics, h, w`). Written: the npz and the viewer's .json.
What is read keeps its own world and units; `camera_paths.fitted_path` makes it start at the identity, in the
units of a scene.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.camera_paths import resampled_path
from lyra_ns.cameras import CameraPath, invert_rigid, nerfstudio_from_opencv, opencv_from_nerfstudio
from lyra_ns.data.atomic import Source, write_whole

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


SIZE_KEYS = (("h", "w"), ("image_height", "image_width"))
"""Names of the image size in npz files: of the format's description, and of Lyra 2's program."""
FRAMES_PER_SECOND = 24
"""Of GEN3C's videos; stored in files for the viewer."""
OTHER_LENSES = ("FISHEYE", "EQUIRECTANGULAR", "OMNIDIRECTIONAL", "VR180", "ORTHOPHOTO")
"""Parts of the names of camera models that are no pinhole with distortion."""


class _Malformed(ValueError):
    """What is wrong with a file, without its name."""


def read_camera_path(path: Path) -> CameraPath:
    """The cameras [L] of a file, OpenCV, in the file's own world and units; moments from 0 to 1.

    transforms.json gives its frames in the order of their image names, numbers compared as numbers; lens
    distortion is dropped. FileNotFoundError, or ValueError for an unknown format, NaN, entries that are
    missing or of a wrong length, matrices that are no rotation, and lenses that are no pinhole.
    """
    if not path.is_file():
        raise FileNotFoundError(f"camera path {path} does not exist: give a .json or .npz file")
    readers = {".npz": _read_npz, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise ValueError(
            f"camera path {path} must be a nerfstudio camera path or transforms.json (.json), or a .npz with "
            f"w2c, intrinsics, h and w, found {path.suffix or 'no ending'}: convert it"
        )
    try:
        return readers[path.suffix.lower()](path.read_bytes())
    except _Malformed as error:
        raise ValueError(f"camera path {path} {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
        raise ValueError(
            f"camera path {path} lacks an entry or has one of a wrong kind ({error!r}): export it again"
        ) from error


def write_npz(path: Path, cameras: CameraPath) -> None:
    """Writes cameras [L] as an npz with w2c [L, 4, 4], intrinsics [L, 3, 3], h and w, whole or not at all."""
    cameras = _writable(path, cameras)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        w2c=cameras.world_to_camera.numpy(),
        intrinsics=cameras.intrinsic_matrix.numpy(),
        h=np.int64(cameras.height),
        w=np.int64(cameras.width),
    )
    write_whole(path, buffer.getvalue())


def write_camera_path_json(path: Path, cameras: CameraPath, fps: float = FRAMES_PER_SECOND) -> None:
    """Writes cameras [L] as a camera path of nerfstudio's viewer, whole or not at all.

    The viewer knows only a vertical field of view; `intrinsics` (fx, fy, cx, cy) beside it, which it ignores,
    lets `read_camera_path` give back exactly what was written.
    """
    cameras = _writable(path, cameras)
    poses = nerfstudio_from_opencv(cameras.camera_to_world)
    entries = [
        {
            "camera_to_world": pose.flatten().tolist(),
            "fov": math.degrees(2 * math.atan(cameras.height / 2 / float(intrinsics[1]))),
            "aspect": cameras.width / cameras.height,
            "render_time": float(time),
            "intrinsics": intrinsics.tolist(),
        }
        for pose, intrinsics, time in zip(poses, cameras.intrinsics, cameras.times, strict=True)
    ]
    content = {
        "camera_type": "perspective",
        "render_height": cameras.height,
        "render_width": cameras.width,
        "fps": fps,
        "seconds": len(entries) / fps,
        "default_fov": entries[0]["fov"],
        "is_cycle": False,
        "smoothness_value": 0.0,
        "keyframes": [_keyframe(entries[0]), _keyframe(entries[-1])],
        "camera_path": entries,
    }
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def _writable(path: Path, cameras: CameraPath) -> CameraPath:
    """The cameras in float32 on the CPU, checked as when they are read; times as given."""
    try:
        if len(cameras.shape) != 1 or cameras.shape[0] == 0:
            raise _Malformed(f"must get cameras of shape [frames], found {list(cameras.shape)}")
        poses = _numbers(cameras.camera_to_world.detach().cpu(), (4, 4), "camera_to_world")
        intrinsics = _numbers(cameras.intrinsics.detach().cpu(), (4,), "intrinsics")
        checked = _checked(poses, intrinsics, cameras.height, cameras.width)
    except _Malformed as error:
        raise ValueError(f"camera path {path} {error}") from error
    return replace(checked, times=cameras.times.cpu())


def _keyframe(entry: dict[str, Any]) -> dict[str, Any]:
    """What the viewer shows and edits of a path: the first and last camera."""
    return {
        "matrix": entry["camera_to_world"],
        "fov": entry["fov"],
        "aspect": entry["aspect"],
        "render_time": entry["render_time"],
        "override_transition_enabled": False,
        "override_transition_sec": None,
    }


def _read_npz(content: bytes) -> CameraPath:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            entries = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _Malformed(f"must be an npz file, found damage ({error}): write it again") from error
    sizes = [keys for keys in SIZE_KEYS if set(keys) <= set(entries)]
    if not {"w2c", "intrinsics"} <= set(entries) or not sizes:
        found = ", ".join(sorted(entries)) or "nothing"
        raise _Malformed(f"must hold w2c, intrinsics, h and w, found {found}: write all four")
    height, width = (int(entries[key]) for key in sizes[0])
    world_to_camera = _numbers(entries["w2c"], (4, 4), "w2c")
    given = entries["intrinsics"]
    matrices = _numbers(given[None] if given.ndim == 2 else given, (3, 3), "intrinsics")
    if len(matrices) not in (1, len(world_to_camera)):
        raise _Malformed(
            f"must have one row of intrinsics per camera ({len(world_to_camera)}), found {len(matrices)}"
        )
    intrinsics = matrices[:, [0, 1, 0, 1], [0, 1, 2, 2]].expand(len(world_to_camera), 4)
    # A rotation is checked before it is inverted as one.
    checked = _checked(world_to_camera, intrinsics, height, width)
    return _checked(invert_rigid(checked.camera_to_world.double()), intrinsics, height, width)


def _read_json(content: bytes) -> CameraPath:
    try:
        entries = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _Malformed(f"must be JSON, found damage ({error}): write it again") from error
    found = entries if isinstance(entries, dict) else {}
    if found.get("camera_path") or found.get("keyframes"):
        return _read_viewer_path(found)
    if found.get("frames"):
        return _read_transforms(found)
    names = ", ".join(sorted(found)) or "none of them"
    raise _Malformed(f"must have an entry camera_path, keyframes or frames, found {names}: export it again")


def _read_viewer_path(entries: dict[str, Any]) -> CameraPath:
    """A camera path of nerfstudio's viewer; one with keyframes alone runs evenly from each to the next."""
    _refuse_other_lenses(entries.get("camera_type", "perspective"))
    height, width = int(entries["render_height"]), int(entries["render_width"])
    cameras = entries.get("camera_path") or entries["keyframes"]
    poses = [_matrix(camera.get("camera_to_world", camera.get("matrix"))) for camera in cameras]
    intrinsics = [_viewer_intrinsics(camera, entries, height, width) for camera in cameras]
    path = _checked(
        opencv_from_nerfstudio(_numbers(poses, (4, 4), "camera_to_world")),
        _numbers(intrinsics, (4,), "fov"),
        height,
        width,
    )
    if entries.get("camera_path"):
        return path
    num_frames = round(float(entries["fps"]) * float(entries["seconds"]))
    if num_frames < 1:
        raise _Malformed(f"must last at least one frame, found fps x seconds = {num_frames}: set both")
    return resampled_path(path, num_frames)


def _viewer_intrinsics(
    camera: dict[str, Any], entries: dict[str, Any], height: int, width: int
) -> list[float]:
    if "intrinsics" in camera:
        return [float(value) for value in camera["intrinsics"]]
    fov = math.radians(float(camera["fov"] if "fov" in camera else entries["default_fov"]))
    if not 0 < fov < math.pi:
        raise _Malformed(f"must have fields of view between 0 and 180 degrees, found {math.degrees(fov):.3g}")
    focal = height / 2 / math.tan(fov / 2)
    return [focal, focal, width / 2, height / 2]


def _read_transforms(entries: dict[str, Any]) -> CameraPath:
    """Frames of a transforms.json, whose intrinsics stand in each frame or above all."""
    frames = sorted(entries["frames"], key=lambda frame: _name_order(str(frame.get("file_path", ""))))
    for frame in frames:
        _refuse_other_lenses(frame.get("camera_model", entries.get("camera_model", "PINHOLE")))
    sizes = {tuple(int(frame.get(key, entries.get(key))) for key in ("h", "w")) for frame in frames}
    if len(sizes) > 1:
        raise _Malformed(f"must have one image size, found {sorted(sizes)}: resize the images to one")
    ((height, width),) = sizes
    return _checked(
        opencv_from_nerfstudio(_numbers([f["transform_matrix"] for f in frames], (4, 4), "transform_matrix")),
        _numbers([_frame_intrinsics({**entries, **frame}, height, width) for frame in frames], (4,), "fl_x"),
        height,
        width,
    )


def _frame_intrinsics(entries: dict[str, Any], height: int, width: int) -> list[float]:
    """fx, fy, cx, cy of a frame; like nerfstudio, from camera_angle_x where there is no focal length."""
    angle_x, angle_y = (entries.get(f"camera_angle_{axis}") for axis in "xy")
    fx = entries.get("fl_x", None if angle_x is None else width / 2 / math.tan(angle_x / 2))
    if fx is None:
        raise _Malformed("must say fl_x or camera_angle_x, found neither: export it with intrinsics")
    fy = float(entries.get("fl_y", fx if angle_y is None else height / 2 / math.tan(angle_y / 2)))
    return [float(fx), fy, float(entries.get("cx", width / 2)), float(entries.get("cy", height / 2))]


def in_name_order(names: Iterable[str]) -> list[str]:
    """Names of pictures in the order in which the frames of transforms.json are read."""
    return sorted(map(str, names), key=_name_order)


def _name_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _refuse_other_lenses(lens: str) -> None:
    if any(other in str(lens).upper() for other in OTHER_LENSES):
        raise _Malformed(f"must have pinhole cameras, found {lens}: draw it with a perspective camera")


def _matrix(values: Any) -> Any:
    """A flattened matrix, which some exporters store as text, as 4 rows; other lengths as they are."""
    flat = json.loads(values) if isinstance(values, str) else values
    return np.reshape(flat, (4, 4)) if np.size(flat) == 16 else flat


def _numbers(values: Any, shape: tuple[int, ...], name: str) -> Float[Tensor, "L ..."]:
    """float64 [L, *shape] without NaN; 3 x 4 matrices get their last row."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except ValueError as error:
        raise _Malformed(
            f"must have entries {name} of one shape {shape}, found several or no numbers"
        ) from error
    if shape == (4, 4) and array.shape[1:] == (3, 4):
        array = np.concatenate([array, np.tile([[[0.0, 0.0, 0.0, 1.0]]], (len(array), 1, 1))], 1)
    if array.shape[1:] != shape or len(array) == 0:
        raise _Malformed(
            f"must have entries {name} of shape {shape}, found {array.shape[1:]}: export it again"
        )
    if not np.isfinite(array).all():
        frame = int(np.argwhere(~np.isfinite(array))[0, 0])
        raise _Malformed(f"must be finite, found NaN or infinity in {name} of frame {frame}: export it again")
    return torch.from_numpy(array)


def _checked(
    poses: Float[Tensor, "L 4 4"], intrinsics: Float[Tensor, "L 4"], height: int, width: int
) -> CameraPath:
    """Float32 cameras, if their matrices are rotations and their sizes and focal lengths are positive."""
    rotation = poses[:, :3, :3].double()
    error = (rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    error = error.masked_fill(torch.linalg.det(rotation) < 0, 2.0)
    worst = int(error.argmax())
    if not float(error[worst]) <= ROTATION_TOLERANCE:
        raise _Malformed(
            f"must hold rotations, found another matrix at frame {worst}: remove scale and mirroring"
        )
    if not torch.allclose(
        poses[:, 3], poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(poses), 4), atol=1e-6
    ):
        raise _Malformed("must have matrices that end in the row 0 0 0 1, found others: transpose them")
    if height < 1 or width < 1 or not bool((intrinsics[:, :2] > 0).all()):
        raise _Malformed(
            f"must have a positive size and focal length, found {height} x {width}, "
            f"focal length {float(intrinsics[:, :2].min()):.3g}"
        )
    times = torch.linspace(0.0, 1.0, len(poses))
    return CameraPath(poses.float(), intrinsics.float(), times, height, width)
