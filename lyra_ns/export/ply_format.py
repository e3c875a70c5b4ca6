"""Reader of the PLY container: header, then one table of vertices in binary or text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

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
