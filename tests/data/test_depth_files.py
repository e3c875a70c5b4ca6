"""EXR images read and written: against each other, files laid out by hand, and kept ones of other writers."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from itertools import pairwise

import numpy as np
import OpenEXR
import pytest

from lyra_ns.data.depth_files import read_exr, write_exr


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
    attributes += [(name, "box2i", window) for name in ("dataWindow", "displayWindow")]
    attributes += [("lineOrder", "lineOrder", b"\0"), ("pixelAspectRatio", "float", struct.pack("<f", 1.0))]
    attributes += [
        ("screenWindowCenter", "v2f", bytes(8)),
        ("screenWindowWidth", "float", struct.pack("<f", 1.0)),
    ]
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


def test_other_data_and_false_headers_are_named():
    content = bytearray(write_exr(picture(64, 64, np.float16)))
    place = content.index(b"compression\0compression\0") + len(b"compression\0compression\0") + 4
    content[place] = 4
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_exr(bytes(content))
    with pytest.raises(ValueError, match="found other data"):
        read_exr(b"not an image at all")


def test_no_more_is_allocated_than_the_file_can_hold():
    content = bytearray(write_exr(picture(64, 64, np.float16)))
    place = content.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    content[place : place + 16] = struct.pack("<4i", 0, 0, 10**5, 10**5)
    with pytest.raises(ValueError, match=r"damaged or cut short .100001 x 100001 pixels in"):
        read_exr(bytes(content))


def test_subsampled_channels_are_named():
    content = bytearray(by_hand({"Z": picture(8, 8, np.float32)}, 0))
    place = content.index(b"chlist\0") + 7 + 4 + 2 + 8
    content[place : place + 8] = struct.pack("<2i", 2, 2)
    with pytest.raises(ValueError, match=r"damaged or cut short|full size"):
        read_exr(bytes(content))


@pytest.mark.parametrize("kept", [4, 40, 200, -1])
def test_cut_short_is_named(kept):
    content = write_exr(picture(32, 32, np.float32))
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_exr(content[:kept])


def test_only_float_images_are_written():
    with pytest.raises(ValueError, match="float16 or float32"):
        write_exr(np.zeros((4, 4)))


OTHER_COMPRESSIONS = {
    "half RLE": (
        "eNqFlE2PG0UQhnvHHywbQgZCQvjuhI9IXGJyZtc9Pd09x4xAKOIC46wdxZJjj9ZWCAfinuWM5APcUJg/gGSQuCHUfwCwxBWh"
        "QeKK8GElJMh6qPZUsw4XLLefUVdV1/tW7+ydK29seYSQ/Vud4bA3GMPDoD+ekLOw9y7ZItVnCxfZH91OD3rjcX80fOh5ndDt"
        "TDrX+8Pu6ANyY3T3ap/45ORzCtZlWN3+OB10PvzfvEF/2Lt20O0dbDytJaT9u71BME57+5O3OpP+iNwcjDoTUl9X6/Z4/6DX"
        "G1bHh73hBMruXL1JtjdabKZc73cnt/5zBHnHqxJvIz9Bfon8Hvk78nSt4uvIAPke8h7yPvI75C/IB0i/UkBayBiZImfIOfIH"
        "5G9Ir1HxEpIjbyAPkfeRXyN/RP6BPNOseAV5DTlATpGfI79F/tw8GbK905LsmPKBp8usWvb+LtgRv2l2SZsyw5KAcLan2wkj"
        "QR54GCe7rG1YEZB2zkxg9jTLA8MTVnP1u5DPqY21dcDaLCg41PO6q9+jgW4XAdRxBjmEwzk8CRqufg/ODqCebzIPrfxza91N"
        "WuYePXr/Yz3V8LV4xA4G1rE2Zjs//kJnTb3K9Pa/NQ2oqdGjRGc6y/RHsLJHsSEDo5rnIQsSrkMaMJ6ETFC+4wQxyk0IgsM8"
        "YCEMJYyF4S1xCuMwDK5BIIM9AjkmTDjUh485wxCzJpjY5FychtB5q5mlcZ2WxIv//Mp6AVOHnn4cIvaEUu/k5a/2ipr6jOsI"
        "SqFTSEUqjIAxhgUongnfdeQUYnNQ44tcwPghRmURPuEc8yKEujAXSahBaSJakglfPukc81iwEOphL4EcI3yoT8VZ1x/UWxdU"
        "bnImn0JHK3gZ4hWjXnz80+G0pv+eHsJF2YuwrkrWyOuzclwHT3V93tVov74o/dri6O1Mwy3ZMWT6adcxTAWRM1CzFFrGohCp"
        "JGohLjjHYiFyUKHlTCSglElfUbmUz2CcgkMNCguxlAxycrkURMXyWTcRiFkXRG0yVc9BzLpaJX4jLn0vXh2B5srP8yc3NCs/"
        "ba5fohfcH1zeqMxM9NrN2syLzoyIZQGHM7mQiWpJI2NVqLl8CeOFmEsNAhKVSgYiqVoqMKuoMwvmwKQyEvYgR6uFLFRLXXRm"
        "IWYNFGqTcXQJxa2YM3Muq+m/pvoQ9L2M/97LBNx8s23fnlecGY1mPqvM3LO/r2KzXLaUgcOpmisW+SpXrchEM/WaMytnKonA"
        "bBQrGrUUiRYRmI0uO7NyqcBklMMegZwkmisT+dE/0v22Xg=="
    ),
    "half PIZ": (
        "eNqFk02O20YQhXucWRjwRkAu0JsgqyCM1yOx+pfLEN4MsqMyomECikSMBMfZ9RF0BB5BR+gj6Ag8whzBX9sGQmcTAkQXql99"
        "77EAfvz1t7tXSqmnD9vDod+fKPbD6ax+pPeHulNfn7tvr3o6/jU+96fTcDx8V5fL+932vH0cDrvj3+rP46e3g1qpf583vD/z"
        "7obTuN/+87+6/XDof3/e9c+L6kuEcfjU781p7J/O77bn4aje74/bs7r/Mp3q09Nz3x++4l1/ODP28e179XphsZQ8Drvzh/8g"
        "1E/fvvuX+8XUD7wP8pAe8oNayzqt81ptZJM2eUNvrWotWTqjLL26E2Umg67OMhtVT5INOplMtp2kNfdWl16djNRiZoveqo02"
        "qZ4NOivcKcuc7UzawDDo7fKcHFwr1Mlog7ckpx16m2pmRYuUnsCQmTzaKGq8TLLo3CzMWfQOHb3JiWHWaSOl57VNwr1D7yYj"
        "jm9zrc+28vBswl+oFXfZdRa9K5lKNvHL8+rFoKMWx5zVdvKjF7/yMEwmD7vgO/C2E3lmm8kB12l02fONbibPxaOjd8Vz5SfP"
        "zujpwJ2dHTo3+c4lcnS+CvBDsq0Xh5664y7jqQPMkgm9DsvzEuCGGX7yrdd+dim0QYcXGHDJwy6cKgxfoW99IkdX8qCbQsXc"
        "rfBDdiO9C54vHoaf/RhUvJHj5ie8Urj4jhwSVhF+gBcS/rN/CcLdhKeKbSiZSjYVl+cY4YZc+KEKKtx8F6sIvzDYy5Wd3fCE"
        "EVboqzBRww1zqGKK7CJcydPG7Ft6Y5RwCzBgtnGO17KDkPDq4hiEHDq+FH7U/AK5/AvkJn/MgR6ahPdMhpKtZJzj8mwb+HGi"
        "lriKM97SrBp8CiOwC3Z3xRsGu1BoEjXcmOOq6Rp2Ei/kqhp2TK9tNLMwYFZNbi7kuMSugd+0UTfsorkVfgMPz7aZqBV3XXON"
        "Ge/PBqyVsw=="
    ),
    "float PIZ": (
        "eNor0zdkZGJgYEjOSMzLS80pBjJyMotLGISBYpEMIBkQYIRihuT83IKi1OLizPw8FDZIkiUlsSQxPDMvJb+cISm/wiiTQYAB"
        "AbiBWB2IUzKLC3ISKwmqy8nMS/UvSkktQmKBnVCQWZGa41hckJpcEpRYkpnPkJaTn1jCwALW3WBfnFyUmpoHMd45Na8EqK3M"
        "KI2BA8kKZCXhmSklGWhGMKgyQhTOYkFoymVmYPjALs3BiAYE0UAoHDCGWDIzwAPwNdDMU5wQHktim0ASu0wSh8q8kwoLOJU3"
        "7da+uFv7g9J+BvUPSvUM2h+M9v8fBUMP/Fb0fNNkrTCJQ6KIQyLRVSTQTaNBzPVm7BwlxsjYqfdSH5a3B5p9uH2me6rSTMGH"
        "Bj92LQmv+BLsXrl9W8yN1NLoEKkQp5Bfq/dUaS7ec/u23o2aiuu9WuZSKy5UKWQfjd/DXyH0ga/k5JVz/VwNk1d1rvusL1r3"
        "OT9X1LHUf1ttgM7Lr/7rPj69rL9HqjtjFdcqn59GKZfVbvSWz6xY/X12dcbklGrdTSFKaifDwiunt96Tdbl9OJ/F9UhKuJKP"
        "Gmf3NtfyfleT8tnVqbd5Zoaa+kxNWfEV5rbYgB8tmR8Xu60ynbjgi8P1rv0Vch9UX87VKrErqQg1XupyvXJ6136gug5u1nPz"
        "Y37MEGP2f3694tPL6fd4XbcEs4aqnTT1XOYbKPXe6GP4e7NvF0MnlnlsbolOnYZwiJFeSFeKe8uZjstKu48vmmV9+TaDgwIo"
        "L4Iz4gIHBoZDQLwGiM8B8Q4gvgXER4B4HRBfAOJdQHwHiI8B8RKougNAvAkqjov/CohXQM27AhU/AbVvDxBvA+IXQPwIqu8a"
        "1B0gezdAzdsCVbcD6g6Qvn1Q8w9B1e2Cuhdk/g2oeW+g6kD2XYKa/wxq3jGouldQfdeg7jgEdSdI3Q+ovh1Q+g3UfJC6U0D8"
        "BGrOAyD+BTX/G9R996D2voKa9w2q7hTUnGtQ8x85AAD9lhJq"
    ),
}
"""Luminance images 1 + row/8 + column/16 + (row column mod 7)/4, 40 x 12, that OpenCV wrote; deflated."""


@pytest.mark.parametrize("name", OTHER_COMPRESSIONS)
def test_other_compressions_are_read_too(name):
    content = zlib.decompress(base64.b64decode(OTHER_COMPRESSIONS[name]))
    place = content.index(b"chlist\0") + 11
    content = content[:place] + b"Z" + content[place + 1 :]
    row, column = np.mgrid[:40, :12]
    expected = 1 + row / 8 + column / 16 + row * column % 7 / 4
    np.testing.assert_array_equal(read_exr(content), expected.astype(np.float32))
    for kept in (300, len(content) // 2, len(content) - 20):
        with pytest.raises(ValueError, match="damaged or cut short"):
            read_exr(content[:kept])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.uint32])
@pytest.mark.parametrize("compression", ["NO", "RLE", "ZIPS", "ZIP", "PIZ"])
def test_reads_every_compression_and_kind(compression, kind):
    image, buffer = picture(37, 53, kind), io.BytesIO()
    header = {"compression": getattr(OpenEXR, f"{compression}_COMPRESSION"), "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Z": image}) as file:
        file.write(buffer)
    np.testing.assert_array_equal(read_exr(buffer.getvalue()), image.astype(np.float32))


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_the_kind_is_kept_and_equal_images_give_equal_files(kind):
    image = picture(160, 256, kind)
    with OpenEXR.File(io.BytesIO(write_exr(image))) as file:
        assert file.channels()["Z"].pixels.dtype == kind
    assert write_exr(image) == write_exr(image[::-1].copy()[::-1])


def test_any_damage_is_one_sentence():
    """One byte changed at each of many places: pixels, or the sentence."""
    content = write_exr(picture(37, 53, np.float16))
    for place in range(0, len(content), 5):
        try:
            read = read_exr(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        except ValueError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - some changes do no harm
        else:
            assert read.dtype == np.float32
