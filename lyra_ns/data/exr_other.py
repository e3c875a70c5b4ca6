"""OpenEXR in the compressions that `lyra_ns.data.exr` leaves out (RLE, PIZ, PXR24), read by FFmpeg.

FFmpeg knows colours and luminance but no depth, so the one channel is renamed to luminance on the way. It
leaves rows that it cannot decode black and says nothing, so that is checked here.
"""

from __future__ import annotations

import io
import struct

import av
import numpy as np

ROWS_PER_BLOCK = {1: 1, 4: 32, 5: 16}
"""Scan lines per block for RLE, PIZ and PXR24 compression."""
CHANNEL_LIST = b"channels\0chlist\0"
LUMINANCE = b"Y"
KINDS = {"grayf32le": "<f4", "grayf16le": "<f2"}
EMPTY_BLOCK_BYTES = 64
EMPTY_BLOCK_SHARE = 1 / 32
"""A block of zeros packs to less than these bytes plus this share of its size."""


def read_single_channel(content: bytes, compression: int, table: int) -> np.ndarray:
    """The only channel of an EXR file as float32 [H, W]; `table` is where the offsets of its blocks start.

    ValueError if it has several channels or is damaged.
    """
    start = content.find(CHANNEL_LIST) + len(CHANNEL_LIST) + 4
    if content[start + 1 : start + 2] != b"\0" or content[start + 18 : start + 19] != b"\0":
        raise ValueError(
            "expected one channel Z in an EXR file of this compression, found another or several: write the "
            "depth with ZIP compression"
        )
    try:
        image = _decoded(content[:start] + LUMINANCE + content[start + 1 :])
    except (av.FFmpegError, StopIteration) as error:
        raise IndexError(f"FFmpeg cannot decode it: {error}") from error
    _check_blocks(content, image, ROWS_PER_BLOCK[compression], table)
    return image.astype(np.float32)


def _decoded(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content), format="exr_pipe") as container:
        frame = next(container.decode(video=0))
        if frame.format.name not in KINDS:
            raise ValueError(f"expected half or float pixels, found {frame.format.name}: write them as half")
        plane, kind = frame.planes[0], np.dtype(KINDS[frame.format.name])
        rows = np.frombuffer(bytes(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
        return rows[: frame.height, : frame.width]


def _check_blocks(content: bytes, image: np.ndarray, rows_per_block: int, table: int) -> None:
    """IndexError for blocks that are cut off, or that hold much and came out as zeros."""
    starts = range(0, len(image), rows_per_block)
    offsets = struct.unpack_from(f"<{len(starts)}Q", content, table)
    for start, offset in zip(starts, offsets, strict=True):
        (size,) = struct.unpack_from("<i", content, offset + 4)
        rows = image[start : start + rows_per_block]
        is_empty = size <= EMPTY_BLOCK_BYTES + EMPTY_BLOCK_SHARE * rows.nbytes
        if offset + 8 + size > len(content) or not (rows.any() or is_empty):
            raise IndexError(f"the block of row {start} is damaged")
