"""The input of a run by its kind: pictures to make a scene of, or latents that are there already."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lyra_ns.camera_paths import TRAJECTORIES
from lyra_ns.data.atomic import no_new_empty_folders, write_whole
from lyra_ns.data.images import FINER, finer_size
from lyra_ns.data.open import chosen_trajectories, open_scene, read_inputs
from lyra_ns.generation.decoder_input import DecoderInput
from lyra_ns.generation.folder import unfinished_folder
from lyra_ns.generation.inputs import (
    ClipSizes,
    InputKind,
    SourceFrames,
    image_input,
    read_image_input,
    read_video_input,
    read_vipe_input,
)
from lyra_ns.generation.settings import GenerateSettings

logger = logging.getLogger(__name__)

NAME_LENGTH = 40
"""Letters of a prompt that name its scene."""
MADE_FROM = "made from"
"""Text in the file of a painted picture that says what it was painted from."""


def read_source(
    kind: InputKind, settings: GenerateSettings, sizes: ClipSizes, device: torch.device
) -> SourceFrames:
    """The frames of an input; FileNotFoundError or ValueError say what is wrong with it."""
    if kind == "prompt":
        return _made_from_prompt(settings, sizes, device)
    assert settings.input is not None
    if kind == "image":
        return read_image_input(settings.input, settings, sizes)
    if kind == "vipe":
        return read_vipe_input(settings.input, settings, sizes)
    if not (settings.static_camera or settings.first_frame_only):
        raise ValueError(
            f"video {settings.input} needs the cameras of its frames: run `vipe infer VIDEO -p lyra -o DIR` "
            "and give DIR, say that its camera stands still (--static-camera), or take one frame "
            "(--first-frame-only)"
        )
    return read_video_input(settings.input, settings, sizes)


def stored_input(settings: GenerateSettings) -> DecoderInput:
    """Latents and cameras of a stored scene, and its frames if all clips have them."""
    assert settings.input is not None
    scene = open_scene(settings.input, settings.clip)
    trajectories = chosen_trajectories(scene, None)
    z, cameras = read_inputs(scene, trajectories)
    has_frames = all(scene.scene.clips[trajectory].has("rgb") for trajectory in trajectories)
    frames = range(scene.num_frames)
    videos = [scene.rgb(trajectory, frames) for trajectory in trajectories] if has_frames else []
    if settings.units == "fitted" and not has_frames:
        raise ValueError(
            f"--units fitted compares with the frames of all clips, found clips without in {settings.input}: "
            "give --units scene or a number"
        )
    names = [
        TRAJECTORIES[trajectory].name if trajectory < len(TRAJECTORIES) else "path"
        for trajectory in trajectories
    ]
    return DecoderInput(
        scene.name, z, cameras, trajectories, tuple(names), scene.spec, scene.is_dynamic, tuple(videos)
    )


def _made_from_prompt(settings: GenerateSettings, sizes: ClipSizes, device: torch.device) -> SourceFrames:
    from lyra_ns.text.to_image import load_text_to_image

    assert settings.prompt is not None
    size = sizes.usual
    height, width = finer_size((FINER * size.height, FINER * size.width), size)
    made_from = f"{settings.text_to_image} {settings.seed} {height} {width} {settings.prompt}"
    path = unfinished_folder(settings.output) / "picture.png"
    rgb = _kept_picture(path, made_from)
    if rgb is None:
        make = load_text_to_image(settings.text_to_image, device, memory=settings.memory)
        rgb = make(settings.prompt, height, width, settings.seed)
        _keep_picture(path, made_from, rgb)
    name = re.sub(r"\W+", "_", settings.prompt.lower()).strip("_")[:NAME_LENGTH] or "prompt"
    return image_input(name, "prompt", rgb, settings, sizes, (f"made by {settings.text_to_image}",))


def _kept_picture(path: Path, made_from: str) -> UInt8[Tensor, "3 H W"] | None:
    """The picture that an earlier run has painted, so that the clips which it kept fit; None for another."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            if getattr(image, "text", {}).get(MADE_FROM) != made_from:
                return None
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    except (OSError, SyntaxError) as error:  # Pillow raises both for damaged files.
        logger.warning("picture %s is damaged (%s): it is painted anew", path, error)
        return None


def _keep_picture(path: Path, made_from: str, rgb: UInt8[Tensor, "3 H W"]) -> None:
    note = PngInfo()
    note.add_itxt(MADE_FROM, made_from)
    buffer = io.BytesIO()
    Image.fromarray(rgb.permute(1, 2, 0).cpu().numpy()).save(buffer, format="PNG", pnginfo=note)
    with no_new_empty_folders(path.parent):
        write_whole(path, buffer.getvalue())
