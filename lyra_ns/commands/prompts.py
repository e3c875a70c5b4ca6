"""`ns-lyra write-prompts`: scene descriptions by a language model, which `make-data` turns into scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class WritePrompts:
    """Write a text file with different scene descriptions, one per line, for `ns-lyra make-data`.

    Equal options give equal descriptions; fewer of the same seed are the first of more.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Text file to write; one that exists is never overwritten."""
    num: int
    """How many descriptions."""
    kind: Literal["static", "dynamic"] = "static"
    """Scenes in which nothing moves, as make-data wants them, or in which one or two things do."""
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    """Text-generation model of transformers, folder or hub id; one that follows instructions does best."""
    seed: int = 0
    """All random draws follow from this."""
    device: str = "auto"
    """Where the model runs: auto takes a GPU if there is one."""

    def run(self) -> None:
        """Write the file and say so."""
        import torch

        from lyra_ns.generation.text.prompt_writer import load_prompt_writer
        from lyra_ns.generation.text.prompts import write_prompts

        file = self.file.expanduser()
        if file.exists():
            raise FileExistsError(f"{file} exists and is kept as it is: take another name, or remove it")
        if self.num < 1:
            raise ValueError(f"expected --num of 1 or more, found {self.num}")
        best = "cuda" if torch.cuda.is_available() else "cpu"
        writer = load_prompt_writer(self.model, best if self.device == "auto" else self.device)
        write_prompts(file, writer(self.num, self.kind, self.seed))
        print(f"wrote {self.num} prompts by {self.model} to {file}")
        print(f"Make scenes of them with: ns-lyra make-data {file} -o ROOT")
