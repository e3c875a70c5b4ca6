"""Frames of somebody's video: upright, from a given frame on, at a given rate, never fewer than asked for.

Shape letters: L frames, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lyra_ns.data.resizing import IMAGES_AT_ONCE
from lyra_ns.data.video_files import video_images, video_size

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Endings that are taken for videos."""
GEN3C_RATE = 24.0
"""Frames per second that GEN3C was trained with."""
SAME_RATE = 0.5
"""Rates that differ by less, in frames per second, are not worth a word."""


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video and what was done to get them."""

    rgb: UInt8[Tensor, "L 3 H W"]
    """Colours, upright, at the size that was asked for."""
    given_size: tuple[int, int]
    """Height and width of the upright video."""
    notes: tuple[str, ...]
    """Which frames these are, in words for the user."""


def read_frames(
    path: Path,
    num_frames: int,
    start: int = 0,
    fps: float | None = None,
    resized: Callable[[Tensor], Tensor] | None = None,
) -> VideoFrames:
    """`num_frames` frames from frame `start` on: every one, or at `fps` frames per second.

    `resized` makes of a few upright frames [n, 3, H, W] what is to be held: a long video at 4K is too large.

    FileNotFoundError; ValueError if the file is damaged or too short, if a rate is asked for that is higher
    than its own, or if its own rate is not known.
    """
    found = video_size(path)
    rate, turns = _rate_and_turns(path)
    positions = _positions(path, num_frames, start, fps, rate)
    if positions[-1] >= found.num_frames:
        at = f" at {fps:g} frames/s" if fps is not None else ""
        raise ValueError(
            f"video {path} must have {num_frames} frames{at} from frame {start} on, which reach frame "
            f"{positions[-1]}, found {found.num_frames} frames: take an earlier --frames-from, fewer "
            "--num-frames, or a longer video"
        )
    parts, given_size = [], (0, 0)
    for part in _upright_parts(path, positions, turns):
        given_size = (part.shape[-2], part.shape[-1])
        parts.append(part if resized is None else resized(part))
    return VideoFrames(torch.cat(parts), given_size, _notes(positions, rate, fps, turns))


def _upright_parts(path: Path, positions: list[int], turns: int) -> Iterator[UInt8[Tensor, "n 3 H W"]]:
    """A few frames at a time."""
    images = video_images(path, positions)
    while part := list(islice(images, IMAGES_AT_ONCE)):
        rgb = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2)
        yield torch.rot90(rgb, turns, (-2, -1)).contiguous()


def _positions(path: Path, num_frames: int, start: int, fps: float | None, rate: float | None) -> list[int]:
    """Ascending positions of the frames to take."""
    if fps is None:
        return list(range(start, start + num_frames))
    if rate is None:
        raise ValueError(f"video {path} must say its frames per second for --fps, found none: leave it out")
    if fps > rate + SAME_RATE:
        raise ValueError(
            f"video {path} must have at least the {fps:g} frames/s of --fps, found {rate:.4g}: frames would "
            "have to be invented; take a lower rate"
        )
    return [start + round(frame * max(rate / fps, 1.0)) for frame in range(num_frames)]


def _notes(positions: list[int], rate: float | None, fps: float | None, turns: int) -> tuple[str, ...]:
    notes = [f"frames {positions[0]} to {positions[-1]}"]
    if rate is not None and fps is None and abs(rate - GEN3C_RATE) > SAME_RATE and len(positions) > 1:
        notes.append(f"every frame used as it is at {rate:.4g} frames/s; --fps 24 is what GEN3C knows")
    if fps is not None:
        notes.append(f"taken at {fps:g} of {rate:.4g} frames/s")
    if turns:
        notes.append("turned upright as the file says")
    return tuple(notes)


def _rate_and_turns(path: Path) -> tuple[float | None, int]:
    """Frames per second if the file says so, and quarter turns, counterclockwise, that make it upright."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate) if stream.average_rate else None
        frame = next(container.decode(stream), None)
        rotation = getattr(frame, "rotation", 0) or 0
    return rate, round(rotation / 90) % 4
