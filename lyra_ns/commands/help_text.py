"""What `ns-lyra COMMAND --help` shows: tyro's help, but every text in whole paragraphs."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import get_type_hints

import docstring_parser


def join_help_lines(settings: type) -> None:
    """Joins the lines of the docstrings under the fields of a dataclass, and of dataclasses in its fields.

    tyro takes indented lines for paragraphs of their own, and a docstring's second line is indented. What the
    metadata of a field give as `help` it shows instead, so the joined text is put there.
    """
    texts = {
        found.arg_name: " ".join((found.description or "").split())
        for kind in reversed(settings.__mro__[:-1])
        for found in docstring_parser.parse_from_object(kind).params
    }
    for field in fields(settings):
        if texts.get(field.name):
            field.metadata = MappingProxyType({**field.metadata, "help": texts[field.name]})
    for kind in get_type_hints(settings).values():
        if isinstance(kind, type) and is_dataclass(kind):
            join_help_lines(kind)


class WrappedOutput(io.TextIOBase):
    """Standard output that breaks lines longer than the terminal between words.

    tyro fits its boxes to the terminal, but not the paragraphs above them.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the output behind, by which tyro chooses the lines of its boxes."""
        return self._stream.encoding

    def isatty(self) -> bool:
        """Whether a terminal is behind, by which tyro chooses colours."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Writes the text, wrapped; returns how many characters that took."""
        width = shutil.get_terminal_size().columns
        return self._stream.write("\n".join(_wrapped(line, width) for line in text.split("\n")))

    def flush(self) -> None:
        """Flushes the output behind."""
        self._stream.flush()


def _wrapped(line: str, width: int) -> str:
    # Lines with colours hold characters that take no room: they are tyro's own, which fit.
    if len(line) <= width or not line.isprintable():
        return line
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
