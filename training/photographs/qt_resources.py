"""Files inside Qt's binary resource collections (.rcc), which hold the photographs of some programs.

The format is Qt's own (`rcc --binary`): a header with offsets to a tree of nodes, their names and their data,
numbers big-endian, names in UTF-16.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

IS_COMPRESSED, IS_FOLDER, IS_ZSTANDARD = 1, 2, 4
"""Flags of a node."""
MOST_BYTES = 64 << 20
"""Of one file; more is refused."""


def read_resources(collection: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file of a collection.

    Files packed by zstandard are left out: the packages in use have none. ValueError if it is damaged.
    """
    try:
        if collection[:4] != b"qres":
            raise ValueError("it does not begin with qres")
        version, tree, data, names = struct.unpack_from(">4I", collection, 4)
        yield from _Tree(collection, 14 if version < 2 else 22, tree, data, names).files(0, "")
    except (struct.error, zlib.error, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"this is no whole Qt resource collection: {error}") from error


class _Tree:
    """The nodes of a collection."""

    def __init__(self, collection: bytes, node_size: int, tree: int, data: int, names: int) -> None:
        self._bytes, self._node_size = collection, node_size
        self._tree, self._data, self._names = tree, data, names

    def files(self, node: int, path: str) -> Iterator[tuple[str, bytes]]:
        """The files at and below a node."""
        place = self._tree + node * self._node_size
        _, flags = struct.unpack_from(">IH", self._bytes, place)
        if flags & IS_FOLDER:
            count, first = struct.unpack_from(">II", self._bytes, place + 6)
            for child in range(first, first + count):
                if child <= node:
                    raise ValueError("a folder that holds itself")
                yield from self.files(child, f"{path}/{self._name(child)}")
        elif not flags & IS_ZSTANDARD:
            (offset,) = struct.unpack_from(">I", self._bytes, place + 10)
            yield path, self._content(offset, bool(flags & IS_COMPRESSED))

    def _name(self, node: int) -> str:
        (offset,) = struct.unpack_from(">I", self._bytes, self._tree + node * self._node_size)
        (length,) = struct.unpack_from(">H", self._bytes, self._names + offset)
        start = self._names + offset + 6
        return self._slice(start, 2 * length).decode("utf-16-be")

    def _content(self, offset: int, is_compressed: bool) -> bytes:
        (length,) = struct.unpack_from(">I", self._bytes, self._data + offset)
        start = self._data + offset + 4
        content = self._slice(start, length)
        if not is_compressed:
            return content
        # Four bytes of the unpacked size come first.
        unpacking = zlib.decompressobj()
        unpacked = unpacking.decompress(content[4:], MOST_BYTES)
        if unpacking.unconsumed_tail:
            raise ValueError(f"a file of more than {MOST_BYTES >> 20} MiB")
        return unpacked

    def _slice(self, start: int, length: int) -> bytes:
        content = self._bytes[start : start + length]
        if len(content) < length:
            raise ValueError("it ends too early")
        return content
