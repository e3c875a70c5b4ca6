"""Data sets in the official layout (docs/reference/data_layout.md, "Files"): reader and writer.

    ROOT[/static|/dynamic]/{0..5}/{rgb,pose,intrinsics,latent,depth}/CLIP.*
    ROOT/novel/{0,1}/...                    held-out camera paths with true frames, no latents
    ROOT/manifest.json                      what a data set that we wrote holds and how it was made

The same in plain tars, a folder of them or one, is read in place (`lyra_ns.data.tar`).

A scene is the set of clips of one name. A clip exists when its pose file does; the writer writes that last,
and every file appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

import lyra_ns
from lyra_ns.cameras import CameraPath
from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.data.atomic import Source, write_whole
from lyra_ns.data.camera_files import indexed_bytes, read_intrinsics, read_poses
from lyra_ns.data.depth_files import depth_bytes, num_depth_frames, read_depth
from lyra_ns.data.latent_files import LatentFormat, latent_bytes, read_latents
from lyra_ns.data.layout import FAMILIES, NOVEL_FOLDER
from lyra_ns.data.pose_order import (
    FIRST_FLIPPED_ID,
    FlippedPoseOrder,
    PoseOrder,
    frames_to_compare,
    order_by_warping,
    order_of_ends,
)
from lyra_ns.data.splits import FILE_NAME as SPLITS_NAME
from lyra_ns.data.tar import find_tars, tar_tree
from lyra_ns.data.types import Scene
from lyra_ns.data.video import read_video, video_bytes, video_size

logger = logging.getLogger(__name__)

FORMAT = "lyra_ns dataset 1"
FILE_NAME = "manifest.json"


def current_versions() -> dict[str, str]:
    """Versions that decide what generated data looks like."""
    return {
        "lyra_ns": lyra_ns.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json."""

    codec: str
    """Name of the codec the latents were made with."""
    num_frames: int
    """Frames per clip."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""
    scenes: dict[str, list[int]]
    """Trajectory ids of each scene; the reader takes this list instead of walking the folders."""
    novel: dict[str, list[int]] = field(default_factory=dict)
    """Held-out camera paths of each scene."""
    splits: dict[str, list[str]] = field(default_factory=dict)
    """Scene names by split (train, test); empty leaves it to `lyra_ns.data.splits`."""
    is_dynamic: bool = False
    """Whether things move in the scenes."""
    seed: int | None = None
    """Seed of the generator, if the data was generated."""
    versions: dict[str, str] = field(default_factory=current_versions)
    """Versions of the software that wrote it."""
    codec_digest: str = ""
    """Fingerprint of that codec's weights (`VideoLatentSpec.digest`); empty where it is not known."""
    focal_lengths: list[float] | None = None
    """Shortest and longest focal length of procedural data, in image widths; None where nothing says them."""
    flipped_pose_order: FlippedPoseOrder = "auto"
    """How poses of views 6 to 11 of dynamic scenes are stored; `auto` leaves it to a look at each scene."""


def write_manifest(root: Path, manifest: Manifest) -> Path:
    """Writes ROOT/manifest.json whole and returns its path."""
    path = root / FILE_NAME
    content = {"format": FORMAT, **asdict(manifest)}
    if manifest.focal_lengths is None:
        del content["focal_lengths"]
    write_whole(path, json.dumps(content, indent=1).encode())
    return path


def read_manifest(root: Source) -> Manifest | None:
    """The manifest of a dataset that we wrote; None if there is none or another program's.

    ValueError when it is ours but damaged.
    """
    path = root / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            logger.info("%s was not written by lyra_ns: listing the folders instead", path)
            return None
        order, orders = content.get("flipped_pose_order", "auto"), get_args(FlippedPoseOrder)
        if order not in orders:
            raise ValueError(f"flipped_pose_order must be one of {', '.join(orders)}, found {order!r}")
        known = {item.name for item in fields(Manifest)}
        return Manifest(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"manifest {path} must be JSON as `write_manifest` writes it, found damage ({error}): delete it, "
            "then the folders are listed instead"
        ) from error


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


