"""The Gaussians of a run brought closer to the picture and the clips that they were made from.

Shape letters: V paths, L frames of a clip, H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import concatenate_cameras, relative_to
from lyra_ns.generation.decoder_input import DecoderInput
from lyra_ns.generation.known_views import HOLE_WEIGHT, PICTURE_SHARE, KnownViews
from lyra_ns.generation.outputs import Instant
from lyra_ns.generation.progress import OnStep
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.refinement import Refinement, RefinementConfig, RefinementStep, RefinementViews, refine
from lyra_ns.refinement_config import usual_steps

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
