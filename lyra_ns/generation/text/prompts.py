"""Prompts from a plain text file: one per line, blank lines and lines that start with # skipped."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from lyra_ns.data.files import write_whole

COMMENT = "#"
LONGEST_PROMPT = 2000
"""Characters; longer lines are text of another kind, and no model reads so much."""


def read_prompts(path: Path | str) -> list[str]:
    """The prompts of a file, in its order, without the white space around them.

    FileNotFoundError if there is no file; ValueError, with the number of the line, for what is no text, and
    if the file holds no prompt.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"expected a text file with one prompt per line, found none at {path}")
    prompts = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        prompt = _decoded(line, f"line {number} of {path}")
        if prompt and not prompt.startswith(COMMENT):
            prompts.append(prompt)
    if not prompts:
        raise ValueError(f"expected at least one prompt in {path}, found only blank lines and comments")
    return prompts


def write_prompts(path: Path | str, prompts: Sequence[str]) -> None:
    """Writes a file from which `read_prompts` reads the same prompts, at once or not at all.

    ValueError for a prompt that would not come back as it is.
    """
    path = Path(path).expanduser()
    if not prompts:
        raise ValueError(f"expected at least one prompt to write to {path}, found none")
    for number, prompt in enumerate(prompts, start=1):
        if "\n" in prompt or prompt.startswith(COMMENT):
            raise ValueError(
                f"expected prompts of one line that do not start with {COMMENT}, found {prompt[:60]!r} as "
                f"number {number}: write it as one sentence"
            )
        if not prompt or _decoded(prompt.encode(), f"prompt {number}") != prompt:
            raise ValueError(
                f"expected prompts without white space around them, found {prompt[:60]!r} as number {number}"
            )
    write_whole(path, "".join(f"{prompt}\n" for prompt in prompts).encode())


def _decoded(line: bytes, place: str) -> str:
    """The text of a line, without a byte order mark and white space around it."""
    try:
        text = line.decode("utf-8").removeprefix("\ufeff").strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected text in UTF-8, found the byte {line[error.start]:#04x} in {place}: save it as UTF-8"
        ) from error
    if any(unicodedata.category(character) == "Cc" and character != "\t" for character in text):
        raise ValueError(f"expected plain text, found control characters in {place}: is it a text file?")
    if len(text) > LONGEST_PROMPT:
        raise ValueError(
            f"expected prompts of at most {LONGEST_PROMPT} characters, found {len(text)} in {place}: cut it"
        )
    return text
