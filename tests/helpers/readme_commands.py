"""Checks command lines with the parsers of the programs that would run them, without running anything.

Run as a program, in an interpreter of its own, since it has to announce our plugin before nerfstudio loads:
reads a JSON list of command lines (each a list of words) from standard input, writes a JSON list of problems.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def announce_plugin() -> None:
    """Make nerfstudio find our methods and data parsers, installed or not."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for group, points_of_group in points.items():
        variable = group.upper().replace(".", "_")
        os.environ[variable] = ",".join(f"{name}={target}" for name, target in points_of_group.items())


def grammars() -> dict[str, Callable[[], Any]]:
    """For each program, what its arguments are parsed into."""

    def of(module: str, name: str) -> Callable[[], Any]:
        return lambda: getattr(import_module(module), name)

    return {
        "ns-lyra": of("lyra_ns.cli.main", "Command"),
        "ns-train": of("nerfstudio.configs.method_configs", "AnnotatedBaseConfigUnion"),
        "ns-eval": of("nerfstudio.scripts.eval", "ComputePSNR"),
        "ns-render": of("nerfstudio.scripts.render", "Commands"),
        "ns-viewer": of("nerfstudio.scripts.viewer.run_viewer", "RunViewer"),
        "ns-export": of("nerfstudio.scripts.exporter", "Commands"),
    }


def problem(words: list[str], loaded: dict[str, Any]) -> str | None:
    """What is wrong with one command line, or None."""
    import tyro

    program, *arguments = words
    if program not in loaded:
        loaded[program] = grammars()[program]()
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            tyro.cli(loaded[program], args=arguments)
        except SystemExit as end:
            # 0: the line asks for help, which is a fine thing to ask for.
            return None if end.code in (0, None) else f"{' '.join(words)}: {output.getvalue().strip()}"
    return None


def main() -> None:
    """Check every line of standard input."""
    announce_plugin()
    loaded: dict[str, Any] = {}
    lines = json.load(sys.stdin)
    print(json.dumps([found for words in lines if (found := problem(words, loaded))]))


if __name__ == "__main__":
    main()
