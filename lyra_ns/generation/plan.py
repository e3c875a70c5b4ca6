"""A scene before anything is generated: what is known of it as a 3D cache, and the paths to film it along.

Depth of all frames comes in one unit, with the camera's intrinsics, from whatever is known. A path may be no
longer than the near things of a picture allow: where it shows sky, the median of its depth is that of
nothing, and a path as long as that asks for leads through what the picture is of. Cameras around the centre
of a scene turn as far as most of what they see is known.

Shape letters: V paths, L frames of a clip, S frames of the source, M views, P points, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.cache3d.cache import CacheSettings, SceneCache
from lyra_ns.cache3d.inpaint import background_weights, fill_holes
from lyra_ns.camera_paths import (
    MOTIONS,
    CameraPathConfig,
    LookAt,
    PathKind,
    camera_path,
    fitted_path,
    follow,
    lyra_six,
    still_path,
)
from lyra_ns.cameras import CameraPath, look_at, project, relative_to, stack_cameras
from lyra_ns.data.camera_files import read_camera_path
from lyra_ns.data.layout import READING_ORDER, in_reading_order
from lyra_ns.data.pose_order import FIRST_FLIPPED_ID
from lyra_ns.data.resize import resize_depth, resize_rgb
from lyra_ns.data.video import VideoSize
from lyra_ns.depth.base import (
    ASSUMED_FOV,
    DepthEstimator,
    DepthPrediction,
    PlaneDepth,
    intrinsics_of_fov,
    read_depth_file,
)
from lyra_ns.depth.registry import is_depth_file, load_depth
from lyra_ns.depth.scale import SceneScale, scene_depth, scene_scale
from lyra_ns.gaussians import Gaussians
from lyra_ns.generation.inputs import SourceFrames, masked_out
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.rendering import RenderSettings, render
from lyra_ns.teachers.warp import shown_whole, warped_frames

SAME_ASPECT = 0.02
"""How much the aspects of a depth file and its picture may differ, as a share."""

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class SceneDepth:
    """Depth of the frames of a scene."""

    depth: Float[Tensor, "S H W"]
    """z-depth in the unit of the first frame's, 0 where unknown."""
    first: DepthPrediction
    """What was found for the first frame."""
    intrinsics: Float[Tensor, " 4"]
    """fx, fy, cx, cy in pixels of the frames."""
    intrinsics_origin: str
    """Where they come from, in words."""
    reason: str
    """Where the depth comes from, in words."""


def depth_of_frames(
    frames: SourceFrames, choice: str, device: torch.device | str = "cpu", on_step: OnStep | None = None
) -> SceneDepth:
    """Depth of every frame by ViPE, a file or an estimator (`load_depth`), scaled to fit each other.

    ValueError where a choice cannot be had or does not fit the frames.
    """
    if is_depth_file(choice):
        return _of_file(frames, Path(choice).expanduser())
    if choice == "auto" and frames.vipe is not None:
        return _with_intrinsics(frames, frames.vipe.depth, frames.vipe.first_prediction(), "ViPE's own")
    chosen = load_depth(choice, device)
    estimator = chosen.estimator
    if isinstance(estimator, PlaneDepth):
        estimator = replace(estimator, fov_x=_assumed_fov_x(*frames.rgb.shape[-2:]))
    return _estimated(frames, estimator, chosen.reason, device, on_step)


def _estimated(
    frames: SourceFrames,
    estimator: DepthEstimator,
    reason: str,
    device: torch.device | str,
    on_step: OnStep | None,
) -> SceneDepth:
    intrinsics, predictions = frames.intrinsics, []
    for number, image in enumerate(frames.rgb):
        if on_step:
            on_step(number, len(frames.rgb))
        prediction = estimator.predict(image.to(device).float() / 255, intrinsics)
        predictions.append(replace(prediction, depth=prediction.depth.float().cpu()))
        # One lens for the whole video, even where every frame would suggest its own.
        intrinsics = intrinsics if intrinsics is not None else prediction.intrinsics
    first = predictions[0]
    depth = torch.stack([prediction.depth for prediction in predictions])
    if len(depth) > 1 or frames.vipe is not None:
        depth = _scaled_alike(depth, frames.vipe.depth if frames.vipe else first.depth.expand_as(depth))
        first = replace(first, depth=depth[0])
    found = frames if isinstance(estimator, PlaneDepth) else replace(frames, intrinsics=intrinsics)
    origin = f"found by {first.estimator}" if frames.intrinsics is None else frames.intrinsics_origin
    return _with_intrinsics(replace(found, intrinsics_origin=origin), depth, first, reason)


