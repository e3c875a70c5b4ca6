"""Frames with cameras, wherever they are stored, as views to refine against.

Shape letters: V trajectories, L frames of one, M views, H W image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from lyra_ns.cameras import concatenate_cameras, relative_to
from lyra_ns.codec import codec_for
from lyra_ns.data.loaded import StoredScene
from lyra_ns.generation.camera_files import in_name_order, read_camera_path
from lyra_ns.generation.image_files import read_image
from lyra_ns.generation.teachers.frames import frames_of_latents
from lyra_ns.refinement_views import RefinementViews

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
