"""Videos through PyAV: mp4 files of data sets, and frames of somebody's video.

The latter upright, from a given frame on, at a given rate, never fewer than asked for.

Shape letters: L frames, H W image.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lyra_ns.data.atomic import Source
from lyra_ns.data.resize import IMAGES_AT_ONCE

FRAMES_PER_SECOND = 24
QUALITY = "12"
"""x264's constant rate factor; small numbers are close to lossless."""


@dataclass(frozen=True)
class VideoSize:
    """What a video's header says."""

    num_frames: int
    """Frames."""
    height: int
    """Height in pixels."""
    width: int
    """Width in pixels."""


def video_size(path: Source) -> VideoSize:
    """Frame count and size of a video, from its header where that says so."""
    with _opened(path) as (container, stream):
        num_frames = stream.frames or sum(1 for _ in container.decode(stream))
        return VideoSize(num_frames, stream.codec_context.height, stream.codec_context.width)


def read_video(path: Source, frames: Sequence[int] | None = None) -> UInt8[Tensor, "L 3 H W"]:
    """Frames of a video, all of them or those at the given ascending positions."""
    images = np.stack(list(video_images(path, frames)))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def video_images(path: Source, frames: Sequence[int] | None = None) -> Iterator[np.ndarray]:
    """Frames of a video, uint8 [H, W, 3], one after the other, so that not all must be held."""
    wanted = None if frames is None else set(frames)
    num_found = 0
    with _opened(path) as (container, stream):
        for position, frame in enumerate(container.decode(stream)):
            if wanted is None or position in wanted:
                num_found += 1
                yield frame.to_ndarray(format="rgb24")
            if wanted is not None and position >= max(wanted, default=-1):
                break
    if not num_found or (wanted is not None and num_found != len(wanted)):
        expected = "at least one frame" if wanted is None else f"frames up to {max(wanted)}"
        raise ValueError(f"video {path} must have {expected}, found {num_found} of them: write it again")


def video_bytes(rgb: UInt8[Tensor, "L 3 H W"]) -> bytes:
    """An mp4 of these frames (H.264, full colour resolution, 24 frames/s); equal input gives equal bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.height, stream.width = rgb.shape[-2:]
        stream.pix_fmt = "yuv444p"
        # One thread: x264's output depends on how many it uses.
        stream.options = {"crf": QUALITY, "preset": "superfast", "threads": "1"}
        for image in rgb.permute(0, 2, 3, 1).contiguous().cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


@contextmanager
def _opened(path: Source) -> Iterator[tuple[Any, Any]]:
    """An open container and its video stream; what is wrong with the file becomes one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"video {path} does not exist: write it, or leave the clip out")
    try:
        with _file(path) as file, av.open(file) as container:
            if not container.streams.video:
                raise ValueError(f"video {path} must hold a video stream, found none: write it again")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise ValueError(f"video {path} must be readable, found damage ({error}): write it again") from error


@contextmanager
def _file(path: Source) -> Iterator[str | io.BufferedReader]:
    """What PyAV opens: a name, which it reads fastest, or an open file where there is no name."""
    if isinstance(path, Path):
        yield str(path)
    else:
        with path.open("rb") as file:
            yield file


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