def _scaled_alike(depth: Float[Tensor, "S H W"], reference: Float[Tensor, "S H W"]) -> Float[Tensor, "S H W"]:
    """Every frame's depth times the median ratio of its reference to it, which moving things hardly shift."""
    factors = []
    for found, wanted in zip(depth, reference, strict=True):
        both = (found > 0) & (wanted > 0)
        if not bool(both.any()):
            raise ValueError(
                "expected depth at the same pixels of all frames, so that their scales can be matched, found "
                "a frame without: take another --depth"
            )
        factors.append((wanted[both] / found[both]).median())
    return depth * torch.stack(factors)[:, None, None]


def _of_file(frames: SourceFrames, path: Path) -> SceneDepth:
    if len(frames.rgb) > 1:
        raise ValueError(
            f"depth {path} is of one picture, found {len(frames.rgb)} frames: give an estimator, ViPE's "
            "output, or --first-frame-only"
        )
    depth = read_depth_file(path)
    aspect, expected = depth.shape[1] / depth.shape[0], frames.given_size[1] / frames.given_size[0]
    if abs(aspect / expected - 1) > SAME_ASPECT:
        raise ValueError(
            f"depth {path} must have the aspect of the picture ({frames.given_size[1]} x "
            f"{frames.given_size[0]}, width x height), found {depth.shape[1]} x {depth.shape[0]}: give the "
            "depth of the whole picture"
        )
    fitted = resize_depth(depth[None], *frames.rgb.shape[-2:])[:, None]
    if not bool((fitted > 0).any()):
        raise ValueError(f"depth {path} is unknown in all of the cropped picture: give another file")
    # Sensors leave gaps; they get the depth of the farther surroundings.
    filled = fill_holes(fitted, background_weights(fitted))[:, 0]
    first = DepthPrediction(filled[0], frames.intrinsics, False, False, f"file {path.name}")
    measured = float((fitted > 0).float().mean())
    gaps = "" if measured == 1 else f", {1 - measured:.0%} of it gaps that were filled from around them"
    return _with_intrinsics(frames, filled, first, f"the file {path}{gaps}")


def _with_intrinsics(
    frames: SourceFrames, depth: Float[Tensor, "S H W"], first: DepthPrediction, reason: str
) -> SceneDepth:
    intrinsics, origin = frames.intrinsics, frames.intrinsics_origin
    if intrinsics is None:
        height, width = frames.rgb.shape[-2:]
        intrinsics = intrinsics_of_fov(_assumed_fov_x(height, width), height, width)
        side = "high" if height > width else "wide"
        origin = f"assumed: {ASSUMED_FOV:g} degrees {side}, because nothing says it (--fov, --intrinsics)"
    return SceneDepth(depth, first, intrinsics.float().cpu(), origin, reason)


def _assumed_fov_x(height: int, width: int) -> float:
    """Degrees across the width of a picture whose lens is not known."""
    half = math.tan(math.radians(ASSUMED_FOV) / 2)
    return 2 * math.degrees(math.atan(half * width / max(height, width)))


MIDDLE_SHARE = 0.5
"""Share of each side of a picture that is its middle, where its subject is looked for."""
NEAR_SHARE = 0.05
"""Share of the middle that may be nearer than its subject: a thin one before the sky counts as well."""
CLEARANCE = 1 / 3
"""What is in view stays farther away than this share of its first depth: it grows threefold at most."""
STEP = 0.02
"""Lengths of paths are tried in steps of this, in units of the depth of what they turn about."""
MOST_POINTS = 96
"""Points along the longer side of a picture that are looked at."""
MOST_FRAMES = 9
"""Frames of a path that are looked at."""
UNKNOWN = 1e6
"""Depth at which nothing is in the way."""


def near_depth(depth: Float[Tensor, "H W"]) -> float:
    """Depth of the subject: a low percentile in the middle of the frame, or of all of it if that is unknown.

    Unknown pixels are 0 and do not count. ValueError where nothing is known.
    """
    top, left = (round(side * (1 - MIDDLE_SHARE) / 2) for side in depth.shape)
    middle = depth[top : depth.shape[0] - top, left : depth.shape[1] - left]
    for part in (middle, depth):
        known = part[part > 0]
        if len(known):
            # By sorting, since torch.quantile refuses large images.
            return float(known.sort().values[int(NEAR_SHARE * (len(known) - 1))])
    raise ValueError("expected depth of at least one pixel, found none: take another --depth")


