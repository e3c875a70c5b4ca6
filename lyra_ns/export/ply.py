"""The PLY layout that every splat viewer reads: standard deviations as logarithms, opacity as a logit.

Field order is that of the first 3DGS release without higher harmonics: x y z, nx ny nz (always zero, some
viewers count on them), f_dc_0..2, opacity, scale_0..2, rot_0..3 (w x y z); float32, little endian. Files of
others are read in binary or text: a header, then one table of vertices. What every writer of Gaussians
demands of them stands here, too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.data.atomic import write_whole
from lyra_ns.gaussians import Gaussians


def require_exportable(gaussians: Gaussians) -> None:
    """ValueError unless this is one non-empty scene of finite numbers with positive scales."""
    if gaussians.means.ndim != 2:
        raise ValueError(
            f"one scene [G, 3] is exported at a time, found means of shape {tuple(gaussians.means.shape)}: "
            "pick one with gaussians.scene(index)"
        )
    if gaussians.num == 0:
        raise ValueError("expected at least one Gaussian to export, found none: lower the prune ratio")
    for field in fields(gaussians):
        values = getattr(gaussians, field.name)
        # The extremes are finite only if all is, and found in one pass.
        if all(bool(torch.isfinite(extreme)) for extreme in values.aminmax()):
            continue
        num_bad = int((~torch.isfinite(values)).reshape(gaussians.num, -1).any(-1).sum())
        raise ValueError(
            f"{num_bad} of {gaussians.num} Gaussians have non-finite {field.name}: "
            "the decoder or its checkpoint is broken, nothing was written"
        )
    if gaussians.scales.amin() <= 0:
        num_flat = int((gaussians.scales <= 0).any(-1).sum())
        raise ValueError(f"{num_flat} of {gaussians.num} Gaussians have a scale that is not positive")


NUMPY_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
"""numpy's name of each PLY scalar type, without the byte order."""

BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
"""numpy's byte order of each PLY format; empty for text."""

MAX_HEADER_LINES = 10_000
"""A header longer than this is no header but the start of some other file."""


@dataclass(frozen=True)
class _VertexTable:
    """What the header says about the vertices."""

    byte_order: str
    count: int
    properties: list[tuple[str, str]]


def read_vertices(path: Path) -> dict[str, np.ndarray]:
    """Columns of the vertex element by property name.

    FileNotFoundError without the file; ValueError if it is no PLY, is cut short or starts with others.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no PLY file at {path}: export one first, or check the path")
    with path.open("rb") as file:
        table = _read_header(file, path)
        if table.byte_order == "":
            return _parse_text(file.read(), table, path)
        row = np.dtype([(name, table.byte_order + kind) for name, kind in table.properties])
        found = path.stat().st_size - file.tell()
        if found < table.count * row.itemsize:
            raise ValueError(
                f"{path} is cut short: its header promises {table.count} vertices of {row.itemsize} bytes, "
                f"found {found} bytes; download or export it again"
            )
        rows = np.fromfile(file, row, table.count)
    return {name: rows[name] for name, _ in table.properties}


def _parse_text(body: bytes, table: _VertexTable, path: Path) -> dict[str, np.ndarray]:
    width = len(table.properties)
    numbers = np.array(body.split()[: table.count * width], dtype=np.float64)
    if numbers.size < table.count * width:
        raise ValueError(
            f"{path} is cut short: its header promises {table.count} vertices of {width} numbers, "
            f"found {numbers.size} numbers; download or export it again"
        )
    rows = numbers.reshape(table.count, width)
    return {name: rows[:, column] for column, (name, _) in enumerate(table.properties)}


def _read_header(file: BinaryIO, path: Path) -> _VertexTable:
    lines = _header_lines(file, path)
    byte_order: str | None = None
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for words in lines:
        if words[0] == "format":
            byte_order = BYTE_ORDERS.get(words[1])
        elif words[0] == "element":
            elements.append((words[1], int(words[2]), []))
        elif words[0] == "property" and elements:
            elements[-1][2].append((words[-1], words[1]))
    if byte_order is None:
        raise ValueError(f"{path} names no PLY format of {', '.join(BYTE_ORDERS)} in its header")
    if not elements or elements[0][0] != "vertex":
        raise ValueError(f"{path} must list vertices first, found elements {[name for name, *_ in elements]}")
    _, count, properties = elements[0]
    unknown = [kind for _, kind in properties if kind not in NUMPY_TYPES]
    if unknown:
        raise ValueError(f"{path} has vertex properties of type {unknown[0]!r}: splats have numbers only")
    return _VertexTable(byte_order, count, [(name, NUMPY_TYPES[kind]) for name, kind in properties])


def _header_lines(file: BinaryIO, path: Path) -> list[list[str]]:
    """The words of each header line between `ply` and `end_header`."""
    if file.readline(80).strip() != b"ply":
        raise ValueError(
            f"{path} is not a PLY file: it does not start with 'ply' "
            "(the official Lyra save_ply writes a torch pickle under that name)"
        )
    lines: list[list[str]] = []
    for _ in range(MAX_HEADER_LINES):
        line = file.readline(4096)
        if line.strip() == b"end_header":
            return lines
        if not line:
            break
        words = line.decode("ascii", "replace").split()
        if len(words) >= 2:
            lines.append(words)
    raise ValueError(f"{path} is no usable PLY file: its header has no end_header line")


SH_DC = 0.28209479177387814
"""Value of the constant spherical harmonic; colour = 0.5 + SH_DC * f_dc."""

OPACITY_MARGIN = 1e-6
"""Opacities are kept this far from 0 and 1, where the logit is infinite."""

PLY_FIELDS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
    *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
"""Names of the float32 properties, in the order in which they are written."""

ROWS_AT_ONCE = 8192
"""Rows whose columns are picked while they are in the processor's cache."""