DEMO_FOLDER = "diffusion_output"
"""Folder between static or dynamic and the numbers in the official demo."""
SUFFIXES = {
    "pose": (".npz",),
    "intrinsics": (".npz",),
    "latent": (".safetensors", ".pkl"),
    "rgb": (".mp4",),
    "depth": (".zip",),
}
"""Suffixes of each kind of file, in order of preference."""


@dataclass(frozen=True)
class LyraClip:
    """One trajectory of one scene on disk."""

    scene: str
    """Name of the scene."""
    trajectory: int
    """Numeric id of the trajectory."""
    folder: Source
    """Folder of the trajectory, on disk or in tars, which holds pose/, rgb/ and the rest."""
    reverse_poses: bool = False
    """Whether the stored poses run backwards in time and are turned round when read."""
    spec: VideoLatentSpec = VideoLatentSpec("unknown")  # noqa: RUF009  frozen
    """How the latents relate to the video."""

    def path(self, kind: str) -> Source:
        """The file of one kind: the one that exists, or the one that should."""
        if kind not in SUFFIXES:
            raise ValueError(f"a clip has {', '.join(SUFFIXES)}, not {kind!r}")
        candidates = [self.folder / kind / (self.scene + suffix) for suffix in SUFFIXES[kind]]
        return next((path for path in candidates if path.is_file()), candidates[-1])

    def has(self, what: str) -> bool:
        """Whether 'latent', 'rgb', 'depth', 'pose' or 'intrinsics' is stored."""
        return self.path(what).is_file()

    def cameras(self) -> CameraPath:
        """The path [L], as stored: OpenCV camera-to-world, pixel intrinsics of the stored video."""
        num_frames, height, width = self.video_shape()
        poses = read_poses(self.path("pose"), num_frames)
        intrinsics = read_intrinsics(self.path("intrinsics"), num_frames)
        times = torch.linspace(0.0, 1.0, num_frames) if num_frames > 1 else torch.zeros(1)
        return CameraPath(poses.flip(0) if self.reverse_poses else poses, intrinsics, times, height, width)

    def latents(self) -> Float[Tensor, "C T h w"]:
        """Latents in diffusion space; FileNotFoundError if the clip has none."""
        return read_latents(self.path("latent"))

    def rgb(self, frames: Sequence[int] | None = None) -> UInt8[Tensor, "L 3 H W"]:
        """The stored frames (lossy mp4), all or those at ascending positions."""
        return read_video(self.path("rgb"), frames)

    def depth(self, frames: Sequence[int] | None = None) -> Float[Tensor, "L H W"]:
        """z-depth, 0 where unknown, of all frames or the given ones; FileNotFoundError if there is none."""
        return read_depth(self.path("depth"), frames)

    def video_shape(self) -> tuple[int, int, int]:
        """(frames, height, width) of the video, from the first of rgb, latent and depth that is stored."""
        if self.has("rgb"):
            size = video_size(self.path("rgb"))
            return size.num_frames, size.height, size.width
        if self.has("latent"):
            _, latent_frames, rows, columns = self.latents().shape
            stride = self.spec.spatial_stride
            return self.spec.num_frames(latent_frames), rows * stride, columns * stride
        if self.has("depth"):
            path = self.path("depth")
            return (num_depth_frames(path), *read_depth(path, [0]).shape[1:])
        raise FileNotFoundError(
            f"clip {self.scene} of trajectory {self.trajectory} has neither rgb, latent nor depth in "
            f"{self.folder}, so its image size is unknown: write one of them"
        )


