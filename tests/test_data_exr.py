"""The EXR reader and writer, against each other and against files laid out by hand."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest

from lyra_ns.data.exr import read_exr, write_exr


def picture(height: int, width: int, kind: type) -> np.ndarray:
    values = np.random.default_rng(0).random((height, width)) * 10
    values[::3] = 1.5
    return values.astype(kind)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("size", [(160, 256), (37, 53), (1, 5), (16, 1)])
def test_round_trip_is_exact(size, kind):
    image = picture(*size, kind)
    read = read_exr(write_exr(image))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, image.astype(np.float32))


def test_smooth_depth_is_compressed():
    image = np.tile(np.linspace(1, 2, 256, dtype=np.float16), (160, 1))
    assert len(write_exr(image)) < image.nbytes / 4


def by_hand(channels: dict[str, np.ndarray], compression: int, first_row: int = 0) -> bytes:
    """An EXR file put together from the format's description: NO (0) or ZIPS (2), one scan line per block."""
    kinds = {"u": 0, "e": 1, "f": 2}
    height, width = next(iter(channels.values())).shape
    window = struct.pack("<4i", 0, first_row, width - 1, first_row + height - 1)
    listed = b"".join(
        name.encode()
        + b"\0"
        + struct.pack("<4i", {4: 2, 2: 1}[image.itemsize] if image.dtype.kind == "f" else 0, 0, 1, 1)
        for name, image in channels.items()
    )
    attributes = [
        ("channels", "chlist", listed + b"\0"),
        ("compression", "compression", bytes([compression])),
    ]
    attributes += [("dataWindow", "box2i", window)]
    head = struct.pack("<2I", 20000630, 2)
    for name, kind, value in attributes:
        head += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    head += b"\0"
    assert kinds
    blocks = []
    for row in range(height):
        line = b"".join(image[row].tobytes() for image in channels.values())
        blocks.append(zips(line) if compression else line)
    offset, offsets, body = len(head) + 8 * height, [], b""
    for row, block in enumerate(blocks):
        offsets.append(offset + len(body))
        body += struct.pack("<2i", first_row + row, len(block)) + block
    return head + struct.pack(f"<{height}Q", *offsets) + body


def zips(line: bytes) -> bytes:
    reordered = line[0::2] + line[1::2]
    steps = bytes([reordered[0]]) + bytes(
        (after - before + 128) % 256 for before, after in pairwise(reordered)
    )
    packed = zlib.compress(steps)
    return packed if len(packed) < len(line) else line


@pytest.mark.parametrize("compression", [0, 2])
def test_reads_the_named_channel_of_several(compression):
    first, depth = picture(5, 7, np.float32), np.full((5, 7), 2.5, np.float16)
    content = by_hand({"A": first, "Z": depth}, compression, first_row=3)
    np.testing.assert_array_equal(read_exr(content), depth.astype(np.float32))
    np.testing.assert_array_equal(read_exr(content, "A"), first)


def test_reads_the_first_channel_when_there_is_no_z():
    first, other = picture(4, 6, np.float16), np.zeros((4, 6), np.float32)
    read = read_exr(by_hand({"R": first, "S": other}, 2))
    np.testing.assert_array_equal(read, first.astype(np.float32))


def test_unreadable_kinds_are_named():
    content = bytearray(write_exr(picture(4, 4, np.float16)))
    tiled = bytearray(content)
    tiled[5] |= 2
    with pytest.raises(ValueError, match="found a tiled one"):
        read_exr(bytes(tiled))
    place = content.index(b"compression\0compression\0") + len(b"compression\0compression\0") + 4
    content[place] = 4
    with pytest.raises(ValueError, match="NO, ZIPS or ZIP, found number 4"):
        read_exr(bytes(content))
    with pytest.raises(ValueError, match="found other data"):
        read_exr(b"not an image at all")


@pytest.mark.parametrize("kept", [3, 40, 200, -1])
def test_cut_short_is_named(kept):
    content = write_exr(picture(32, 32, np.float32))
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_exr(content[:kept])


def test_only_float_images_are_written():
    with pytest.raises(ValueError, match="float16 or float32"):
        write_exr(np.zeros((4, 4)))
