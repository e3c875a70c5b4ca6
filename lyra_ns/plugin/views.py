"""Single views of scenes: a frame of a clip with its camera, and nerfstudio's cameras for them.

Shape letters: N views, M cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from lyra_ns.cameras import CameraPath, nerfstudio_from_opencv, opencv_from_nerfstudio, relative_to
from lyra_ns.data.types import Clip, Scene


@dataclass(frozen=True)
class View:
    """One frame of a clip."""

    clip: Clip
    """Where frame and depth are read."""
    path: str
    """Name of the camera path within the scene, as in file names."""
    frame: int
    """Position in the clip."""


@dataclass(frozen=True)
class SceneViews:
    """Views of one scene with their cameras in the frame of its reference camera."""

    scene: str
    """Name of the scene."""
    views: list[View]
    """The N views."""
    cameras: CameraPath
    """Their cameras [N]."""


def listed_trajectories(scene: Scene, order: Sequence[int]) -> list[int]:
    """Those ids of `order` that the scene has, ValueError if there are none."""
    present = [number for number in order if number in scene.clips]
    if not present:
        raise ValueError(
            f"scene {scene.name} has none of the trajectories {list(order)}, only {sorted(scene.clips)}: "
            "list those with lyra-data --trajectories"
        )
    return present


def views_of(scene: Scene, clips: Mapping[str, Clip], first_trajectory: int, every: int = 1) -> SceneViews:
    """Every so many frames of named `clips`, relative to frame 0 of the scene's `first_trajectory`."""
    reference = scene.clips[first_trajectory].cameras().camera_to_world[0]
    views, paths = [], []
    for name, clip in clips.items():
        path = relative_to(clip.cameras(), reference)
        frames = list(range(0, path.shape[0], every))
        views += [View(clip, name, frame) for frame in frames]
        paths.append(path[torch.tensor(frames)])
    return SceneViews(scene.name, views, join_cameras(paths))


def join_cameras(paths: list[CameraPath]) -> CameraPath:
    """All cameras [N] of paths [L], in order, which must share an image size."""
    sizes = {(path.height, path.width) for path in paths}
    if len(sizes) != 1:
        raise ValueError(f"the clips of one scene must share an image size, found {sorted(sizes)}")
    (height, width) = sizes.pop()
    return CameraPath(
        camera_to_world=torch.cat([path.camera_to_world for path in paths]),
        intrinsics=torch.cat([path.intrinsics for path in paths]),
        times=torch.cat([path.times for path in paths]),
        height=height,
        width=width,
    )


def nerfstudio_cameras(path: CameraPath, with_times: bool) -> Cameras:
    """Cameras [N] for nerfstudio: OpenGL axes in a z-up world."""
    fx, fy, cx, cy = path.intrinsics.float().unbind(-1)
    return Cameras(
        camera_to_worlds=nerfstudio_from_opencv(path.camera_to_world.float())[:, :3],
        fx=fx,
        fy=fy,
        cx=cx,
        cy=cy,
        width=path.width,
        height=path.height,
        camera_type=CameraType.PERSPECTIVE,
        times=path.times.float() if with_times else None,
    )


def camera_path_of(cameras: Cameras) -> CameraPath:
    """Our cameras [M] of nerfstudio's perspective cameras [M], which must share an image size."""
    if bool((cameras.camera_type != CameraType.PERSPECTIVE.value).any()):
        raise ValueError(
            "Gaussians are rendered by perspective cameras only: choose the camera type Perspective"
        )
    intrinsics = torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy], -1)
    times = torch.zeros_like(cameras.fx) if cameras.times is None else cameras.times
    return CameraPath(
        camera_to_world=opencv_from_nerfstudio(cameras.camera_to_worlds),
        intrinsics=intrinsics,
        times=times[:, 0],
        height=int(cameras.height.reshape(-1)[0]),
        width=int(cameras.width.reshape(-1)[0]),
    )
