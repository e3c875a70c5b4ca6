"""The files of a result: Gaussians, a video, a contact sheet, latents that can be read again, and a record.

Shape letters: V trajectories, L frames, M views of a sheet, H W image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, relative_to, stack_cameras
from lyra_ns.data.atomic import write_whole
from lyra_ns.data.store import Manifest, write_clip, write_manifest
from lyra_ns.export.html import centre_depth, save_html
from lyra_ns.export.ply import save_ply
from lyra_ns.export.video import save_video, turntable_path
from lyra_ns.gaussians import Gaussians
from lyra_ns.generation.decoder_input import DecoderInput
from lyra_ns.generation.length_unit import farthest_frames
from lyra_ns.pictures import contact_sheet, save_picture
from lyra_ns.rendering import Rendered, RenderSettings, render

LOOP_FRAMES = 72
"""Frames of the video, three seconds."""
SHOWN_WIDTH = 320
"""Pictures of a contact sheet are made so many pixels wide at most."""
ENLARGED_BELOW = 512
"""Videos narrower than this are enlarged twice, since single Gaussians show as strokes in larger renders."""
VIEWS_AT_ONCE = 8
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Instant:
    """The scene at one moment."""

    time: float | None
    """From 0 to 1; None for a static scene."""
    gaussians: Gaussians
    """The Gaussians, in the frame of the first camera of the first trajectory."""


def write_gaussians(
    folder: Path, instants: Sequence[Instant], given: DecoderInput, settings: RenderSettings
) -> None:
    """scene.ply and scene.html of the first instant, and instants/*.ply of all where there are several."""
    first = instants[0].gaussians
    save_ply(first, folder / "scene.ply")
    assert settings.response != "auto"
    reference = _local(given.cameras)[0, 0].to("cpu")
    save_html(first, folder / "scene.html", reference, given.scene, response=settings.response)
    if len(instants) > 1:
        for instant in instants:
            save_ply(instant.gaussians, folder / "instants" / f"scene_{instant.time:.3f}.ply")


def write_video(
    path: Path,
    instants: Sequence[Instant],
    given: DecoderInput,
    settings: RenderSettings,
    on_step: OnStep | None = None,
) -> None:
    """A video of the Gaussians from a closed loop of cameras near the paths, instants one after the other."""
    cameras = _local(given.cameras)
    depth = centre_depth(instants[0].gaussians.to("cpu"), cameras[0, 0])
    loop = turntable_path(cameras, depth, LOOP_FRAMES)
    parts = []
    for start in range(0, LOOP_FRAMES, VIEWS_AT_ONCE):
        instant = instants[start * len(instants) // LOOP_FRAMES]
        parts.append(_rendered(instant.gaussians, loop[start : start + VIEWS_AT_ONCE], settings).rgb)
        if on_step:
            on_step(start + VIEWS_AT_ONCE, LOOP_FRAMES)
    frames = torch.cat(parts)
    if frames.shape[2] < ENLARGED_BELOW:
        enlarged = functional.interpolate(frames.movedim(-1, 1), scale_factor=2, mode="bicubic")
        frames = enlarged.clamp(0, 1).movedim(1, -1)
    save_video(frames, path)


def write_sheet(
    path: Path,
    instants: Sequence[Instant],
    given: DecoderInput,
    settings: RenderSettings,
    clip_title: str,
) -> None:
    """A picture with a row for the input and one for the farthest frame of each path.

    Its columns are clip, Gaussians, their depth and the depth of the clip, as far as they are at hand.
    """
    frames = [0, *farthest_frames(given.cameras)]
    rows = [0, *range(len(given.names))]
    local = _local(given.cameras)
    views = stack_cameras([local[row, frame] for row, frame in zip(rows, frames, strict=True)])
    seen = [
        _rendered(_nearest(instants, float(camera.times)).gaussians, camera.reshape(1), settings)
        for camera in (views[number] for number in range(len(rows)))
    ]
    columns: dict[str, Tensor] = {}
    if given.videos:
        clip = torch.stack([given.videos[row][frame] for row, frame in zip(rows, frames, strict=True)])
        columns[clip_title] = clip.movedim(1, -1).float() / 255
    columns["Gaussians"] = torch.cat([part.rgb for part in seen])
    columns["their depth"] = torch.cat([part.depth for part in seen])
    if given.depths and all(depth is not None for depth in given.depths):
        known = [given.depths[row] for row in rows]
        columns["depth of the clip"] = torch.stack(
            [depth[frame] for depth, frame in zip(known, frames, strict=True) if depth is not None]
        )
    paths = zip(given.trajectories, given.names, strict=True)
    captions = ["input", *(f"{number} {name}" for number, name in paths)]
    shown = {caption: for_sheet(images) for caption, images in columns.items()}
    save_picture(contact_sheet(shown, captions, given.scene), path)


def write_latents(folder: Path, given: DecoderInput, seed: int) -> None:
    """The clips as a data set of one scene in the official layout, with a manifest."""
    family = "dynamic" if given.is_dynamic else "static"
    for place, trajectory in enumerate(given.trajectories):
        write_clip(
            folder / family,
            given.scene,
            trajectory,
            given.cameras[place],
            z=given.z[place],
            rgb=given.videos[place] if given.videos else None,
            depth=given.depths[place] if given.depths else None,
            latent_format="safetensors",
        )
    manifest = Manifest(
        codec=given.spec.codec,
        num_frames=given.cameras.shape[1],
        height=given.cameras.height,
        width=given.cameras.width,
        scenes={given.scene: sorted(given.trajectories)},
        splits={"train": [given.scene], "test": []},
        is_dynamic=given.is_dynamic,
        seed=seed,
        codec_digest=given.spec.digest,
        flipped_pose_order="as_is",
    )
    write_manifest(folder, manifest)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """The record as JSON; NaN and infinity are refused."""
    write_whole(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def for_sheet(images: Float[Tensor, "M H W *colours"]) -> Float[Tensor, "M h w *colours"]:
    """The images no wider than SHOWN_WIDTH: colours averaged, depths picked."""
    height, width = images.shape[1:3]
    if width <= SHOWN_WIDTH:
        return images
    size = (round(height * SHOWN_WIDTH / width), SHOWN_WIDTH)
    if images.ndim == 3:
        return functional.interpolate(images[:, None], size, mode="nearest-exact")[:, 0]
    resized = functional.interpolate(images.movedim(-1, 1), size, mode="bilinear", antialias=True)
    return resized.movedim(1, -1)


def _local(cameras: CameraPath) -> CameraPath:
    """The cameras in the frame of the Gaussians."""
    return relative_to(cameras, cameras.camera_to_world[0, 0])


@torch.no_grad()
def _rendered(gaussians: Gaussians, cameras: CameraPath, settings: RenderSettings) -> Rendered:
    """Images [M, ...] on the CPU, colours from 0 to 1."""
    settings = replace(settings, views_at_once=VIEWS_AT_ONCE)
    seen = render(gaussians, cameras.to(gaussians.means.device), settings)
    return Rendered(seen.rgb.clamp(0, 1).cpu(), seen.depth.cpu(), seen.alpha.cpu())


def _nearest(instants: Sequence[Instant], time: float) -> Instant:
    return min(instants, key=lambda instant: abs((instant.time or 0.0) - time))