def clear_distance(
    path_of: Callable[[float], CameraPath], distance: float, depth: Float[Tensor, "S H W"]
) -> float:
    """The largest distance up to `distance` with which a path stays clear of everything in its view.

    `path_of` gives the path [L] of a distance, from the camera of the depth, which is that of one picture
    (S = 1) or of each frame of a video (S = L), through the same lens. Depth is in the units of the path, 0
    where unknown, and has the aspect of the path's images.
    """
    points = _points(depth, path_of(0.0).resized(*depth.shape[-2:]).intrinsics[0])
    num_steps = max(1, math.ceil(distance / STEP))
    for step in range(1, num_steps + 1):
        if not _is_clear(path_of(distance * step / num_steps), points):
            return distance * (step - 1) / num_steps
    return distance


def _points(depth: Float[Tensor, "S H W"], intrinsics: Float[Tensor, " 4"]) -> Float[Tensor, "S P 3"]:
    """The nearest point of each block of pixels, in the camera of the depth."""
    block = math.ceil(max(depth.shape[-2:]) / MOST_POINTS)
    known = torch.where(depth > 0, depth, UNKNOWN)
    nearest = -functional.max_pool2d(-known[:, None], block, ceil_mode=True)[:, 0]
    fx, fy, cx, cy = intrinsics.to(nearest)
    row, column = (block * (torch.arange(count).to(nearest) + 0.5) for count in nearest.shape[-2:])
    x, y = ((column - cx) / fx).expand_as(nearest), ((row - cy) / fy)[:, None].expand_as(nearest)
    return (torch.stack([x, y, torch.ones_like(x)], -1) * nearest[..., None]).flatten(1, 2)


def _is_clear(path: CameraPath, points: Float[Tensor, "S P 3"]) -> bool:
    """Whether nothing that is in view anywhere along the path is much nearer than it was."""
    frames = torch.linspace(0, path.shape[0] - 1, min(MOST_FRAMES, path.shape[0])).round().long()
    cameras = path[frames].to(points.device)
    seen = points.expand(path.shape[0], -1, -1)[frames]
    pixels, depth = project(seen, cameras)
    column, row = pixels.unbind(-1)
    in_view: Bool[Tensor, "L P"] = (depth > 0) & (column >= 0) & (column < path.width)
    in_view &= (row >= 0) & (row < path.height)
    return not bool((in_view & (depth < CLEARANCE * seen[..., 2])).any())


COVERED_SHARE = 0.9
"""Share of the picture that must be known for an angle to count as covered."""
DEGREES_TRIED = tuple(range(2, 32, 2))
"""Angles that are looked at, from near to far."""
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, 1), "down": (0, -1)}
"""To the right and upwards."""
OPAQUE = 0.5
"""Accumulated opacity from which on a pixel of Gaussians counts as known."""
CHECK_WIDTH = 128
"""Width in pixels at which coverage is measured."""
Coverage = Callable[[CameraPath], Float[Tensor, " M"]]
"""Share of the picture that each camera sees of what is known."""


def turned_camera(camera: CameraPath, centre_depth: float, right: float, up: float) -> CameraPath:
    """A camera [1] like this one [], turned by degrees about the point at `centre_depth` on its axis.

    It looks at that point from as far away as before; 0 degrees give the camera itself.
    """
    around, above = math.radians(right), math.radians(up)
    outwards = torch.tensor(
        [math.sin(around) * math.cos(above), -math.sin(above), -math.cos(around) * math.cos(above)]
    )
    centre = torch.tensor([0.0, 0.0, centre_depth])
    local = look_at(centre + centre_depth * outwards, centre).to(camera.camera_to_world)
    return replace(camera, camera_to_world=camera.camera_to_world @ local).reshape(1)


def covered_degrees(coverage: Coverage, camera: CameraPath, centre_depth: float) -> dict[str, int]:
    """For each direction the largest of DEGREES_TRIED up to which all are covered, 0 if none is."""
    height = max(1, round(camera.height * CHECK_WIDTH / camera.width))
    small = camera.resized(height, CHECK_WIDTH)
    found = {}
    for name, (right, up) in DIRECTIONS.items():
        found[name] = 0
        for degrees in DEGREES_TRIED:
            turned = turned_camera(small, centre_depth, right * degrees, up * degrees)
            if float(coverage(turned)[0]) < COVERED_SHARE:
                break
            found[name] = degrees
    return found


def coverage_of_cache(cache: SceneCache) -> Coverage:
    """What the cache shows, for scenes of which nothing else is known."""
    shown = shown_whole(cache)
    return lambda cameras: warped_frames(shown, cameras).mask.float().mean((1, 2, 3))


