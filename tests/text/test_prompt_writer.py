"""Prompts by a language model: a small GPT-2 whose tokens are lines of lists."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lyra_ns.cli import main
from lyra_ns.text.prompts import (
    PLACES,
    PromptWriter,
    instruction,
    listed_items,
    load_prompt_writer,
    read_prompts,
    write_prompts,
)
from tests.helpers.checked_types import unchecked
from tests.helpers.small_pipelines import small_language_model

SCENES = [f"A {colour} {thing} stands in the {place}." for colour in ("red", "green", "blue")
          for thing in ("house", "tower", "statue") for place in ("forest", "city")]  # fmt: skip
SAYINGS = [
    *(f"\n{number}. {scene}" for number, scene in enumerate(SCENES, start=1)),
    "\n1. A RED house stands, in the forest.",
    "\n2. Too short.",
    "\nHere are your prompts for today:",
    "\n- A bullet is no number here.",
]
"""Good lines, one that says the same as another, and lines that are no descriptions."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved language model."""
    folder = tmp_path_factory.mktemp("weights") / "small"
    for part in small_language_model(SAYINGS):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def writer(folder: Path) -> PromptWriter:
    """The writer, loaded through our API, with short answers."""
    return PromptWriter(load_prompt_writer(str(folder)).model, "small", items_at_once=3, longest_answer=8)


def test_different_scenes_and_nothing_else(writer: PromptWriter, tmp_path: Path) -> None:
    """As many as asked for, all of them descriptions, none twice; they can be kept in a file."""
    prompts = writer(12, "static", seed=1)
    assert len(prompts) == len({prompt.casefold().replace(",", "") for prompt in prompts}) == 12
    assert set(prompts) <= {*SCENES, "A RED house stands, in the forest."}
    write_prompts(tmp_path / "prompts.txt", prompts)
    assert read_prompts(tmp_path / "prompts.txt") == prompts


def test_seeds(writer: PromptWriter) -> None:
    """The same seed gives the same, fewer being the first of more; another gives others."""
    prompts = writer(6, seed=1)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert writer(3, seed=1) == prompts[:3]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert writer(6, seed=2) != prompts


@pytest.mark.slow
def test_more_than_the_model_can_say(writer: PromptWriter) -> None:
    """It gives up with what it found instead of asking for ever."""
    with pytest.raises(ValueError, match="expected 19 different prompts from small, found 18 in 32 answers"):
        writer(len(SCENES) + 1)


def test_what_the_model_is_asked(writer: PromptWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model for chats gets a message, another the beginning of a list; places change, kinds differ."""
    asked: list[Any] = []

    class Spy:
        tokenizer, device = writer.model.tokenizer, "cpu"

        def __call__(self, request: Any, **arguments: Any) -> Any:
            asked.append(request)
            return writer.model(request, **arguments)

    spied = PromptWriter(Spy(), "spy", items_at_once=3, longest_answer=4)
    spied(6, "dynamic")
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    monkeypatch.setattr(writer.model.tokenizer, "chat_template", template)
    plain = asked.copy()
    spied(2, "static")
    chat = asked[len(plain) :]
    assert plain[:2] == [f"{instruction('dynamic', place, 3)}\n\n1." for place in PLACES[:2]]
    assert chat[0] == [{"role": "user", "content": instruction("static", PLACES[0], 3)}]
    assert "Nothing in the scene moves" in chat[0][0]["content"]


def test_items_of_answers() -> None:
    """Numbered lines, without quotes and stars; no thoughts, no unfinished last line."""
    answer = (
        "<think>\n1. A thought that is no answer at all.\n</think>\nSure!\n\n"
        '1. "A quiet room with a lamp."\r\n2) **A wide street under snow.**\n3: A hall of stone and glass'
        "\n\n4. # A comment would be lost.\n5.No space between number and text.\n6. A garden that is cut of"
    )
    assert listed_items(answer) == [
        "A quiet room with a lamp.",
        "A wide street under snow.",
        "A hall of stone and glass",
    ]
    assert listed_items("1. A garden that has an end.") == ["A garden that has an end."]


def test_bad_requests_and_missing_weights(writer: PromptWriter, tmp_path: Path) -> None:
    """One sentence each."""
    with pytest.raises(ValueError, match="at least 1 prompt of kind static or dynamic, found 0"):
        writer(0)
    with pytest.raises(ValueError, match="found 3 of 'still'"), unchecked():
        writer(3, "still")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"prompt writer: expected config\.json"):
        load_prompt_writer(str(tmp_path))


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ns-lyra", "write-prompts", *words])
    main.main()


@pytest.mark.slow
def test_the_command_writes_what_the_writer_says_and_overwrites_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new" / "prompts.txt"
    options = ("--kind", "dynamic", "--model", str(folder), "--seed", "3", "--device", "cpu")
    run_command(monkeypatch, str(file), "--num", "5", *options)
    assert read_prompts(file) == load_prompt_writer(str(folder))(5, "dynamic", 3)
    assert f"ns-lyra make-data {file}" in capsys.readouterr().out
    before = file.read_bytes()
    for place, num, message in (
        (file, "4", "is kept as it is"),
        (tmp_path / "none", "0", "1 or more, found 0"),
    ):
        with pytest.raises(SystemExit):
            run_command(monkeypatch, str(place), "--num", num, *options)
        assert message in capsys.readouterr().err
    assert file.read_bytes() == before
    assert not (tmp_path / "none").exists()
