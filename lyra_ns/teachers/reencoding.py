"""Frames of video models with sizes and latents of their own, brought to the request and to our codec.

The way in for any teacher (docs/reference/gen3c.md, "Other teachers"): it makes RGB at a size and length that
suit it, which is resized to the cameras of the request, cut to their number and encoded by the codec that the
decoder reads. Sizes are matched by stretching and never by cropping, since cropping would move the edges of
the view: what the model is shown and the cameras it is told are stretched before, and its frames are
stretched back after.

Shape letters: N images, L frames, K frames as made, H W image, h w image as made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.codec.base import VideoCodec
from lyra_ns.teachers.base import OnStep, TeacherClip, TeacherRequest, eight_bits, latents_of_frames

FRAMES_AT_ONCE = 8
"""Frames that are resized together: they are float32 meanwhile."""
Notes = dict[str, str | int | float | bool]
LARGEST_STRETCH = 1.25
"""Things that much wider or narrower than they are still look like what a model has learnt."""


def size_to_make(height: int, width: int, multiple: int, smallest_area: int = 0) -> tuple[int, int]:
    """(height, width) in multiples of `multiple`, about as large as asked for or as `smallest_area`."""
    scale = max(1.0, math.sqrt(smallest_area / (height * width)))
    # Half a multiple is rounded up for both sides alike, which `round` would not do.
    rows, columns = (max(1, math.floor(scale * side / multiple + 0.5)) for side in (height, width))
    return rows * multiple, columns * multiple


def check_stretch(height: int, width: int, made_height: int, made_width: int) -> None:
    """ValueError if frames made at one size would be stretched too much to fit the other."""
    stretch = (made_width / width) / (made_height / height)
    if max(stretch, 1 / stretch) > LARGEST_STRETCH:
        raise ValueError(
            f"expected cameras of about the aspect of {made_height}x{made_width} (height x width), which "
            f"this teacher makes, found {height}x{width}: choose a size whose aspect differs by less than "
            f"{LARGEST_STRETCH:g} times"
        )


def frames_to_make(num_frames: int, temporal_stride: int) -> int:
    """The least number of frames of the form stride x k + 1 that holds as many as asked for."""
    return math.ceil((num_frames - 1) / temporal_stride) * temporal_stride + 1


def held(values: Tensor, num: int) -> Tensor:
    """The first `num` of the values along the first axis, the last being repeated if there are fewer."""
    return values[torch.arange(num, device=values.device).clamp(max=len(values) - 1)]


def stretched(images: Float[Tensor, "N C H W"], height: int, width: int) -> Float[Tensor, "N C h w"]:
    """Images of another size: bilinear, antialiased where they get smaller."""
    if images.shape[-2:] == (height, width):
        return images
    return functional.interpolate(images, (height, width), mode="bilinear", antialias=True)


def reencoded(
    video: Float[Tensor, "K 3 h w"],
    request: TeacherRequest,
    codec: VideoCodec,
    device: torch.device | str,
    notes: Notes,
) -> TeacherClip:
    """The clip of a request from the frames that a video model made for it, colours 0 to 1, without depth.

    Frames beyond the path are dropped. The codec must be on `device`. ValueError if there are fewer frames
    than cameras, or if they are no colours.
    """
    cameras = request.cameras
    if video.ndim != 4 or video.shape[1] != 3 or len(video) < cameras.shape[0]:
        raise ValueError(
            f"expected a video [frames, 3, height, width] of at least {cameras.shape[0]} frames from "
            f"the video model, found {list(video.shape)}"
        )
    if not bool(torch.isfinite(video).all()):
        raise ValueError(
            "the video model made values that are no colours (NaN): try dtype bfloat16 or float32"
        )
    frames = _frames(video[: cameras.shape[0]], cameras.height, cameras.width)
    size: Notes = {"made_height": video.shape[-2], "made_width": video.shape[-1]}
    return TeacherClip(latents_of_frames(codec, frames, device), frames, None, notes | size)


def step_counter(on_step: OnStep | None, clip: int, num_clips: int, num_steps: int) -> Callable[..., Any]:
    """What a pipeline of diffusers calls after each step of clip number `clip`, to tell `on_step`."""

    def count(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if on_step is not None:
            on_step(clip * num_steps + min(step + 1, num_steps), num_clips * num_steps)
        return {}

    return count


def _frames(video: Float[Tensor, "L 3 h w"], height: int, width: int) -> UInt8[Tensor, "L 3 H W"]:
    groups = video.split(FRAMES_AT_ONCE)
    return torch.cat([eight_bits(stretched(group.float(), height, width)).cpu() for group in groups])
