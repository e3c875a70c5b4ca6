"""What `ns-lyra COMMAND --help` shows, and that all commands know `-o`."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import Field, dataclass, field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest
import tyro

from lyra_ns import __version__
from lyra_ns.cli import main
from lyra_ns.cli.main import join_help_lines

COMMANDS = {get_args(member)[1].name: get_args(member)[0] for member in get_args(main.Command)}


def leaf_fields(command: type) -> list[Field]:
    """The fields of a command, and of its groups in place of these."""
    kinds = get_type_hints(command)
    return [
        leaf
        for item in fields(command)
        for leaf in (leaf_fields(kinds[item.name]) if is_dataclass(kinds[item.name]) else [item])
    ]


def shown_help(monkeypatch, capsys, name: str, width: int) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", ["ns-lyra", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    return capsys.readouterr().out


@dataclass
class Inner:
    size: int = 1
    """Of the inner thing,
    in metres."""


@dataclass
class Outer:
    name: str
    """What it is called: at first
    .txt, or (then) anything."""
    given: Annotated[Path | None, tyro.conf.arg(aliases=["-g"])] = None
    """One line."""
    inner: Inner = field(default_factory=Inner)


def test_lines_of_a_field_are_joined_in_nested_settings_too():
    join_help_lines(Outer)
    texts = {item.name: item.metadata.get("help") for item in (*fields(Outer), *fields(Inner))}
    assert texts == {
        "name": "What it is called: at first .txt, or (then) anything.",
        "given": "One line.",
        "inner": None,
        "size": "Of the inner thing, in metres.",
    }
    assert tyro.cli(Outer, args=["--name", "a", "-g", "b", "--inner.size", "2"]).given == Path("b")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["generate", "make-data"])
def test_help_breaks_lines_where_the_terminal_ends_and_nowhere_else(monkeypatch, capsys, name, width):
    lines = shown_help(monkeypatch, capsys, name, width).splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(line.strip("│ ") for line in lines)
    texts = [item.metadata["help"] for item in leaf_fields(COMMANDS[name]) if "help" in item.metadata]
    assert len(texts) > 20
    assert all(text in words for text in texts)
    # A row of an option ends only where its next word would not have fitted.
    rows = [line[2:-2] for line in lines if line.startswith("│ ")]
    for row, following in pairwise(rows):
        if following.startswith(" " * 20) and row.startswith(" " * 20):
            first = following.split()[0]
            assert len(row.rstrip()) + 1 + len(first) > len(row)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_paragraph_of_a_command_is_broken_by_tyro(name):
    """Before lines that start with no letter tyro keeps line breaks."""
    for paragraph in inspect.getdoc(COMMANDS[name]).split("\n\n"):
        assert all(line[0].isalpha() for line in paragraph.splitlines()[1:])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_output_has_a_short_name(name):
    command = COMMANDS[name]
    if "output" not in {item.name for item in leaf_fields(command)}:
        assert name in {"check-data", "write-prompts", "doctor"}
        return
    positional = [] if name in {"sample-data", "photo-check", "demo", "curriculum", "generate"} else ["in"]
    arguments = positional + (["--prompt", "a"] if name == "generate" else [])
    parsed = tyro.cli(command, args=[*arguments, "-o", "there.x"])
    assert (parsed.scene if name == "generate" else parsed).output == Path("there.x")


def test_the_version_is_told_without_torch():
    code = "import sys; sys.modules['torch'] = None; from lyra_ns.cli import main as cli; cli.main()"
    result = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"ns-lyra {__version__}\n", "")