def coverage_of_gaussians(gaussians: Gaussians, settings: RenderSettings) -> Coverage:
    """What the Gaussians cover, for scenes that a video model has completed."""

    @torch.no_grad()
    def coverage(cameras: CameraPath) -> Tensor:
        seen = render(gaussians, cameras.to(gaussians.means.device), settings)
        return (seen.alpha > OPAQUE).float().mean((1, 2)).cpu()

    return coverage


SAME_DRAW = {"down": "up", "counterclockwise": "clockwise"}
"""Kinds outside Lyra's six are as long as the one of the six that mirrors them."""


@dataclass(frozen=True)
class PlannedPath:
    """One camera path of a scene."""

    name: str
    """Its kind, or the name of its file."""
    trajectory: int
    """Its number on disk."""
    distance: float | None
    """Length in units of the centre depth; None for paths from files."""
    cameras: CameraPath
    """The path [L], in units of the scene, in the world of the first source camera."""
    drawn_distance: float | None = None
    """Length that it would have if nothing were in its way; None for paths from files."""

    @property
    def shortening(self) -> str:
        """What it cost to keep clear of near things, in words; empty for nothing."""
        if self.distance is None or self.drawn_distance is None or self.distance == self.drawn_distance:
            return ""
        share = self.distance / self.drawn_distance
        return f"path {self.name}: {share:.0%} of its length, or it would fly through what is near"


@dataclass(frozen=True)
class ScenePlan:
    """All that a teacher needs to make the clips of a scene."""

    name: str
    """Name of the scene."""
    frames: SourceFrames
    """What the scene is made from."""
    image: Float[Tensor, "3 H W"]
    """First frame of all clips, 0 to 1."""
    depth: Float[Tensor, "S h w"]
    """z-depth of the source in units of the scene, 0 where unknown."""
    cache: SceneCache | None
    """What is known of the scene; None when its clips are made."""
    paths: tuple[PlannedPath, ...]
    """Camera paths, in the order in which decoders read them."""
    scale: SceneScale
    """Units of the scene."""
    found: SceneDepth
    """Depth as it was found, and the lens."""
    near_depth: float
    """Depth of what is near in the middle of the first frame, in units of the scene."""

    def without_cache(self) -> ScenePlan:
        """The same without the cache, whose memory is free when no request holds it."""
        return replace(self, cache=None)

    @property
    def cameras(self) -> CameraPath:
        """All paths [V, L]."""
        return stack_cameras([path.cameras for path in self.paths])

    @property
    def centre(self) -> Float[Tensor, " 3"]:
        """The point that the named paths turn about."""
        return torch.tensor([0.0, 0.0, self.scale.centre_depth])


def plan_scene(
    frames: SourceFrames,
    found: SceneDepth,
    settings: GenerateSettings,
    size: VideoSize,
    look_at: LookAt,
    device: torch.device | str = "cpu",
    *,
    follows_near: bool = False,
) -> ScenePlan:
    """The cache of a scene and its paths; the cache lies on `device`, everything else on the CPU.

    With `follows_near` paths turn about the near depth instead of the centre of the official data, and are as
    long as that asks for. FileNotFoundError or ValueError for paths and scales that cannot be used.
    """
    if frames.is_video and len(settings.trajectory) > FIRST_FLIPPED_ID:
        raise ValueError(
            f"expected at most {FIRST_FLIPPED_ID} of --trajectory for a moving scene, found "
            f"{len(settings.trajectory)}: further numbers are those of reversed videos, make a second scene"
        )
    scale = scene_scale(
        found.first,
        units=settings.depth_units,
        centre_quantile=settings.centre_quantile,
        pose_scale=settings.pose_scale,
        path_depth=None if frames.vipe is None else frames.vipe.depth[0],
    )
    # An estimator's unknown is sky; ViPE's is a pixel that it did not understand.
    is_estimated = frames.vipe is None
    depth = scene_depth(found.depth, scale) if is_estimated else found.depth * scale.depth_factor
    near = near_depth(depth[0])
    if follows_near:
        scale = replace(scale, centre_depth=near)
    source = _source_cameras(frames, found, scale)
    clip_source = source.resized(size.height, size.width)
    paths = tuple(
        replace(path, cameras=_laid_on(path.cameras, clip_source))
        for path in _paths(settings, frames.name, scale, clip_source.intrinsics[0], size, look_at, depth)
    )
    image = resize_rgb(frames.rgb[:1], size.height, size.width)[0].float() / 255
    cache = _cache(frames, depth, source, device)
    return ScenePlan(frames.name, frames, image, depth, cache, paths, scale, found, near)


