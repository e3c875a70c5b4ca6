"""Camera paths: GEN3C's motions, the six of them that every scene is seen from, and held-out ones between.

All of GEN3C's start from a camera at the origin that looks along +z at the scene's centre, `centre_depth`
away (OpenCV axes). Distances are fractions of that depth.

Source: docs/reference/gen3c.md, "Camera motions" and "The six of Lyra".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, invert_rigid, look_at

Rotation = Literal["center_facing", "no_rotation", "trajectory_aligned"]
"""Where a camera looks: at the centre, straight ahead, or ahead and outwards with its motion."""
TARGET_SHARE: dict[Rotation, float] = {"center_facing": 0.0, "no_rotation": 1.0, "trajectory_aligned": 2.0}
"""How much of a camera's offset is added to the centre to give the point that it looks at."""
HULL_SHARE = 0.9
"""How far a held-out path may reach towards the faces of the hull of the shortest six paths."""
NUM_NOVEL_PATHS = 2
"""Held-out paths: 0 an arc with forward motion, 1 a diagonal sway that drifts along the view axis."""


@dataclass(frozen=True)
class Spiral:
    """Shape of the clockwise and counterclockwise motions."""

    circles: int = 2
    """Turns over the whole path."""
    radius_x: float = 0.15
    """Horizontal radius per unit of movement distance."""
    radius_y: float = 0.10
    """Vertical radius per unit of movement distance."""


LYRA_SPIRAL = Spiral()
"""What Lyra's data were made with."""
GEN3C_SPIRAL = Spiral(circles=1, radius_x=1.0, radius_y=1.0)
"""What GEN3C's own commands default to: one wide turn, with the distance as its radius."""


@dataclass(frozen=True)
class Motion:
    """A way to move: straight along an axis, in a spiral where `axis` is None, or not at all."""

    name: str
    """GEN3C's name of the motion."""
    axis: int | None
    """Axis of a straight move: 0 x (right), 1 y (down), 2 z (forward)."""
    sign: int
    """Direction along that axis, or side of the spiral; 0 stands still."""


@dataclass(frozen=True)
class Trajectory(Motion):
    """One of the six paths of the official data."""

    distance_range: tuple[float, float]
    """Movement distances that the official data draw from, in units of the centre depth."""


TRAJECTORIES = (
    Trajectory("left", 0, -1, (0.2, 0.3)),
    Trajectory("right", 0, 1, (0.2, 0.3)),
    Trajectory("up", 1, -1, (0.1, 0.2)),
    Trajectory("zoom_out", 2, -1, (0.3, 0.4)),
    Trajectory("zoom_in", 2, 1, (0.3, 0.4)),
    Trajectory("clockwise", None, 1, (0.4, 0.6)),
)
"""The six paths; the index is the folder number on disk."""
MOTIONS: dict[str, Motion] = {
    motion.name: motion
    for motion in (
        *TRAJECTORIES,
        Motion("down", 1, 1),
        Motion("counterclockwise", None, -1),
        Motion("none", 0, 0),
    )
}
"""All motions of GEN3C by name; `none`, which the official command accepts and then skips, stands still."""


def motion_named(name: str) -> Motion:
    """The motion called `name`; ValueError names all of them."""
    if name not in MOTIONS:
        raise ValueError(f"expected one of {', '.join(MOTIONS)} as camera motion, found {name!r}")
    return MOTIONS[name]


def trajectory_named(name: str) -> int:
    """Id of the path called `name`; ValueError names the six."""
    names = [trajectory.name for trajectory in TRAJECTORIES]
    if name not in names:
        raise ValueError(f"expected one of {', '.join(names)} as trajectory, found {name!r}")
    return names.index(name)


def draw_distance(trajectory: int, generator: torch.Generator) -> float:
    """A movement distance of the path's official range, in units of the centre depth."""
    low, high = _trajectory(trajectory).distance_range
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def camera_offsets(
    trajectory: int, distance: float, num_frames: int, centre_depth: float = 1.0
) -> Float[Tensor, "L 3"]:
    """Camera positions p_i of one of the six paths, float64; frame 0 stands at the origin.

    Straight moves reach (L - 1) / L of `distance`; the spiral closes on its last frame.
    """
    return motion_offsets(_trajectory(trajectory), distance, num_frames, centre_depth)


def motion_offsets(
    motion: Motion,
    distance: float,
    num_frames: int,
    centre_depth: float = 1.0,
    spiral: Spiral = LYRA_SPIRAL,
) -> Float[Tensor, "L 3"]:
    """Camera positions p_i of a motion, float64, as `camera_offsets` gives them for the six."""
    frame = torch.arange(num_frames, dtype=torch.float64)
    offsets = torch.zeros(num_frames, 3, dtype=torch.float64)
    if motion.axis is not None:
        offsets[:, motion.axis] = motion.sign * distance * frame / num_frames
        return offsets * centre_depth
    angle = 2 * math.pi * spiral.circles * frame / max(num_frames - 1, 1)
    offsets[:, 0] = motion.sign * spiral.radius_x * distance * (torch.cos(angle) - 1)
    offsets[:, 1] = spiral.radius_y * distance * torch.sin(angle)
    return offsets * centre_depth