class LyraStore:
    """The scenes of a dataset in the official layout.

    `root` holds the numbered folders, or `static` or `dynamic` with them, or tars of those, or is one tar;
    tars are read in place. FileNotFoundError if it does not, or if it holds no clip. `flipped_pose_order`
    says how the poses of views 6 to 11 of dynamic scenes are stored; `auto` asks the manifest, and where
    that does not say it looks at each scene.
    """

    def __init__(self, root: Path | str, flipped_pose_order: FlippedPoseOrder = "auto") -> None:
        self.root = Path(root).expanduser()
        self.flipped_pose_order = flipped_pose_order
        self.trajectory_root = _trajectory_root(self.root)
        """Holds the numbered folders, on disk or in tars."""
        is_family = self.trajectory_root.name in FAMILIES
        self._top = self.trajectory_root.parent if is_family else self.trajectory_root
        self.home = self._top if isinstance(self._top, Path) else tar_tree(self.root).home
        """Folder on disk where splits.json lies, and manifest.json unless that is in a tar."""
        self.manifest = read_manifest(self.home) or read_manifest(self._top)
        self.spec = (
            VideoLatentSpec(self.manifest.codec, digest=self.manifest.codec_digest)
            if self.manifest
            else VideoLatentSpec("unknown")
        )
        """Which codec made the latents; `lyra_ns.codec.codec_for` loads it."""
        self.listing = self._listing()
        """Trajectory ids of each scene, ascending."""
        self._pose_orders: dict[str, PoseOrder | None] = {}
        if not self.listing:
            raise FileNotFoundError(
                f"{self.trajectory_root} holds no clip: expected files like 0/pose/CLIP.npz, found none; "
                "unpack the dataset there or make one with `ns-lyra sample-data`"
            )
        all_ids = {trajectory for ids in self.listing.values() for trajectory in ids}
        self.is_dynamic = (
            self.manifest.is_dynamic
            if self.manifest
            else _is_in_dynamic(self.trajectory_root) or max(all_ids) >= FIRST_FLIPPED_ID
        )

    @property
    def names(self) -> list[str]:
        """Scene names, sorted."""
        return list(self.listing)

    def scene(self, name: str) -> Scene:
        """The scene called `name`; KeyError if there is none. Poses of views 6 to 11 are in forward time."""
        return Scene(name, self.clips(name), self.is_dynamic)

    def clips(self, name: str) -> dict[int, LyraClip]:
        """The clips of the scene called `name`, by trajectory id, ascending."""
        reverse = self._reversed_poses(name)
        return {
            trajectory: self._clip(name, trajectory, reverse and trajectory >= FIRST_FLIPPED_ID)
            for trajectory in self.listing[name]
        }

    def novel_clips(self, name: str) -> dict[int, LyraClip]:
        """Held-out camera paths of a scene with their true frames, by number; empty if there are none."""
        return {
            number: LyraClip(name, number, self._top / NOVEL_FOLDER / str(number), spec=self.spec)
            for number in self._novel_listing.get(name, [])
        }

    @cached_property
    def _novel_listing(self) -> dict[str, list[int]]:
        folder = self._top / NOVEL_FOLDER
        if self.manifest is not None:
            return self.manifest.novel
        return list_clips(folder) if folder.is_dir() else {}

    def _listing(self) -> dict[str, list[int]]:
        if self.manifest is not None and self.manifest.scenes:
            return {name: sorted(ids) for name, ids in sorted(self.manifest.scenes.items())}
        return list_clips(self.trajectory_root)

    def _clip(self, name: str, trajectory: int, reverse_poses: bool = False) -> LyraClip:
        return LyraClip(name, trajectory, self.trajectory_root / str(trajectory), reverse_poses, self.spec)

    def stored_pose_order(self, name: str) -> PoseOrder | None:
        """How the poses of views 6 to 11 are stored, by the manifest, the ends of paths or the frames.

        None if unclear; where the manifest does not say it, also where no view is in forward time to compare
        them with. The ends tell only of source cameras that stand still, as those of official data do.
        """
        flipped = [trajectory for trajectory in self.listing[name] if trajectory >= FIRST_FLIPPED_ID]
        forward = [trajectory for trajectory in self.listing[name] if trajectory < FIRST_FLIPPED_ID]
        if not self.is_dynamic or not flipped:
            return None
        if self.manifest is not None and self.manifest.flipped_pose_order != "auto":
            return self.manifest.flipped_pose_order
        if not forward:
            return None
        clips = [self._clip(name, trajectory) for trajectory in flipped]
        start = self._clip(name, forward[0]).cameras().camera_to_world[0]
        order = order_of_ends([clip.cameras().camera_to_world for clip in clips], start)
        with_depth = (clip for clip in clips if clip.has("rgb") and clip.has("depth"))
        while order is None and (clip := next(with_depth, None)):
            cameras = clip.cameras()
            frames = frames_to_compare(cameras.shape[0])
            order = order_by_warping(clip.rgb(frames), clip.depth(frames), cameras, frames)
        return order

    def _reversed_poses(self, name: str) -> bool:
        flipped = [trajectory for trajectory in self.listing[name] if trajectory >= FIRST_FLIPPED_ID]
        if not self.is_dynamic or not flipped or self.flipped_pose_order == "as_is":
            return False
        if self.flipped_pose_order == "reverse":
            return True
        if name not in self._pose_orders:
            self._pose_orders[name] = self.stored_pose_order(name)
            if self._pose_orders[name] is None:
                logger.warning(
                    "scene %s: the poses of views %s do not tell their order, read as stored", name, flipped
                )
        return self._pose_orders[name] == "reverse"


