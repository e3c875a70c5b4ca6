"""Prompts from a plain text file, and prompts that a language model writes.

A file has one per line; blank lines and lines that start with # are skipped. For a set of data many different
scenes are needed (the official one has 59,031): any text-generation model of transformers will do; one that
follows instructions does better. It is asked for short lists again and again, over changing places, and only
lines that are plainly items are taken.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lyra_ns.data.atomic import write_whole
from lyra_ns.pretrained import default_dtype, load_pretrained

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


logger = logging.getLogger(__name__)

SceneKind = Literal["static", "dynamic"]
QWEN = "Qwen/Qwen2.5-7B-Instruct"
"""A model that follows instructions, under the Apache licence."""
PLACES = (
    "rooms of homes",
    "public interiors such as libraries, workshops and stations",
    "streets and squares of cities and villages",
    "forests, mountains, coasts and fields",
    "gardens, parks and courtyards",
    "old buildings, ruins and monuments",
    "imagined worlds: fantasy, science fiction, miniatures",
    "tables, shelves and corners seen from close by",
)
"""What the lists are about, one after the other."""
WANTED = {
    "static": (
        "Nothing in the scene moves: no people, animals, vehicles under way, running water, fire or smoke."
    ),
    "dynamic": (
        "One or two things in the scene move visibly and plausibly, such as people, animals, vehicles, water "
        "or leaves, while the place stays the same."
    ),
}
ITEM = re.compile(r"\s*\d{1,4}[.):]\s+(?P<text>\S.*?)\s*")
"""A line that is an item of a numbered list."""
FEWEST_WORDS, LONGEST_ITEM = 4, 500
"""Words and characters; shorter items are headings, longer ones are no description any more."""
PATIENCE = 4
"""Times as many answers as would do if all items were good and different, before it is given up."""


@dataclass(frozen=True)
class PromptWriter:
    """Descriptions of scenes by a language model."""

    model: Any
    """A text-generation pipeline of transformers."""
    name: str
    """What it is called in records: the hub name or folder of its weights."""
    items_at_once: int = 10
    """Descriptions that are asked for in one answer."""
    longest_answer: int = 1024
    """Tokens of an answer."""
    temperature: float = 0.9
    """Boldness of the choice of words."""

    def __call__(self, num: int, kind: SceneKind = "static", seed: int = 0) -> list[str]:
        """`num` different descriptions; fewer of the same seed are the first of more.

        ValueError for a number or kind that is none, and if the model does not come up with so many.
        """
        if num < 1 or kind not in WANTED:
            raise ValueError(f"expected at least 1 prompt of kind static or dynamic, found {num} of {kind!r}")
        found: dict[str, str] = {}
        most_answers = PATIENCE * (math.ceil(num / self.items_at_once) + 1)
        for number in range(most_answers):
            answer = self._answer(
                instruction(kind, PLACES[number % len(PLACES)], self.items_at_once), seed, number
            )
            for item in listed_items(answer):
                found.setdefault(_essence(item), item)
            logger.info("%d of %d prompts after %d answers", min(len(found), num), num, number + 1)
            if len(found) >= num:
                return list(found.values())[:num]
        raise ValueError(
            f"expected {num} different prompts from {self.name}, found {len(found)} in {most_answers} "
            "answers: ask for fewer, or take a model that follows instructions better"
        )

    @torch.no_grad()
    def _answer(self, request: str, seed: int, number: int) -> str:
        """What the model writes, in the form of a list; torch's own generators stay as they are."""
        tokenizer = self.model.tokenizer
        is_chat = tokenizer.chat_template is not None
        device = torch.device(self.model.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
            # Far apart, so that neighbouring seeds share no answer.
            torch.manual_seed(seed * 1_000_003 + number)
            result = self.model(
                [{"role": "user", "content": request}] if is_chat else f"{request}\n\n1.",
                do_sample=True,
                temperature=self.temperature,
                max_new_tokens=self.longest_answer,
                return_full_text=False,
                pad_token_id=tokenizer.pad_token_id
                if tokenizer.pad_token_id is not None
                else tokenizer.eos_token_id,
            )
        text = str(result[0]["generated_text"])
        return text if is_chat else f"1.{text}"


def instruction(kind: SceneKind, place: str, num: int) -> str:
    """What the model is asked for: a numbered list of `num` scenes."""
    return (
        f"Write {num} descriptions of photographs of very different scenes, all of them about {place}. "
        f"{WANTED[kind]} Each is one sentence of 15 to 40 words that names the place, its main things, their "
        "materials and colours, the light and the viewpoint, with something near and something far away. "
        f"Answer with nothing but a numbered list from 1 to {num}, one description per line, each ending "
        "with a full stop."
    )


def listed_items(answer: str) -> list[str]:
    """The items of a numbered list, one per line; whatever is no item is left out.

    What a model thinks before it answers is left out, too, and so is a last line without an end.
    """
    lines = answer.rpartition("</think>")[2].split("\n")
    if not lines[-1].rstrip().endswith((".", "!", "?", '"', "*")):
        lines = lines[:-1]
    matches = (ITEM.fullmatch(line) for line in lines)
    items = (match["text"].strip('*_"“” ') for match in matches if match)
    return [item for item in items if _is_description(item)]


def _is_description(item: str) -> bool:
    is_plain = item.isprintable() and not item.startswith(COMMENT)
    return is_plain and len(item.split()) >= FEWEST_WORDS and len(item) <= LONGEST_ITEM


def _essence(item: str) -> str:
    """What two items share that say the same in the same words."""
    return " ".join(re.findall(r"\w+", item.casefold()))


def load_prompt_writer(
    model: str = QWEN, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> PromptWriter:
    """The writer with the weights of a folder or hub id, on `device`.

    `dtype` defaults to bfloat16 on a GPU and float32 on a CPU. FileNotFoundError or ModuleNotFoundError, in
    one sentence, if the weights or what they need are not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    def load(location: str) -> Any:
        network = AutoModelForCausalLM.from_pretrained(location, torch_dtype=default_dtype(device, dtype))
        tokenizer = AutoTokenizer.from_pretrained(location)
        return pipeline("text-generation", model=network, tokenizer=tokenizer, device=torch.device(device))

    return PromptWriter(load_pretrained(load, model, "prompt writer", "config.json"), model)
