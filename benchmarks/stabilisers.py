"""How much each small-scale stabiliser of `lyra-tiny` does when a decoder is trained from zero on a CPU.

    python -m benchmarks.stabilisers

trains the same small decoder with all stabilisers, without each one and without any, under several seeds,
through the same pipeline and optimiser as `ns-train`, and measures it on held-out scenes and camera paths.
The result file is rewritten after each run; runs that are in it are not done again.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
import tyro

from benchmarks.environment import describe_environment
from benchmarks.variants import VARIANTS, Setting, training_config
from lyra_ns.data.atomic import write_whole
from lyra_ns.synthetic import write_sample_data

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

    from lyra_ns.plugin.pipeline import LyraPipeline

NUM_EVALUATION_INPUTS = 3
"""Input trajectories when held-out scenes are measured."""


def run(setting: Setting, variant: str, seed: int, data: Path) -> dict[str, Any]:
    """Train one decoder and measure it: its row of the result file."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = training_config(setting, VARIANTS[variant], seed, data)
    pipeline = config.pipeline.setup(device="cpu", test_mode="val")
    started = perf_counter()
    last_loss = train(pipeline, config, setting.steps)
    seconds = perf_counter() - started
    return {
        "variant": variant,
        "seed": seed,
        "steps": setting.steps,
        "seconds": round(seconds, 1),
        "last_loss": last_loss if math.isfinite(last_loss) else None,
        "measured": measure(pipeline, config.pipeline.model.prune_ratio),
    }


def train(pipeline: LyraPipeline, config: TrainerConfig, steps: int) -> float:
    """Mean loss of the last ten steps, after training as nerfstudio's trainer does (no viewer, no files)."""
    from nerfstudio.engine.optimizers import Optimizers

    optimizers = Optimizers(config.optimizers.copy(), pipeline.get_param_groups())
    losses = []
    pipeline.train()
    for step in range(steps):
        pipeline.model.update_to_step(step)
        optimizers.zero_grad_all()
        _, terms, _ = pipeline.get_train_loss_dict(step)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        optimizers.optimizer_step_all()
        optimizers.scheduler_step("decoder")
        losses.append(loss.item())
    pipeline.eval()
    return sum(losses[-10:]) / len(losses[-10:])


def measure(pipeline: LyraPipeline, prune_ratio: float, baselines: bool = False) -> list[dict[str, Any]]:
    """Summary rows of the evaluation protocol on the held-out scenes, as `ns-lyra evaluate` writes them."""
    from lyra_ns.codec import codec_for
    from lyra_ns.data.scenes import StoredScene
    from lyra_ns.evaluation.runner import ProtocolConfig, evaluate_scene, summary_rows
    from lyra_ns.ops.lpips import load_lpips
    from lyra_ns.reconstruction import Reconstructor

    scenes = pipeline.datamanager.scenes
    reconstruct = Reconstructor(pipeline.model.decoder, codec_for(scenes.store.spec), prune_ratio)
    protocol = ProtocolConfig(baselines=baselines, render=pipeline.model.config.render)
    perceptual = load_lpips("alex")
    scores = []
    for name in scenes.split.test:
        scene = StoredScene(scenes.scene(name), scenes.store.novel_clips(name), spec=scenes.store.spec)
        scores += evaluate_scene(reconstruct, scene, perceptual, NUM_EVALUATION_INPUTS, protocol).scores
    return summary_rows(scores)


def floors(setting: Setting, data: Path) -> list[dict[str, Any]]:
    """What needs no decoder, measured on the same views: rows of the baselines."""
    torch.set_num_threads(1)
    pipeline = training_config(setting, [], 0, data).pipeline.setup(device="cpu", test_mode="val")
    return [row for row in measure(pipeline, 0.0, baselines=True) if row["method"] != "lyra"]


def run_all(setting: Setting, seeds: int, data: Path, output: Path, at_once: int) -> None:
    """Do the missing runs, seed by seed and `at_once` at a time, and keep `output` up to date."""
    write_sample_data(
        data, setting.num_scenes, num_held_out=setting.num_held_out,
        height=setting.height, width=setting.width, num_frames=setting.num_frames, device="cpu",
    )  # fmt: skip
    content = earlier_content(output, setting) or new_content(setting)
    done = {(row["variant"], row["seed"]) for row in content["rows"]}
    wanted = [(variant, seed) for seed in range(seeds) for variant in VARIANTS]
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run, setting, *pair, data): "rows" for pair in wanted if pair not in done}
        if content["floors"] is None:
            waiting[pool.submit(floors, setting, data)] = "floors"
        for future in as_completed(waiting):
            if waiting[future] == "floors":
                content["floors"] = future.result()
            else:
                content["rows"] = in_order([*content["rows"], future.result()])
                print(" ".join(_summary(future.result())), flush=True)
            write_whole(output, json.dumps(content, indent=1, allow_nan=False).encode())


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows by variant, as in VARIANTS, and seed."""
    return sorted(rows, key=lambda row: (list(VARIANTS).index(row["variant"]), row["seed"]))


def new_content(setting: Setting) -> dict[str, Any]:
    """A result file without results."""
    return {
        "setting": asdict(setting),
        "environment": describe_environment("cpu"),
        "floors": None,
        "rows": [],
    }


def earlier_content(output: Path, setting: Setting) -> dict[str, Any] | None:
    """The result file to go on with; None if there is none. ValueError if it has another setting."""
    if not output.is_file():
        return None
    content = json.loads(output.read_text())
    if content["setting"] != asdict(setting):
        raise ValueError(
            f"{output} holds runs of {content['setting']}, now {asdict(setting)} is asked for: "
            "give another --output, or delete the file"
        )
    return content


def _summary(row: dict[str, Any]) -> Iterator[str]:
    """Words of the line that says how a run went."""
    novel = next(entry for entry in row["measured"] if entry["group"] == "novel")
    yield f"{row['variant']}, seed {row['seed']}: {row['seconds']} s"
    for name in ("psnr", "lpips", "depth_error"):
        yield f"{name} {'failed' if novel[name] is None else round(novel[name], 3)}"


def main(
    setting: Setting,
    seeds: int = 3,
    data: Path = Path("outputs/stabilisers"),
    output: Path = Path(__file__).parent / "results" / "stabilisers.json",
    at_once: int = 2,
) -> None:
    """Measure the stabilisers.

    `seeds` runs of each variant, `at_once` of them in parallel with one thread each; scenes go to `data`.
    """
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    run_all(setting, seeds, data, output, at_once)


if __name__ == "__main__":
    tyro.cli(main)