def _laid_on(path: CameraPath, source: CameraPath) -> CameraPath:
    """The path along the source's cameras, through the source's lens times the zoom of the path."""
    cameras = follow(path, source)
    zoom = path.intrinsics[:, :2] / path.intrinsics[:1, :2]
    lens = torch.cat([cameras.intrinsics[:, :2] * zoom, cameras.intrinsics[:, 2:]], -1)
    return replace(cameras, intrinsics=lens)


def _source_cameras(frames: SourceFrames, found: SceneDepth, scale: SceneScale) -> CameraPath:
    """Cameras [S] of the source at its size: ViPE's in units of the scene, or all where the world begins."""
    if frames.vipe is not None:
        cameras = relative_to(frames.vipe.cameras, frames.vipe.cameras.camera_to_world[0])
        poses = cameras.camera_to_world.clone()
        poses[:, :3, 3] *= scale.depth_factor
        return replace(cameras, camera_to_world=poses)
    return still_path(found.intrinsics, len(frames.rgb), *frames.rgb.shape[-2:])


def _cache(frames: SourceFrames, depth: Tensor, source: CameraPath, device: torch.device | str) -> SceneCache:
    # Of upright pictures the longer side, too: it is what lenses are chosen by, so pixels are as wide.
    settings = CacheSettings.for_width(max(source.height, source.width))
    rgb = frames.rgb.to(device).float() / 255
    mask = masked_out(frames)
    depth, source = depth.to(device), source.to(device)
    if frames.is_video:
        return SceneCache.from_video(rgb, depth, source, mask, settings)
    return SceneCache.from_image(rgb[0], depth[0], source[0], None if mask is None else mask[0], settings)


def _paths(
    settings: GenerateSettings,
    scene: str,
    scale: SceneScale,
    intrinsics: Float[Tensor, " 4"],
    size: VideoSize,
    look_at: LookAt,
    depth: Float[Tensor, "S h w"],
) -> list[PlannedPath]:
    """Paths from the identity: those that were named, or the first of Lyra's six in the decoders' order."""
    six = lyra_six(settings.seed, scene, distance_factor=settings.distance_factor, look_at=look_at)

    def named(config: CameraPathConfig, number: int) -> PlannedPath:
        def path_of(distance: float) -> CameraPath:
            return camera_path(
                replace(config, distance=distance),
                centre_depth=scale.centre_depth,
                num_frames=size.num_frames,
                intrinsics=intrinsics,
                height=size.height,
                width=size.width,
            )

        distance = clear_distance(path_of, config.distance, depth)
        return PlannedPath(config.kind, number, distance, path_of(distance), config.distance)

    if not settings.trajectory:
        return [named(six[number], number) for number in READING_ORDER[: settings.num_trajectories]]
    planned = []
    for number, word in enumerate(settings.trajectory):
        if word in MOTIONS:
            planned.append(named(_config_of(word, six), number))
        elif Path(word).suffix:
            planned.append(_from_file(Path(word).expanduser(), number, settings, scale, intrinsics, size))
        else:
            raise ValueError(
                f"expected one of {', '.join(MOTIONS)}, or a .json or .npz file, as --trajectory, found "
                f"{word!r}"
            )
    return in_decoders_order(planned)


def in_decoders_order(paths: list[PlannedPath]) -> list[PlannedPath]:
    """Numbers 5, 0, 1, 2, 3, 4 first and in this order, then the others, as `reconstruct` reads them."""
    numbers = [path.trajectory for path in paths]
    return [paths[numbers.index(number)] for number in in_reading_order(numbers)]


def _config_of(kind: str, six: tuple[CameraPathConfig, ...]) -> CameraPathConfig:
    """A path of this kind, as long as the one of the six that is like it."""
    like = next((config for config in six if config.kind == SAME_DRAW.get(kind, kind)), None)
    if like is None:
        return replace(six[0], kind=cast(PathKind, kind), distance=0.0)
    return replace(like, kind=cast(PathKind, kind))


def _from_file(
    path: Path,
    number: int,
    settings: GenerateSettings,
    scale: SceneScale,
    intrinsics: Float[Tensor, " 4"],
    size: VideoSize,
) -> PlannedPath:
    try:
        cameras = fitted_path(
            read_camera_path(path),
            num_frames=size.num_frames,
            intrinsics=intrinsics,
            height=size.height,
            width=size.width,
            pose_scale=scale.path_factor,
            length=settings.path_length,
        )
    except ValueError as error:
        if str(path) in str(error):
            raise
        advice = " (--path-length first or resample)" if "frames" in str(error) else ""
        raise ValueError(f"camera path {path}: {error}{advice}") from error
    return PlannedPath(path.stem, number, None, cameras)
