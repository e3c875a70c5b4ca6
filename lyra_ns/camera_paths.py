"""Camera paths: GEN3C's motions, the six that every scene is seen from, held-out ones, and free paths.

A path starts at the identity: the camera of the input image is the world. GEN3C's motions look along +z at
the scene's centre, `centre_depth` away (OpenCV axes), and their distances are fractions of that depth. For
videos, whose own camera may move, `follow` lays a path onto the source cameras.

Source: docs/reference/gen3c.md, "Camera motions", "The six of Lyra" and "Reversed video".
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, crop_and_resize_intrinsics, invert_rigid, look_at, relative_to
from lyra_ns.draws import generator_for

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


PathKind = Literal[
    "left", "right", "up", "down", "zoom_in", "zoom_out", "clockwise", "counterclockwise", "none"
]
"""GEN3C's names of camera paths."""
LookAt = Literal["gen3c", "exact"]
"""GEN3C's own poses, which its network was used with, or poses that keep the centre in the middle."""
Seeding = Literal["per_trajectory", "legacy"]
"""One generator per scene and trajectory, or the distances that the official script ends up with."""
Length = Literal["exact", "first", "resample"]
"""A free path of another length is an error, is cut to its first frames, or is run through evenly."""
FRAMES_PER_LATENT = 8
"""The tokenizer stores one frame, and then this many per latent frame."""


@dataclass(frozen=True)
class CameraPathConfig:
    """One of GEN3C's camera paths."""

    kind: PathKind = "left"
    """Direction of the motion, as the viewer sees it."""
    distance: float = 0.3
    """How far the camera moves, in units of the centre depth."""
    rotation: Rotation = "center_facing"
    """Whether the camera turns to the centre, not at all, or outwards with its motion."""
    look_at: LookAt = "gen3c"
    """GEN3C's own poses, or exact ones that keep the centre in the middle of the image."""
    spiral: Spiral = field(default=LYRA_SPIRAL)
    """Turns and radii of clockwise and counterclockwise paths."""


def camera_path(
    config: CameraPathConfig,
    *,
    centre_depth: float,
    num_frames: int,
    intrinsics: Float[Tensor, "*#L 4"],
    height: int,
    width: int,
) -> CameraPath:
    """Cameras [L] of a path that starts at the identity; intrinsics of the source, one or per frame.

    ValueError for a kind, length, distance or depth that no path has.
    """
    check_num_frames(num_frames)
    _check(config, centre_depth)
    offsets = motion_offsets(
        motion_named(config.kind), config.distance, num_frames, centre_depth, config.spiral
    )
    poses = motion_poses(offsets, centre_depth, config.rotation, parity=config.look_at == "gen3c")
    return path_of_poses(poses, intrinsics, height, width)


def _check(config: CameraPathConfig, centre_depth: float) -> None:
    if not (math.isfinite(centre_depth) and centre_depth > 0):
        raise ValueError(f"expected a centre depth above 0, found {centre_depth}: give the scene's depth")
    if not (math.isfinite(config.distance) and config.distance >= 0):
        raise ValueError(f"expected a movement distance of 0 or more, found {config.distance}")
    for what, found, known in (
        ("rotation", config.rotation, get_args(Rotation)),
        ("look_at", config.look_at, get_args(LookAt)),
    ):
        if found not in known:
            raise ValueError(
                f"expected one of {', '.join(known)} as {what} of a camera path, found {found!r}"
            )


def check_num_frames(num_frames: int) -> None:
    """ValueError unless a video of so many frames fills whole latent frames (8 k + 1)."""
    if num_frames < 1 or num_frames % FRAMES_PER_LATENT != 1:
        nearest = max(round((num_frames - 1) / FRAMES_PER_LATENT), 0) * FRAMES_PER_LATENT + 1
        raise ValueError(f"expected 8 k + 1 frames (1, 9, 17 .. 121 ..), found {num_frames}: take {nearest}")


def lyra_six(
    seed: int,
    scene: str,
    *,
    distance_factor: float = 1.0,
    look_at: LookAt = "gen3c",
    seeding: Seeding = "per_trajectory",
) -> tuple[CameraPathConfig, ...]:
    """The six paths of a scene, in the order of their folders on disk, with drawn distances.

    The draw of a path depends on seed, scene and path alone. `legacy` repeats the official script, where
    paths 1 to 5 get the first draw of Python's generator for every scene; its path 0 is drawn from an
    unseeded generator, which cannot be repeated, so that one is drawn as usual
    (docs/reference/gen3c.md, "The six of Lyra").
    """
    return tuple(
        CameraPathConfig(
            kind=cast(PathKind, TRAJECTORIES[trajectory].name),
            distance=distance_factor * _distance(trajectory, seed, scene, seeding),
            look_at=look_at,
        )
        for trajectory in range(len(TRAJECTORIES))
    )


def follow(path: CameraPath, source: CameraPath) -> CameraPath:
    """The path [L] laid onto the cameras of a source video [L] or image [1], with the source's intrinsics.

    World-to-camera matrices are T_t w2c_source(t), as in GEN3C.
    """
    if len(source.camera_to_world) not in (1, len(path.camera_to_world)):
        raise ValueError(
            f"expected as many source cameras as the path has frames ({len(path.camera_to_world)}) or one, "
            f"found {len(source.camera_to_world)}: read as many frames as are generated"
        )
    return replace(
        path,
        camera_to_world=source.camera_to_world @ path.camera_to_world,
        intrinsics=source.intrinsics.expand_as(path.intrinsics),
        height=source.height,
        width=source.width,
    )


