"""Checks a dataset by reading all of it: names every bad clip and why."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import rich.box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.data.atomic import Source
from lyra_ns.data.pose_order import FIRST_FLIPPED_ID, PoseOrder
from lyra_ns.data.scenes import check_image_size, check_latent_size
from lyra_ns.data.store import SUFFIXES, LyraClip, LyraStore, list_clips
from lyra_ns.data.types import NOVEL_FIRST_ID

READ_ERRORS = (ValueError, FileNotFoundError)
TABLE_WIDTH = 160


@dataclass(frozen=True)
class ClipProblem:
    """One thing that is wrong with one clip, or with a whole scene."""

    scene: str
    """Scene name."""
    trajectory: int | None
    """Trajectory id (held-out paths from `NOVEL_FIRST_ID`); None when it concerns the scene."""
    what: str
    """cameras, latent, rgb, depth, trajectories or listing."""
    message: str
    """One sentence: expected, found, what to do."""


@dataclass(frozen=True)
class DatasetReport:
    """What `check_dataset` found."""

    root: Source
    """The dataset."""
    num_scenes: int
    """Scenes looked at."""
    num_clips: int
    """Clips looked at, held-out paths included."""
    problems: list[ClipProblem]
    """Everything wrong, by scene and trajectory."""
    pose_orders: dict[str, PoseOrder | None] = field(default_factory=dict)
    """How the poses of views 6 to 11 of each scene with such views are stored; None where nothing tells."""

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def bad_scenes(self) -> list[str]:
        """Names of the scenes with a problem, sorted."""
        return sorted({problem.scene for problem in self.problems})

    def as_text(self) -> str:
        """A table of the problems and one line that sums up."""
        found = f"{self.num_scenes} scenes, {self.num_clips} clips in {self.root}{self._orders_as_text()}"
        if self.is_good:
            return f"{found}: all good"
        table = Table("scene", "trajectory", "what", "problem", box=rich.box.SIMPLE)
        for problem in self.problems:
            table.add_row(problem.scene, _trajectory_label(problem.trajectory), problem.what, problem.message)
        console = Console(width=TABLE_WIDTH, no_color=True)
        with console.capture() as capture:
            console.print(table)
        return f"{capture.get()}{found}: {len(self.problems)} problems in {len(self.bad_scenes)} scenes"

    def _orders_as_text(self) -> str:
        if not self.pose_orders:
            return ""
        orders = list(self.pose_orders.values())
        return (
            f" (poses of views {FIRST_FLIPPED_ID} and up: in the order of their frames in "
            f"{orders.count('as_is')} scenes, backwards in {orders.count('reverse')}, which are turned round "
            f"when read, unclear in {orders.count(None)})"
        )


def check_dataset(
    root: Path | str, depth_required: bool = True, on_clip: Callable[[str, int], None] | None = None
) -> DatasetReport:
    """What is wrong with the dataset at `root`; reads every file of every clip.

    `on_clip(scene, trajectory)` is called before each clip, for progress. FileNotFoundError if there is no
    dataset at all.
    """
    store = LyraStore(root, flipped_pose_order="as_is")
    problems, num_clips = _listing_problems(store), 0
    expected = sorted({trajectory for ids in store.listing.values() for trajectory in ids})
    for name in store.names:
        clips = store.clips(name)
        missing = [trajectory for trajectory in expected if trajectory not in clips]
        if missing:
            message = (
                f"expected trajectories {expected}, found none for {missing}: generate them or drop the scene"
            )
            problems.append(ClipProblem(name, None, "trajectories", message))
        clips |= {NOVEL_FIRST_ID + number: clip for number, clip in store.novel_clips(name).items()}
        for trajectory, clip in clips.items():
            if on_clip:
                on_clip(name, trajectory)
            num_clips += 1
            needed = {"depth"} if depth_required else set()
            needed |= {"rgb"} if trajectory >= NOVEL_FIRST_ID else {"latent"}
            problems += [
                ClipProblem(name, trajectory, what, message)
                for what, message in clip_problems(clip, store.spec, needed)
            ]
    return DatasetReport(store.trajectory_root, len(store.names), num_clips, problems, _pose_orders(store))


def _pose_orders(store: LyraStore) -> dict[str, PoseOrder | None]:
    """Of dynamic scenes with reversed views; those that cannot be read are among the problems."""
    orders = {}
    for name, trajectories in store.listing.items():
        if store.is_dynamic and max(trajectories) >= FIRST_FLIPPED_ID:
            with suppress(*READ_ERRORS):
                orders[name] = store.stored_pose_order(name)
    return orders


def clip_problems(clip: LyraClip, spec: VideoLatentSpec, needed: set[str]) -> list[tuple[str, str]]:
    """(what, message) of everything wrong with one clip; files outside `needed` may be absent."""
    try:
        cameras = clip.cameras()
    except READ_ERRORS as error:
        return [("cameras", str(error)), *_unreadable(clip)]
    checks = {"latent": _check_latents, "rgb": _check_rgb, "depth": _check_depth}
    problems = []
    for what, check in checks.items():
        if what not in needed and not clip.has(what):
            continue
        try:
            check(clip, cameras, spec)
        except READ_ERRORS as error:
            problems.append((what, str(error)))
    return problems


def _unreadable(clip: LyraClip) -> list[tuple[str, str]]:
    """Stored files that cannot be read by themselves, when there are no cameras to compare them with."""
    problems = []
    for what, read in (("latent", clip.latents), ("rgb", clip.rgb), ("depth", clip.depth)):
        try:
            if clip.has(what):
                read()
        except READ_ERRORS as error:
            problems.append((what, str(error)))
    return problems


def _check_latents(clip: LyraClip, cameras: CameraPath, spec: VideoLatentSpec) -> None:
    z = clip.latents()
    check_latent_size(z, str(clip.path("latent")), spec, cameras)
    frames, expected = cameras.shape[0], spec.num_frames(z.shape[1])
    if frames != expected:
        raise ValueError(
            f"latent of {clip.path('latent')} stands for {expected} frames, found a video of {frames}: "
            "write the clip again"
        )


def _check_rgb(clip: LyraClip, cameras: CameraPath, spec: VideoLatentSpec) -> None:
    _check_images(clip.rgb(), f"rgb of {clip.path('rgb')}", cameras)
    _check_principal_point(clip, cameras)


def _check_depth(clip: LyraClip, cameras: CameraPath, spec: VideoLatentSpec) -> None:
    _check_images(clip.depth(), f"depth of {clip.path('depth')}", cameras)


def _check_images(images: Tensor, label: str, cameras: CameraPath) -> None:
    check_image_size(images, label, cameras)
    if len(images) != cameras.shape[0]:
        raise ValueError(f"{label} must have {cameras.shape[0]} frames, found {len(images)}: write it again")


def _check_principal_point(clip: LyraClip, cameras: CameraPath) -> None:
    """Intrinsics of another image size show in a principal point far from the middle."""
    middle = cameras.intrinsics.new_tensor([cameras.width, cameras.height]) / 2
    offset = (cameras.intrinsics[:, 2:] - middle).abs() / middle
    if (offset > 0.5).any():
        found = [round(float(value), 1) for value in cameras.intrinsics[0, 2:]]
        raise ValueError(
            f"intrinsics {clip.path('intrinsics')} must be in pixels of the {cameras.height}x{cameras.width} "
            f"video, found the principal point {found}: scale them to the video's size"
        )


def _listing_problems(store: LyraStore) -> list[ClipProblem]:
    """Clips on disk that the manifest lacks and the reverse, and files of clips without a pose."""
    on_disk = list_clips(store.trajectory_root)
    problems = []
    for name in sorted(on_disk.keys() | store.listing.keys()):
        listed, found = set(store.listing.get(name, [])), set(on_disk.get(name, []))
        for trajectory in sorted(listed ^ found):
            fault = "is listed but has no pose file" if trajectory in listed else "is not listed"
            message = f"the clip {fault} in the manifest: write the manifest or the clip again"
            problems.append(ClipProblem(name, trajectory, "listing", message))
    for folder in sorted(store.trajectory_root.iterdir(), key=lambda folder: folder.name):
        if folder.name.isdecimal() and folder.is_dir():
            problems += _orphans(folder, {name for name, ids in on_disk.items() if int(folder.name) in ids})
    return problems


def _orphans(folder: Source, names: set[str]) -> list[ClipProblem]:
    problems = []
    for kind, suffixes in SUFFIXES.items():
        stems = {path.stem for suffix in suffixes for path in (folder / kind).glob(f"*{suffix}")}
        for stem in sorted(stem for stem in stems - names if not stem.startswith(".")):
            message = f"{kind} is stored without pose {folder}/pose/{stem}.npz: write the clip's cameras"
            problems.append(ClipProblem(stem, int(folder.name), "cameras", message))
    return problems


def _trajectory_label(trajectory: int | None) -> str:
    if trajectory is None:
        return "-"
    return f"novel {trajectory - NOVEL_FIRST_ID}" if trajectory >= NOVEL_FIRST_ID else str(trajectory)
