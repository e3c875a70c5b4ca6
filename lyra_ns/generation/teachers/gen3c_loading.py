"""The teacher GEN3C from a folder of converted weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lyra_ns.device import MemoryName
from lyra_ns.generation.depth.estimator import DepthEstimator
from lyra_ns.generation.gen3c.memory_needs import SMALLEST
from lyra_ns.generation.pretrained import default_dtype, load_pretrained
from lyra_ns.generation.teachers.gen3c import Gen3CSettings, Gen3CTeacher
from lyra_ns.generation.teachers.text_embeddings import TextEmbeddings


def load_gen3c(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: MemoryName = "balanced",
    settings: Gen3CSettings | None = None,
    depth: DepthEstimator | None = None,
    *,
    text_encoder: str | None = None,
    text_cache: Path | None = None,
) -> Gen3CTeacher:
    """The teacher of a folder that `ns-lyra convert` wrote, in `dtype` (None: bfloat16, on a CPU float32).

    `text_encoder` is a folder or hub id of T5; None takes the one in `folder`, if there is one. It is loaded
    only for texts that `text_cache` does not hold, as `memory` says (TextEmbeddings), and dropped again.
    FileNotFoundError or ValueError, in one sentence, where there is no pipeline of GEN3C; DoesNotFit where
    not even its weights fit: whether clips do is checked when they are asked for and their size is known.
    """
    from lyra_ns.generation.gen3c.memory import apply_memory_policy
    from lyra_ns.generation.gen3c.pipeline import Gen3CPipeline

    _check_kind(Path(folder))
    is_cpu = torch.device(device).type == "cpu"
    dtype = default_dtype(device, dtype)
    if not is_cpu and dtype != torch.bfloat16:
        raise ValueError(f"gen3c runs in bfloat16 on a GPU, found {dtype}: leave the precision to it")
    own = ("text_encoder", "tokenizer")
    pipeline = load_pretrained(
        lambda place: Gen3CPipeline.from_pretrained(place, torch_dtype=dtype, **dict.fromkeys(own)),
        str(folder),
        "teacher gen3c",
    )
    pipeline.set_progress_bar_config(disable=True)
    if is_cpu:
        pipeline.to(device)
    else:
        apply_memory_policy(pipeline, memory, device, size=SMALLEST)
    if text_encoder is None and all((Path(folder) / part).is_dir() for part in own):
        text_encoder = str(folder)
    texts = TextEmbeddings(
        pipeline, text_encoder, text_cache, device, dtype, memory="fast" if is_cpu else memory
    )
    return Gen3CTeacher(pipeline, settings, depth, texts)


def _check_kind(folder: Path) -> None:
    """ValueError if the folder's pipeline is another one, or not converted yet."""
    index = folder / "model_index.json"
    if not index.is_file():
        if (folder / "model.pt").is_file():
            raise ValueError(
                f"{folder} holds GEN3C's official model.pt, which has to be converted first: run `ns-lyra "
                "convert --config gen3c`"
            )
        return
    try:
        found = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is damaged ({error!r}): convert the checkpoint again") from error
    if found != "Gen3CPipeline":
        raise ValueError(
            f"teacher gen3c needs a folder of Gen3CPipeline, found {found} in {index}: give the folder that "
            "`ns-lyra convert --config gen3c` wrote"
        )
