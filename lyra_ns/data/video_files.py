"""mp4 files through PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lyra_ns.data.files import Source

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
