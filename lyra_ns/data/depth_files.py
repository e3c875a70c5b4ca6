"""Depth files: a zip of EXR images, one per frame; and OpenEXR in numpy.

Source: docs/reference/data_layout.md, "Files". One channel in, one channel out. Single-part scanline files
with half, float or uint32 channels and NO, ZIPS or ZIP compression are read here. Files of one channel with
RLE, PIZ or PXR24 go to FFmpeg; anything else is refused by name. Written is ZIP. FFmpeg knows colours and
luminance but no depth, so the one channel is renamed to luminance on the way. It leaves rows that it cannot
decode black and says nothing, so that is checked here.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.data.atomic import Source

ROWS_PER_FOREIGN_BLOCK = {1: 1, 4: 32, 5: 16}
"""Scan lines per block for RLE, PIZ and PXR24 compression."""
CHANNEL_LIST = b"channels\0chlist\0"
LUMINANCE = b"Y"
KINDS = {"grayf32le": "<f4", "grayf16le": "<f2"}
EMPTY_BLOCK_BYTES = 64
EMPTY_BLOCK_SHARE = 1 / 32
"""A block of zeros packs to less than these bytes plus this share of its size."""


def read_foreign_channel(content: bytes, compression: int, table: int) -> np.ndarray:
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
    _check_blocks(content, image, ROWS_PER_FOREIGN_BLOCK[compression], table)
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


MAGIC = 20000630
VERSION = 2
UNREADABLE_FLAGS = {0x200: "tiled", 0x800: "deep", 0x1000: "multi-part"}
PIXEL_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<u4"), 1: np.dtype("<f2"), 2: np.dtype("<f4")}
ROWS_PER_BLOCK = {0: 1, 2: 1, 3: 16}
"""Scan lines per block for NO, ZIPS and ZIP compression."""
ZIP_COMPRESSION = 3
ZIP_LEVEL = 2
"""zlib level when writing; depth compresses hardly better above it, and much slower."""


@dataclass(frozen=True)
class _Header:
    """What of a header is needed to find the pixels."""

    channels: list[tuple[str, np.dtype[Any]]]
    compression: int
    first_row: int
    height: int
    width: int
    size: int


def read_exr(content: bytes, channel: str = "Z") -> np.ndarray:
    """One channel of an EXR file as float32 [H, W]: the named one, or the first if there is none so called.

    ValueError for files that are damaged or of a kind that is not supported.
    """
    try:
        header = _read_header(content)
        if header.compression not in ROWS_PER_BLOCK:
            return read_foreign_channel(content, header.compression, header.size)
        return _read_pixels(content, header, channel)
    except (struct.error, zlib.error, IndexError, KeyError) as error:
        raise ValueError(f"EXR data is damaged or cut short ({error!r}): write the file again") from error


def write_exr(image: np.ndarray) -> bytes:
    """An EXR file with channel Z from a float16 or float32 image [H, W]."""
    if image.ndim != 2 or image.dtype not in (np.float16, np.float32):
        raise ValueError(f"expected a float16 or float32 image [H, W], found {image.dtype} {image.shape}")
    pixel_type = 1 if image.dtype == np.float16 else 2
    image = image.astype(PIXEL_TYPES[pixel_type])
    height, width = image.shape
    header = _header_bytes(height, width, pixel_type)
    rows = ROWS_PER_BLOCK[ZIP_COMPRESSION]
    starts = range(0, len(image), rows)
    blocks = [_compress(image[start : start + rows].tobytes()) for start in starts]
    offset = len(header) + 8 * len(blocks)
    offsets, body = [], []
    for start, block in zip(starts, blocks, strict=True):
        offsets.append(offset)
        body.append(struct.pack("<2i", start, len(block)) + block)
        offset += 8 + len(block)
    return header + struct.pack(f"<{len(offsets)}Q", *offsets) + b"".join(body)


def _read_header(content: bytes) -> _Header:
    magic, version = struct.unpack_from("<2I", content)
    if magic != MAGIC:
        raise ValueError("expected an OpenEXR file, found other data: write depth as EXR")
    kinds = [kind for flag, kind in UNREADABLE_FLAGS.items() if version & flag]
    if kinds:
        raise ValueError(f"expected a scanline EXR file, found a {kinds[0]} one: write it as scan lines")
    attributes, position = {}, 8
    while content[position]:
        name, position = _read_name(content, position)
        _, position = _read_name(content, position)
        (size,) = struct.unpack_from("<i", content, position)
        attributes[name] = content[position + 4 : position + 4 + size]
        position += 4 + size
    left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
    compression = attributes["compression"][0]
    if compression not in ROWS_PER_BLOCK and compression not in ROWS_PER_FOREIGN_BLOCK:
        raise ValueError(
            f"expected EXR compression NO, RLE, ZIPS, ZIP, PIZ or PXR24, found {compression}: write ZIP"
        )
    channels = _read_channels(attributes["channels"])
    return _Header(channels, compression, top, bottom - top + 1, right - left + 1, position + 1)


def _read_channels(content: bytes) -> list[tuple[str, np.dtype[Any]]]:
    channels: list[tuple[str, np.dtype[Any]]] = []
    position = 0
    while content[position]:
        name, position = _read_name(content, position)
        pixel_type, _, x_sampling, y_sampling = struct.unpack_from("<4i", content, position)
        if (x_sampling, y_sampling) != (1, 1):
            raise ValueError(f"EXR channel {name} is subsampled: write it at full size")
        channels.append((name, PIXEL_TYPES[pixel_type]))
        position += 16
    if not channels:
        raise ValueError("expected an EXR file with a channel Z, found no channel: write the depth into one")
    return channels


def _read_name(content: bytes, position: int) -> tuple[str, int]:
    end = content.find(b"\0", position)
    if end < 0:
        raise IndexError("a name has no end")
    return content[position:end].decode("latin-1"), end + 1


def _read_pixels(content: bytes, header: _Header, channel: str) -> np.ndarray:
    names = [name for name, _ in header.channels]
    wanted = names.index(channel) if channel in names else 0
    sizes = [kind.itemsize * header.width for _, kind in header.channels]
    start, row_bytes = sum(sizes[:wanted]), sum(sizes)
    rows_per_block = ROWS_PER_BLOCK[header.compression]
    num_blocks = -(-header.height // rows_per_block)
    image = np.empty((header.height, header.width), np.float32)
    for offset in struct.unpack_from(f"<{num_blocks}Q", content, header.size):
        row, packed_size = struct.unpack_from("<2i", content, offset)
        row -= header.first_row
        num_rows = min(rows_per_block, header.height - row)
        packed = content[offset + 8 : offset + 8 + packed_size]
        block = _decompress(packed, num_rows * row_bytes) if header.compression else packed
        if row < 0 or len(block) != num_rows * row_bytes or len(packed) != packed_size:
            raise IndexError(f"block of row {row} has the wrong size")
        lines = np.frombuffer(block, np.uint8).reshape(num_rows, row_bytes)
        pixels = np.ascontiguousarray(lines[:, start : start + sizes[wanted]])
        image[row : row + num_rows] = pixels.view(header.channels[wanted][1])
    return image


def _decompress(packed: bytes, size: int) -> bytes:
    """Undoes ZIP: inflate, running byte sum, halves interleaved. Incompressible blocks lie as they are."""
    if len(packed) == size:
        return packed
    steps = np.frombuffer(zlib.decompress(packed), np.uint8).copy()
    steps[1:] -= 128
    halves = np.cumsum(steps, dtype=np.uint8)
    half = (len(halves) + 1) // 2
    block = np.empty_like(halves)
    block[0::2], block[1::2] = halves[:half], halves[half:]
    return block.tobytes()


def _compress(block: bytes) -> bytes:
    values = np.frombuffer(block, np.uint8)
    halves = np.concatenate([values[0::2], values[1::2]])
    steps = halves.copy()
    steps[1:] = halves[1:] - halves[:-1] + np.uint8(128)
    packed = zlib.compress(steps.tobytes(), ZIP_LEVEL)
    return packed if len(packed) < len(block) else block


def _header_bytes(height: int, width: int, pixel_type: int) -> bytes:
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channels = b"Z\0" + struct.pack("<4i", pixel_type, 0, 1, 1) + b"\0"
    attributes = [
        (b"channels", b"chlist", channels),
        (b"compression", b"compression", bytes([ZIP_COMPRESSION])),
        (b"dataWindow", b"box2i", window),
        (b"displayWindow", b"box2i", window),
        (b"lineOrder", b"lineOrder", b"\0"),
        (b"pixelAspectRatio", b"float", struct.pack("<f", 1.0)),
        (b"screenWindowCenter", b"v2f", struct.pack("<2f", 0.0, 0.0)),
        (b"screenWindowWidth", b"float", struct.pack("<f", 1.0)),
    ]
    packed = [
        name + b"\0" + kind + b"\0" + struct.pack("<i", len(value)) + value
        for name, kind, value in attributes
    ]
    return struct.pack("<2I", MAGIC, VERSION) + b"".join(packed) + b"\0"


FIXED_DATE = (1980, 1, 1, 0, 0, 0)
"""Date of every member, so that equal depth gives equal bytes."""
HALF_MAX = 65504.0
"""Largest half-precision number; depth beyond it is written as unknown."""


def read_depth(path: Source, frames: Sequence[int] | None = None) -> Float[Tensor, "L H W"]:
    """z-depth of all frames, or of the given ones, float32; 0 where it is not positive or not finite."""
    with _opened(path) as archive:
        names = _frame_names(archive)
        missing = not names or (frames is not None and len(names) <= max(frames))
        images = (
            [] if missing else [_read_image(archive, names[frame]) for frame in frames or range(len(names))]
        )
    if missing:
        expected = "one EXR image per frame" if frames is None else f"images up to frame {max(frames)}"
        raise ValueError(f"depth {path} must hold {expected}, found {len(names)} images: write it again")
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"depth {path} must have one image size, found several: write it again")
    depth = torch.from_numpy(np.stack(images))
    return torch.where(depth.isfinite() & (depth > 0), depth, 0.0)


def num_depth_frames(path: Source) -> int:
    """How many depth images a file holds."""
    with _opened(path) as archive:
        return len(_frame_names(archive))


def depth_bytes(depth: Float[Tensor, "L H W"]) -> bytes:
    """A zip of half-precision EXR images named 00000.exr onward; unknown depth is 0."""
    known = depth.isfinite() & (depth > 0) & (depth <= HALF_MAX)
    images = torch.where(known, depth, 0.0).half().cpu().numpy()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for number, image in enumerate(images):
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.exr", FIXED_DATE), write_exr(image))
    return buffer.getvalue()


@contextmanager
def _opened(path: Source) -> Iterator[zipfile.ZipFile]:
    """An open archive; what is wrong with it becomes one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"depth {path} does not exist: write it, or train without the depth loss")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, _ImageError) as error:
        raise ValueError(
            f"depth {path} must be a zip of EXR images, one per frame, found damage ({error}): write it again"
        ) from error


class _ImageError(Exception):
    """An image inside the archive cannot be read."""


def _read_image(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    try:
        return read_exr(archive.read(name))
    except ValueError as error:
        raise _ImageError(f"{name}: {error}") from error


def _frame_names(archive: zipfile.ZipFile) -> list[str]:
    return sorted(name for name in archive.namelist() if name.lower().endswith(".exr"))