def still_path(intrinsics: Float[Tensor, " 4"], num_frames: int, height: int, width: int) -> CameraPath:
    """Cameras [L] that stand where the world begins; intrinsics in pixels of `height` x `width`."""
    times = torch.linspace(0.0, 1.0, num_frames) if num_frames > 1 else torch.zeros(1)
    poses = torch.eye(4).repeat(num_frames, 1, 1)
    return CameraPath(poses, intrinsics.repeat(num_frames, 1), times, height, width)


def reversed_in_time(path: CameraPath) -> CameraPath:
    """The same cameras, last first, with ascending moments: those of the reversed video."""
    return replace(path, camera_to_world=path.camera_to_world.flip(0), intrinsics=path.intrinsics.flip(0))


def flipped_path(path: CameraPath, source: CameraPath) -> CameraPath:
    """The path of flip supervision, in forward time: it reaches the source camera at the last frame.

    The video is generated along `reversed_in_time` of this, on the reversed source; frames, intrinsics and
    poses are then all turned back, of which the official script forgets the poses.
    """
    return reversed_in_time(follow(path, reversed_in_time(source)))


def fitted_path(
    path: CameraPath,
    *,
    num_frames: int,
    intrinsics: Float[Tensor, " 4"] | None,
    height: int,
    width: int,
    pose_scale: float = 1.0,
    length: Length = "exact",
) -> CameraPath:
    """A free path [L] made ready for a scene: from the identity, in the scene's units, at its image size.

    `pose_scale` times a unit of the path is a unit of the scene's depth. `intrinsics` are those of the input
    image at `height` x `width`: frame 0 gets them, the others follow the path's zoom; None keeps the path's
    own, cropped and resized. ValueError for a wrong length.
    """
    check_num_frames(num_frames)
    if not (math.isfinite(pose_scale) and pose_scale > 0):
        raise ValueError(f"expected a pose scale above 0, found {pose_scale}")
    path = _of_length(path, num_frames, length)
    path = relative_to(path, path.camera_to_world[0])
    poses = path.camera_to_world.clone()
    poses[:, :3, 3] *= pose_scale
    own = crop_and_resize_intrinsics(path.intrinsics, (path.height, path.width), (height, width))
    if intrinsics is not None:
        zoom = path.intrinsics[:, :2] / path.intrinsics[:1, :2]
        own = torch.cat([intrinsics[:2] * zoom, intrinsics[2:].expand_as(zoom)], -1)
    return replace(path, camera_to_world=poses, intrinsics=own, height=height, width=width)


def resampled_path(path: CameraPath, num_frames: int) -> CameraPath:
    """The path [L] run through in `num_frames` even steps: linear in position, even in turning."""
    num_given = len(path.camera_to_world)
    at = torch.linspace(0.0, num_given - 1, num_frames, dtype=torch.float64)
    left = at.floor().long().clamp(max=max(num_given - 2, 0))
    right = (left + 1).clamp(max=num_given - 1)
    share = at - left
    poses = path.camera_to_world.double()
    rotation = _rotated(poses[left, :3, :3], poses[right, :3, :3], share)
    centre = torch.lerp(poses[left, :3, 3], poses[right, :3, 3], share[:, None])
    result = poses[left].clone()
    result[:, :3] = torch.cat([rotation, centre[..., None]], -1)
    intrinsics = torch.lerp(path.intrinsics[left], path.intrinsics[right], share[:, None].float())
    times = torch.lerp(path.times[left], path.times[right], share.float())
    return replace(path, camera_to_world=result.float(), intrinsics=intrinsics, times=times)


def _of_length(path: CameraPath, num_frames: int, length: Length) -> CameraPath:
    num_given = len(path.camera_to_world)
    if num_given == num_frames:
        return path
    if length == "resample":
        return resampled_path(path, num_frames)
    if length == "first" and num_given > num_frames:
        return replace(path[:num_frames], times=torch.linspace(0.0, 1.0, num_frames))
    raise ValueError(
        f"expected a camera path of {num_frames} frames, found {num_given}: write that many, or resample it"
    )


def _rotated(
    start: Float[Tensor, "L 3 3"], end: Float[Tensor, "L 3 3"], share: Float[Tensor, " L"]
) -> Float[Tensor, "L 3 3"]:
    """Rotations a share of the way from start to end: start exp(share log(start^T end))."""
    turn = start.mT @ end
    cosine = (turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    skew = (turn - turn.mT) / 2
    vector = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1)
    sine = vector.norm(dim=-1)
    angle = torch.atan2(sine, cosine)
    if bool((angle > math.pi - 1e-4).any()):
        raise ValueError("expected less than half a turn between two cameras, found one: write more frames")
    scale = torch.where(sine > 1e-12, angle / sine.clamp(min=1e-12), 1.0)
    return start @ torch.linalg.matrix_exp(skew * (scale * share)[:, None, None])


def _distance(trajectory: int, seed: int, scene: str, seeding: Seeding) -> float:
    """Movement distance of one of the six paths, in units of the centre depth."""
    if seeding == "legacy" and trajectory > 0:
        low, high = TRAJECTORIES[trajectory].distance_range
        return random.Random(seed).uniform(low, high)
    return draw_distance(trajectory, generator_for("camera path", seed, scene, trajectory))