def trajectory_path(
    trajectory: int,
    distance: float,
    *,
    centre_depth: float,
    num_frames: int,
    intrinsics: Float[Tensor, " 4"],
    height: int,
    width: int,
    parity: bool = False,
) -> CameraPath:
    """Cameras [L] of one of the six paths, all looking at (0, 0, centre_depth).

    With `parity` the poses are GEN3C's own (`motion_poses`).
    """
    offsets = camera_offsets(trajectory, distance, num_frames, centre_depth)
    poses = motion_poses(offsets, centre_depth, parity=parity)
    return path_of_poses(poses, intrinsics, height, width)


def motion_poses(
    offsets: Float[Tensor, "L 3"],
    centre_depth: float,
    rotation: Rotation = "center_facing",
    parity: bool = False,
) -> Float[Tensor, "L 4 4"]:
    """Camera-to-world poses at the offsets, turned as `rotation` says about the centre (0, 0, centre_depth).

    With `parity` the poses are GEN3C's own, whose world-to-camera translation is -p where -R p is meant:
    their true centres R^T p bend towards the scene (docs/reference/gen3c.md, "Camera motions"). ValueError
    where a camera reaches the depth of what it looks at.
    """
    centre = offsets.new_tensor([0.0, 0.0, centre_depth])
    target = centre + TARGET_SHARE[rotation] * offsets
    if not bool((target[:, 2] > offsets[:, 2]).all()):
        raise ValueError(
            "expected cameras that stay in front of what they look at, found one that moves "
            f"{float(offsets[:, 2].abs().max()):.3g} along z with the centre at {centre_depth:.3g}: "
            "move less, or look straight ahead (no_rotation)"
        )
    poses = look_at(offsets, target)
    if parity:
        world_to_camera = invert_rigid(poses)
        world_to_camera[:, :3, 3] = -offsets
        poses = invert_rigid(world_to_camera)
    return poses


def novel_path(
    index: int,
    generator: torch.Generator,
    *,
    centre_depth: float,
    num_frames: int,
    intrinsics: Float[Tensor, " 4"],
    height: int,
    width: int,
) -> CameraPath:
    """Cameras [L] of a held-out path: inside the hull of the six paths, on none of them.

    0 is an arc through the front of the hull, 1 a diagonal sway with a drift along the view axis; side,
    reach and the point looked at come from `generator`.
    """
    if not 0 <= index < NUM_NOVEL_PATHS:
        raise ValueError(f"expected a held-out path 0..{NUM_NOVEL_PATHS - 1}, found {index}")
    side, reach, lift, aside, below = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    side = 1.0 if side < 0.5 else -1.0
    along = torch.linspace(0.0, 1.0, num_frames, dtype=torch.float64)
    if index == 0:
        angle = (along - 0.5) * math.pi
        x = side * (0.6 + 0.1 * reach) * torch.sin(angle)
        z = (0.35 + 0.05 * reach) * torch.cos(angle)
        y = (0.05 + 0.1 * lift) * torch.ones_like(along)
    else:
        x = side * (0.4 + 0.05 * reach) * torch.cos(math.pi * along)
        y = 0.12 + (0.15 + 0.08 * lift) * torch.sin(math.pi * along).square()
        z = 0.4 * (along - 0.5)
    offsets = torch.stack([x, -y, z], -1) * HULL_SHARE * _hull_reach(num_frames) * centre_depth
    target = [0.1 * (aside - 0.5) * centre_depth, 0.06 * (below - 0.5) * centre_depth, centre_depth]
    poses = look_at(offsets, offsets.new_tensor(target).expand_as(offsets))
    return path_of_poses(poses, intrinsics, height, width)


def path_of_poses(
    poses: Float[Tensor, "L 4 4"], intrinsics: Float[Tensor, "*#L 4"], height: int, width: int
) -> CameraPath:
    """Float32 cameras of one image size with moments from 0 to 1; intrinsics of one frame or of each."""
    num_frames = len(poses)
    times = torch.linspace(0.0, 1.0, num_frames)
    return CameraPath(poses.float(), intrinsics.float().expand(num_frames, 4), times, height, width)


def _hull_reach(num_frames: int) -> Float[Tensor, " 3"]:
    """Half axes x, y, z of the octahedron that the shortest straight moves of the official ranges span."""
    low = torch.tensor([TRAJECTORIES[k].distance_range[0] for k in (0, 2, 3)], dtype=torch.float64)
    return low * (num_frames - 1) / num_frames


def _trajectory(trajectory: int) -> Trajectory:
    """The path of an id, or ValueError."""
    if not 0 <= trajectory < len(TRAJECTORIES):
        raise ValueError(f"expected a trajectory 0..{len(TRAJECTORIES) - 1}, found {trajectory}")
    return TRAJECTORIES[trajectory]
