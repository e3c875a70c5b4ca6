"""Prompts from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lyra_ns.text.prompts import read_prompts, write_prompts


def test_blank_lines_and_comments_are_skipped(tmp_path: Path) -> None:
    """One prompt per line, in order, on Windows' line ends and with a byte order mark too."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# mine\r\n\r\n  a red room \r\n\t# no\r\ncafé at night, №5 #1".encode())
    assert read_prompts(path) == ["a red room", "café at night, №5 #1"]


def test_written_prompts_come_back(tmp_path: Path) -> None:
    """What was written is what is read, and nothing else lies beside it."""
    prompts = ["a red room", "ein grüner Wald", "a red room"]
    write_prompts(tmp_path / "new" / "prompts.txt", prompts)
    assert read_prompts(tmp_path / "new" / "prompts.txt") == prompts
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["prompts.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\n\n\xff\xfea", "0xff in line 3 of"),
        (b"fine\na\x00b", "control characters in line 2 of"),
        (b"fine\n" + b"x" * 2001, "2001 in line 2 of"),
        (b"# nothing\n\n", "only blank lines and comments"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, content: bytes, message: str) -> None:
    """What is no text says where."""
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_missing_file(tmp_path: Path) -> None:
    """A folder is no file either."""
    with pytest.raises(FileNotFoundError, match="one prompt per line"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("prompt", ["two\nlines", "# comment", " space", "", "\ufeffmark"])
def test_prompts_that_would_not_come_back(tmp_path: Path, prompt: str) -> None:
    """They are refused, and no file is left."""
    with pytest.raises(ValueError, match="number 2"):
        write_prompts(tmp_path / "prompts.txt", ["fine", prompt])
    assert not list(tmp_path.iterdir())
