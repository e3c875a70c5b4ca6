"""Gaussians brought closer to what they were made from: the picture and the clips of a run, or stored frames.

Shape letters: V paths or trajectories, L frames of a clip, M views, H W image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import concatenate_cameras, relative_to
from lyra_ns.codec import codec_for
from lyra_ns.data.camera_files import in_name_order, read_camera_path
from lyra_ns.data.images import read_image
from lyra_ns.data.scenes import StoredScene
from lyra_ns.generation.decoder_input import HOLE_WEIGHT, PICTURE_SHARE, DecoderInput, KnownViews
from lyra_ns.generation.outputs import Instant
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.progress import OnStep
from lyra_ns.refinement.config import RefinementConfig, usual_steps
from lyra_ns.refinement.run import Refinement, RefinementStep, refine
from lyra_ns.refinement.views import RefinementViews
from lyra_ns.teachers.base import frames_of_latents

TRANSFORMS = "transforms.json"
"""File of nerfstudio's data sets with the cameras of pictures."""


def stored_views(
    scene: StoredScene,
    trajectories: Sequence[int],
    frames_per_trajectory: int,
    num_pixels: int,
    codec: str = "auto",
    time: float | None = None,
) -> RefinementViews:
    """Frames of the trajectories of a stored scene, in the frame of the first camera of the first of them.

    Of each so many, evenly spaced, or of a moving scene the one at `time`. Trajectories without stored frames
    show what their latents decode to. Pictures are made smaller where they have more than `num_pixels`.
    """
    missing = [trajectory for trajectory in trajectories if trajectory not in scene.target_ids]
    if missing:
        raise ValueError(
            f"scene {scene.name} has the trajectories {scene.target_ids}, found {missing} asked for: choose "
            "among them with --trajectories"
        )
    first = scene.cameras(trajectories[0]).camera_to_world[0]
    parts = []
    for trajectory in trajectories:
        cameras = relative_to(scene.cameras(trajectory), first)
        frames = chosen_frames(cameras.shape[0], frames_per_trajectory, time)
        clip = scene.scene.clips[trajectory]
        is_stored = clip.has("rgb")
        rgb = scene.rgb(trajectory, frames) if is_stored else _decoded(scene, trajectory, codec)[frames]
        depth = scene.depth(trajectory, frames).float() if clip.has("depth") else None
        part = RefinementViews(rgb.movedim(1, -1).float() / 255, cameras[frames], depth)
        parts.append(part.no_larger_than(num_pixels))
    return joined_views(parts)


def transforms_views(path: Path, num_pixels: int) -> RefinementViews:
    """The pictures of a transforms.json, in its own world (y down in place of z up), ordered by their names.

    FileNotFoundError or ValueError for files and pictures that are missing or do not fit.
    """
    cameras = read_camera_path(path)
    names = in_name_order(frame.get("file_path", "") for frame in json.loads(path.read_bytes())["frames"])
    parts = []
    for place, name in enumerate(names):
        rgb = read_image(path.parent / name).rgb
        if rgb.shape[1:] != (cameras.height, cameras.width):
            raise ValueError(
                f"{path} says that pictures have {cameras.width} x {cameras.height} pixels (width x height), "
                f"found {rgb.shape[2]} x {rgb.shape[1]} in {name}: take the pictures that belong to it"
            )
        part = RefinementViews(rgb.movedim(0, -1)[None].float() / 255, cameras[place : place + 1])
        parts.append(part.no_larger_than(num_pixels))
    return joined_views(parts)


def chosen_frames(num_frames: int, num_wanted: int, time: float | None) -> list[int]:
    """Evenly spaced frames from the first to the last, or the one at a moment from 0 to 1."""
    if time is not None:
        return [round(time * (num_frames - 1))]
    return torch.linspace(0, num_frames - 1, min(num_wanted, num_frames)).round().long().tolist()


def joined_views(parts: Sequence[RefinementViews]) -> RefinementViews:
    """Views of one size as one set; depth stays only if all have it."""
    depths = [part.depth for part in parts if part.depth is not None]
    return RefinementViews(
        torch.cat([part.images for part in parts]),
        concatenate_cameras([part.cameras for part in parts]),
        torch.cat(depths) if len(depths) == len(parts) else None,
    )


