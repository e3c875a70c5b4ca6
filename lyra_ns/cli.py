"""`ns-lyra`: everything around training that nerfstudio's own commands do not do (`--version` names it)."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from typing import Annotated, Union, get_args

import tyro

from lyra_ns import __version__
from lyra_ns.commands.curriculum import TrainCurriculum
from lyra_ns.commands.data import CheckData, FitCodec, SampleData, Unpack
from lyra_ns.commands.decoder import Convert, FetchLpips
from lyra_ns.commands.demo import Demo
from lyra_ns.commands.doctor import Doctor
from lyra_ns.commands.evaluate import Evaluate, PhotoCheck
from lyra_ns.commands.generate import Generate
from lyra_ns.commands.help_text import WrappedOutput, join_help_lines
from lyra_ns.commands.make_data import MakeData
from lyra_ns.commands.prompts import WritePrompts
from lyra_ns.commands.reconstruct import Reconstruct
from lyra_ns.commands.refine import Refine
from lyra_ns.errors import error_text

Command = Union[  # noqa: UP007 - tyro reads the Annotated members of a Union
    Annotated[SampleData, tyro.conf.subcommand("sample-data")],
    Annotated[Unpack, tyro.conf.subcommand("unpack")],
    Annotated[CheckData, tyro.conf.subcommand("check-data")],
    Annotated[WritePrompts, tyro.conf.subcommand("write-prompts")],
    Annotated[MakeData, tyro.conf.subcommand("make-data")],
    Annotated[Generate, tyro.conf.subcommand("generate")],
    Annotated[Reconstruct, tyro.conf.subcommand("reconstruct")],
    Annotated[Refine, tyro.conf.subcommand("refine")],
    Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
    Annotated[PhotoCheck, tyro.conf.subcommand("photo-check")],
    Annotated[Convert, tyro.conf.subcommand("convert")],
    Annotated[FitCodec, tyro.conf.subcommand("fit-codec")],
    Annotated[FetchLpips, tyro.conf.subcommand("fetch-lpips")],
    Annotated[Demo, tyro.conf.subcommand("demo")],
    Annotated[TrainCurriculum, tyro.conf.subcommand("curriculum")],
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