def list_clips(folder: Source) -> dict[str, list[int]]:
    """Trajectory ids of each scene under the numbered folders of `folder`, in numeric order.

    Anything else there is ignored and named once in the log.
    """
    found: dict[str, list[int]] = {}
    strays = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.isdecimal() and entry.is_dir():
            for path in (entry / "pose").glob("*.npz"):
                if not path.name.startswith("."):
                    found.setdefault(path.stem, []).append(int(entry.name))
        elif entry.name not in (NOVEL_FOLDER, FILE_NAME, SPLITS_NAME, *FAMILIES):
            strays.append(entry.name)
    if strays:
        logger.info("%s: ignored %d entries that are no trajectory: %s", folder, len(strays), strays[:8])
    return {name: sorted(found[name]) for name in sorted(found)}


def _trajectory_root(root: Path) -> Source:
    """The folder with the numbered ones: on disk if there is one, else in the tars below `root`."""
    if not root.exists():
        raise FileNotFoundError(
            f"data folder {root} does not exist: give the folder that holds 0/ 1/ 2/ ..., or make one with "
            "`ns-lyra sample-data`"
        )
    candidates = _numbered(root)
    if not candidates and find_tars(root):
        candidates = _numbered(tar_tree(root).top)
    if not candidates:
        found = (
            sorted(entry.name for entry in root.iterdir())[:8] if root.is_dir() else "a file that is no tar"
        )
        raise FileNotFoundError(
            f"{root} holds no numbered trajectory folders (0/ 1/ ... or static/0/ ...) and no tars of them, "
            f"found {found}: give the dataset's folder, or make one with `ns-lyra sample-data`"
        )
    if len(candidates) > 1:
        raise ValueError(f"{root} holds both static and dynamic scenes: give {root}/static or {root}/dynamic")
    return candidates[0]


def _numbered(root: Source) -> list[Source]:
    """Those of `root`, its static and its dynamic that hold numbered folders; `root` alone if it does."""
    for folders in ([root], [root / family for family in FAMILIES]):
        inner = [folder / DEMO_FOLDER for folder in folders]
        found = [folder for folder in (*folders, *inner) if _has_numbered(folder)]
        if found:
            return found
    return []


def _is_in_dynamic(folder: Source) -> bool:
    """Whether a folder is called dynamic, or lies in one and is not called static."""
    inside = folder.absolute() if isinstance(folder, Path) else folder
    return "dynamic" in (inside.name, "" if inside.name in FAMILIES else inside.parent.name)


def _has_numbered(folder: Source) -> bool:
    return folder.is_dir() and any(entry.name.isdecimal() and entry.is_dir() for entry in folder.iterdir())