def holding_back(views: RefinementViews, every: int) -> RefinementViews:
    """The same with every so many-th picture held back, from the middle of the first such run on; 0: none.

    The first picture is never held back: of a generated scene it is the photograph itself.
    """
    if every < 1 or views.num < 2:
        return replace(views, held_back=())
    every = max(2, min(every, views.num))
    return replace(views, held_back=tuple(range(every // 2, views.num, every)))


def _decoded(scene: StoredScene, trajectory: int, codec: str) -> UInt8[Tensor, "L 3 H W"]:
    """All frames that the latents of a trajectory decode to."""
    if codec == "auto" and scene.spec.codec == "unknown":
        raise ValueError(
            f"scene {scene.name} has no frames, and no manifest names the codec of its latents: give --codec "
            "cosmos:PATH (official data) or --codec linear"
        )
    decoder = codec_for(scene.spec, torch.device("cpu"), codec)
    return frames_of_latents(decoder, scene.latents(trajectory), "cpu")


FRAMES_PER_PATH = 4
"""Frames of each clip that are shown."""
JUDGE_AT = 0.7
"""Where on each path its judge stands."""


def num_refine_steps(settings: GenerateSettings, is_stored: bool, device: torch.device) -> int:
    """How many steps are meant; latents that were there already are left as they are, unless one asks."""
    if settings.refine_steps is not None:
        return settings.refine_steps
    return 0 if is_stored else usual_steps(device.type)


def refinement_views(
    known: KnownViews | None, given: DecoderInput, is_warp: bool, factor: float
) -> list[RefinementViews]:
    """All that is to be refined against, in the frame of the Gaussians: `given` is in their unit already.

    `factor` is that unit in units of the scene, in which `known` is.
    """
    views = [] if known is None else list(known.for_gaussians(first_camera(given, factor), factor))
    if known is None or known.around is None:
        clips = _views_of_clips(given, is_warp)
        local = relative_to(clips.cameras, given.cameras.camera_to_world[0, 0])
        views.append(replace(clips, cameras=local))
    return views


def first_camera(given: DecoderInput, factor: float) -> Float[Tensor, "4 4"]:
    """Pose, in units of the scene, of the camera in whose frame the Gaussians of `given` are."""
    pose = given.cameras.camera_to_world[0, 0].clone()
    pose[:3, 3] /= factor
    return pose


def _views_of_clips(given: DecoderInput, is_warp: bool) -> RefinementViews:
    """Frames of the clips, in the unit and the world of their cameras.

    Of a static scene a few of each clip, one of them a judge; of a moving one all, and one clip judges.
    Depth of a warped clip says what it knows: elsewhere it is a guess, and counts little.
    """
    num_paths, num_frames = given.cameras.shape
    frames, judges = _chosen_frames(num_frames, given.is_dynamic)
    held_back = range(len(frames), len(frames) + len(judges)) if judges else ()
    chosen = [*frames, *judges]
    images = torch.cat([video[chosen] for video in given.videos]).movedim(1, -1).float() / 255
    has_depth = bool(given.depths) and all(depth is not None for depth in given.depths)
    depth = torch.cat([depth[chosen] for depth in given.depths if depth is not None]) if has_depth else None
    weight = torch.where(depth > 0, 1.0, HOLE_WEIGHT) if is_warp and depth is not None else None
    per_path = len(chosen)
    places = [path * per_path + place for path in range(num_paths) for place in held_back]
    if given.is_dynamic and num_paths > 1:
        places = list(range((num_paths - 1) * per_path, num_paths * per_path))
    cameras = concatenate_cameras([given.cameras[path][chosen] for path in range(num_paths)])
    return RefinementViews(images, cameras, depth, weight, 1 - PICTURE_SHARE, tuple(places))


def _chosen_frames(num_frames: int, is_dynamic: bool) -> tuple[list[int], list[int]]:
    """Frames of a clip that are shown, and those that judge."""
    if is_dynamic:
        return list(range(num_frames)), []
    shown = torch.linspace(0, num_frames - 1, FRAMES_PER_PATH + 1).round().long().tolist()[1:]
    judge = round(JUDGE_AT * (num_frames - 1))
    return [frame for frame in shown if frame != judge], [judge]


def refined_instants(
    instants: Sequence[Instant],
    views: Sequence[RefinementViews],
    config: RefinementConfig,
    on_step: OnStep | None = None,
) -> tuple[tuple[Instant, ...], list[Refinement]]:
    """Every instant refined with the views of its time, and how that went.

    Steps and seconds are shared evenly. An instant without views stays as it is.
    """
    num = len(instants)
    config = replace(
        config,
        num_steps=max(1, config.num_steps // num),
        seconds=None if config.seconds is None else config.seconds / num,
    )
    made, notes = [], []
    for number, instant in enumerate(instants):
        here = _views_at(views, instant.time)
        if not here:
            made.append(instant)
            continue

        def tell(step: RefinementStep, done: int = number * config.num_steps) -> None:
            if on_step is not None:
                on_step(done + step.step, num * config.num_steps, str(step))

        refinement = refine(instant.gaussians, here, config, tell)
        made.append(replace(instant, gaussians=refinement.gaussians))
        notes.append(refinement)
    return tuple(made), notes


def _views_at(views: Sequence[RefinementViews], time: float | None) -> list[RefinementViews]:
    """The views of a moment, or all of a static scene."""
    if time is None:
        return list(views)
    times = torch.cat([some.cameras.times for some in views]).unique()
    nearest = float(times[(times - time).abs().argmin()])
    at_time = (some.near_time(nearest, within=1e-4) for some in views)
    return [some for some in at_time if some is not None and some.shown]


def refinement_record(refinements: Sequence[Refinement]) -> dict[str, Any]:
    """What record.json says of it; an instant each."""
    return {
        "instants": [
            {
                "num_steps": made.num_steps,
                "best_step": made.best_step,
                "held_back_psnr": {str(step): round(psnr, 3) for step, psnr in made.held_back_psnr.items()},
                "seconds": round(made.seconds, 2),
                "ended": made.reason,
            }
            for made in refinements
        ]
    }
