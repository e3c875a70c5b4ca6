"""Requests of the size of the cache's scenes, for the tests of teachers that have sizes of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lyra_ns.cache3d.cache import SceneCache
from lyra_ns.cameras import CameraPath
from lyra_ns.teachers.base import TeacherRequest
from tests.helpers.cache_scenes import box_before_wall, cameras_at, picture

NUM_FRAMES = 9


def path_to_the_right(distance: float = 0.4) -> CameraPath:
    """A path of float32 cameras that look ahead, the first where the picture was taken."""
    path = cameras_at([(distance * frame / NUM_FRAMES, 0.0, 0.0) for frame in range(NUM_FRAMES)])
    return replace(
        path,
        camera_to_world=path.camera_to_world.float(),
        intrinsics=path.intrinsics.float(),
        times=path.times.float(),
    )


def request_for_a_box(**changes: Any) -> TeacherRequest:
    """A noisy picture of a box before a wall, 40 x 56, its cache, and a path on which holes open."""
    rgb, cameras = picture().float(), path_to_the_right()
    cache = SceneCache.from_image(rgb, box_before_wall().float(), cameras[:1])
    request = TeacherRequest("box", 0, cameras, rgb, cache, prompt="a red room", seed=1)
    return replace(request, **changes)


def same_from_elsewhere(path: CameraPath) -> CameraPath:
    """The path in a world that is turned and moved."""
    turn = torch.eye(4)
    turn[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turn[:3, 3] = torch.tensor([3.0, -1.0, 2.0])
    return replace(path, camera_to_world=turn @ path.camera_to_world)
