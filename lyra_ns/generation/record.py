"""What record.json says of a scene: every setting, and everything that was found or drawn on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from lyra_ns.data.video_files import VideoSize
from lyra_ns.evaluation.report import environment
from lyra_ns.generation.clip_making import teacher_name
from lyra_ns.generation.decoder_input import DecoderInput
from lyra_ns.generation.length_unit import LengthUnit
from lyra_ns.generation.scene_plan import ScenePlan
from lyra_ns.generation.settings import GenerateSettings

FORMAT = "lyra_ns generated scene 1"
NOTHING_GENERATED = (
    "warped by depth: nothing was generated; what the input does not show is a smooth continuation"
)


def record_of(settings: GenerateSettings, size: VideoSize, plan: ScenePlan | None) -> dict[str, Any]:
    """What is known before anything is made; `plan` is None for latents that were there already."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "settings": {name: _plain(value) for name, value in asdict(settings).items()},
    }
    if plan is None:
        return record
    frames, found = plan.frames, plan.found
    height, width = frames.rgb.shape[-2:]
    return record | {
        "scene": plan.name,
        "input": {
            "kind": frames.kind,
            "height": frames.given_size[0],
            "width": frames.given_size[1],
            "num_frames": len(frames.rgb),
            "notes": list(frames.notes),
        },
        "clips": asdict(size),
        "lens": {
            "origin": found.intrinsics_origin,
            "intrinsics": [round(float(value), 4) for value in found.intrinsics],
            "height": height,
            "width": width,
        },
        "depth": {
            "source": found.reason,
            "estimator": found.first.estimator,
            "is_metric": found.first.is_metric,
            "share_known": round(float((found.depth > 0).float().mean()), 4),
        },
        "scale": asdict(plan.scale) | {"near_depth": plan.near_depth},
        "paths": [
            {
                "trajectory": path.trajectory,
                "name": path.name,
                "distance": path.distance,
                "drawn_distance": path.drawn_distance,
            }
            for path in plan.paths
        ],
        "seed": settings.seed,
        "teacher": {"name": teacher_name(settings)},
    }


def record_of_result(
    given: DecoderInput,
    unit: LengthUnit,
    notes: Sequence[dict[str, Any]],
    num_gaussians: Sequence[int],
    settings: GenerateSettings,
    device: torch.device,
) -> dict[str, Any]:
    """What was made, to be added to `record_of`; `notes` are the teacher's on each clip, in their order."""
    name = teacher_name(settings)
    statement = NOTHING_GENERATED if name == "warp" else f"clips by {name}"
    made = {"teacher": {"name": name, "statement": statement, "clips": list(notes)}} if notes else {}
    return {
        **made,
        "scene": given.scene,
        "codec": {"name": given.spec.codec, "digest": given.spec.digest},
        "decoder_input": {
            "trajectories": list(given.trajectories),
            "num_frames": given.cameras.shape[1],
            "height": given.cameras.height,
            "width": given.cameras.width,
            "is_dynamic": given.is_dynamic,
        },
        "unit": asdict(unit),
        "num_gaussians": list(num_gaussians),
        "environment": environment(device),
    }


def _plain(value: Any) -> Any:
    """A setting as JSON knows it."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
