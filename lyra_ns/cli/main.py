"""`ns-lyra`: everything around training that nerfstudio's own commands do not do (`--version` names it).

`ns-lyra COMMAND --help` shows tyro's help, but every text in whole paragraphs.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Annotated, Union, get_args, get_type_hints

import docstring_parser
import tyro

from lyra_ns import __version__
from lyra_ns.cli.curriculum import TrainCurriculum
from lyra_ns.cli.data import CheckData, SampleData, Unpack
from lyra_ns.cli.decoder import Convert
from lyra_ns.cli.demo import Demo
from lyra_ns.cli.doctor import Doctor
from lyra_ns.cli.evaluate import Evaluate, PhotoCheck
from lyra_ns.cli.generate import Generate
from lyra_ns.cli.make_data import MakeData, WritePrompts
from lyra_ns.cli.reconstruct import Reconstruct
from lyra_ns.cli.refine import Refine
from lyra_ns.errors import error_text


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


Command = Union[  # noqa: UP007 - tyro reads the Annotated members of a Union
    Annotated[Generate, tyro.conf.subcommand("generate")],
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")],
    Annotated[Refine, tyro.conf.subcommand("refine")],
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[SampleData, tyro.conf.subcommand("sample-data")],
    Annotated[MakeData, tyro.conf.subcommand("make-data")],
    Annotated[WritePrompts, tyro.conf.subcommand("write-prompts")],
    Annotated[CheckData, tyro.conf.subcommand("check-data")],
    Annotated[Unpack, tyro.conf.subcommand("unpack")],
    Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
    Annotated[PhotoCheck, tyro.conf.subcommand("photo-check")],
    Annotated[TrainCurriculum, tyro.conf.subcommand("curriculum")],
    Annotated[Convert, tyro.conf.subcommand("convert")],
    Annotated[Doctor, tyro.conf.subcommand("doctor")],
]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells know it."""


def main() -> None:
    """Run one command; a mistake in the input ends it with one sentence instead of a traceback."""
    if sys.argv[1:] == ["--version"]:
        print(f"ns-lyra {__version__}")
        return
    for member in get_args(Command):
        join_help_lines(get_args(member)[0])
    with redirect_stdout(WrappedOutput()):
        command = tyro.cli(Command, prog="ns-lyra", description=__doc__)
    try:
        command.run()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("LYRA_NS_DEBUG"):
            raise
        print(f"ns-lyra: {error_text(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if os.environ.get("LYRA_NS_DEBUG"):
            raise
        print("ns-lyra: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