def save_ply(gaussians: Gaussians, path: Path) -> None:
    """Write one scene [G] as a 3DGS PLY in the frame of its Gaussians (OpenCV: y down, z forward).

    ValueError if there is nothing to write or a number is not finite; the file appears whole or not at all.
    """
    require_exportable(gaussians)
    header = _header(gaussians.num)
    # One buffer for the whole file: joining header and rows would copy them once more.
    content = np.empty(len(header) + gaussians.num * len(PLY_FIELDS) * 4, np.uint8)
    content[: len(header)] = np.frombuffer(header, np.uint8)
    rows = content[len(header) :].view("<f4").reshape(gaussians.num, len(PLY_FIELDS))
    rows[...] = _rows_from_gaussians(gaussians.detach()).cpu().numpy()
    write_whole(path, content.data)


def _header(num: int) -> bytes:
    """The header of `num` vertices, as long as a multiple of 4 so that the rows behind it are aligned."""
    properties = "".join(f"property float {name}\n" for name in PLY_FIELDS)
    start = "ply\nformat binary_little_endian 1.0\ncomment Generated by lyra_ns"
    end = f"\nelement vertex {num}\n{properties}end_header\n"
    return (start + " " * (-len(start + end) % 4) + end).encode("ascii")


def load_ply(path: Path) -> Gaussians:
    """Gaussians [G] of a 3DGS PLY: ours, `ns-export gaussian-splat` or any trainer's.

    Of spherical harmonics only the constant term is kept. Reads float properties in any order, and uchar
    red, green, blue in place of f_dc. FileNotFoundError or ValueError say what is wrong with the file.
    """
    vertices = read_vertices(path)
    is_coloured_by_bytes = "f_dc_0" not in vertices and "red" in vertices
    colour_names = ("red", "green", "blue") if is_coloured_by_bytes else ("f_dc_0", "f_dc_1", "f_dc_2")
    needed = ("x", "y", "z", *colour_names, *PLY_FIELDS[9:])
    missing = [name for name in needed if name not in vertices]
    if missing:
        raise ValueError(
            f"{path} lacks the vertex properties {', '.join(missing)}: "
            "it is a PLY, but not one of Gaussian splats"
        )

    def columns(*names: str) -> Float[Tensor, "G k"]:
        table = np.empty((len(vertices[names[0]]), len(names)), np.float32)
        for start in range(0, len(table), ROWS_AT_ONCE):
            block = slice(start, start + ROWS_AT_ONCE)
            for column, name in enumerate(names):
                table[block, column] = vertices[name][block]
        return torch.from_numpy(table)

    colour = columns(*colour_names)
    gaussians = Gaussians(
        means=columns("x", "y", "z"),
        quats=functional.normalize(columns("rot_0", "rot_1", "rot_2", "rot_3"), dim=-1),
        scales=columns("scale_0", "scale_1", "scale_2").exp(),
        opacities=torch.sigmoid(columns("opacity")[:, 0]),
        rgb=(colour / 255 if is_coloured_by_bytes else 0.5 + SH_DC * colour).clamp(0.0, 1.0),
    )
    try:
        require_exportable(gaussians)
    except ValueError as error:
        raise ValueError(f"{path} holds no usable splats: {error}") from error
    return gaussians


def _rows_from_gaussians(gaussians: Gaussians) -> Float[Tensor, "G 17"]:
    rows = gaussians.means.new_zeros(gaussians.num, len(PLY_FIELDS), dtype=torch.float32)
    rows[:, 0:3] = gaussians.means
    rows[:, 6:9] = (gaussians.rgb - 0.5) / SH_DC
    rows[:, 9] = torch.logit(gaussians.opacities.float(), eps=OPACITY_MARGIN)
    rows[:, 10:13] = gaussians.scales.float().log()
    rows[:, 13:17] = gaussians.quats
    return rows
