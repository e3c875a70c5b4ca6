"""How much each small-scale stabiliser of `lyra-tiny` does when a decoder is trained from zero on a CPU.

    python -m benchmarks.stabilisers

trains the same small decoder with all stabilisers, without each one and without any, under several seeds,
through the same pipeline and optimiser as `ns-train`, and measures it on held-out scenes and camera paths.
The result file is rewritten after each run; runs that are in it are not done again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch
import tyro

from benchmarks.environment import describe_environment
from lyra_ns.data.files import write_whole
from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.synthetic import write_sample_data

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

    from lyra_ns.plugin.pipeline import LyraPipeline

OFFICIAL_HEAD = GaussianHeadConfig()
"""The paper's head, which each switched-off stabiliser returns to."""
NUM_EVALUATION_INPUTS = 3
"""Input trajectories when held-out scenes are measured."""


@dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; runs of different settings do not share a result file."""

    num_scenes: int = 24
    """Training scenes."""
    num_held_out: int = 6
    """Scenes that are measured."""
    height: int = 80
    """Image height in pixels."""
    width: int = 128
    """Image width in pixels."""
    num_frames: int = 17
    """Frames per clip."""
    decoder_width: int = 128
    """Channels of a token."""
    decoder_depth: int = 4
    """Blocks of the decoder, three scans and one attention."""
    cell_size: int = 4
    """Pixels per Gaussian along each side."""
    num_trajectories_max: int = 3
    """Most input trajectories of a step; their number is uniform from 1."""
    num_target_trajectories: int = 2
    """Images that a step renders."""
    learning_rate: float = 1e-3
    """Full learning rate, which falls along a cosine after the warm-up."""
    learning_rate_warmup_steps: int = 25
    """Steps until the full learning rate is reached."""
    steps: int = 200
    """Training steps of every run."""
    warm_start_steps: int = 80
    """How many of them are the attribute warm start, where it is on."""


def without_warm_start(config: TrainerConfig) -> None:
    """Render from the first step."""
    config.pipeline.model.warm_start_steps = 0


def without_attribute_loss(config: TrainerConfig) -> None:
    """Let go of depth and colour of single Gaussians after the warm start."""
    config.pipeline.model.loss.attributes = 0.0


def with_official_distances(config: TrainerConfig) -> None:
    """Distances from 0.1 to 500, linear in the sigmoid."""
    _change_head(config, "near", "far", "distance_law", "distance_shift")


def with_official_scales(config: TrainerConfig) -> None:
    """Scales in world units under a cap."""
    _change_head(config, "scale_law", "scale_cap")


def with_official_rotations(config: TrainerConfig) -> None:
    """The normalised raw quaternion."""
    _change_head(config, "identity_rotation")


def without_input_statistics(config: TrainerConfig) -> None:
    """Latents and ray maps go in as they are."""
    config.pipeline.model.decoder.input_statistics = False


def with_official_init(config: TrainerConfig) -> None:
    """Full gain behind the zero weights of the ray embedding."""
    config.pipeline.model.decoder.init = "official"


def _change_head(config: TrainerConfig, *names: str) -> None:
    head = config.pipeline.model.decoder.head
    config.pipeline.model.decoder.head = replace(
        head, **{name: getattr(OFFICIAL_HEAD, name) for name in names}
    )


SWITCHES: dict[str, Callable[[TrainerConfig], None]] = {
    "attribute warm start": without_warm_start,
    "attribute loss afterwards": without_attribute_loss,
    "near plane and distance law": with_official_distances,
    "footprint scale": with_official_scales,
    "identity rotation": with_official_rotations,
    "input statistics": without_input_statistics,
    "damped start": with_official_init,
}
"""What switches each stabiliser off."""

VARIANTS: dict[str, list[str]] = {
    "all on": [],
    **{f"without {name}": [name] for name in SWITCHES},
    "all off": list(SWITCHES),
}
"""Stabilisers that each variant lacks."""


def training_config(setting: Setting, switched_off: list[str], seed: int, data: Path) -> TrainerConfig:
    """`lyra-tiny` from random weights at the size of `setting`, without some stabilisers."""
    from lyra_ns.method_configs.tiny import lyra_tiny

    config = deepcopy(lyra_tiny.config)
    model, manager = config.pipeline.model, config.pipeline.datamanager
    model.init_from = "none"
    model.warm_start_steps = setting.warm_start_steps
    model.decoder = replace(
        model.decoder,
        width=setting.decoder_width,
        depth=setting.decoder_depth,
        cell_size=setting.cell_size,
    )
    manager.data, manager.seed, manager.cache = data, seed, "cpu"
    manager.sampling = replace(
        manager.sampling,
        num_trajectories_max=setting.num_trajectories_max,
        num_target_trajectories=setting.num_target_trajectories,
    )
    group = config.optimizers["decoder"]
    group["optimizer"] = replace(group["optimizer"], lr=setting.learning_rate)
    group["scheduler"] = replace(
        group["scheduler"],
        warmup_steps=setting.learning_rate_warmup_steps,
        decay="cosine",
        max_steps=setting.steps,
    )
    for name in switched_off:
        SWITCHES[name](config)
    return config


def run(setting: Setting, variant: str, seed: int, data: Path) -> dict[str, object]:
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
        "last_loss": last_loss,
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


def measure(pipeline: LyraPipeline, prune_ratio: float, baselines: bool = False) -> list[dict[str, object]]:
    """Summary rows of the evaluation protocol on the held-out scenes, as `ns-lyra evaluate` writes them."""
    from lyra_ns.codec import load_codec
    from lyra_ns.data.loaded import StoredScene
    from lyra_ns.evaluation.runner import ProtocolConfig, evaluate_scene, summary_rows
    from lyra_ns.perceptual import load_lpips
    from lyra_ns.reconstruction import Reconstructor

    scenes = pipeline.datamanager.scenes
    reconstruct = Reconstructor(pipeline.model.decoder, load_codec(scenes.codec), prune_ratio)
    protocol = ProtocolConfig(baselines=baselines, render=pipeline.model.config.render)
    perceptual = load_lpips("alex")
    scores = []
    for name in scenes.split.test:
        scene = StoredScene(scenes.scene(name), scenes.store.novel_clips(name), spec=scenes.store.spec)
        scores += evaluate_scene(reconstruct, scene, perceptual, NUM_EVALUATION_INPUTS, protocol).scores
    return summary_rows(scores)


def floors(setting: Setting, data: Path) -> list[dict[str, object]]:
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
    rows = content["rows"]
    assert isinstance(rows, list)
    done = {(row["variant"], row["seed"]) for row in rows}
    missing = [
        (variant, seed) for seed in range(seeds) for variant in VARIANTS if (variant, seed) not in done
    ]
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn")) as pool:
        floors_are = None if "floors" in content else pool.submit(floors, setting, data)
        futures = [pool.submit(run, setting, variant, seed, data) for variant, seed in missing]
        for future in as_completed(futures):
            row = future.result()
            rows.append(row)
            rows.sort(key=lambda row: (list(VARIANTS).index(row["variant"]), row["seed"]))
            if floors_are is not None and floors_are.done():
                content["floors"] = floors_are.result()
            write_whole(output, json.dumps(content, indent=1).encode())
            print(" ".join(_summary(row)), flush=True)


def new_content(setting: Setting) -> dict[str, object]:
    """A result file without rows."""
    return {
        "setting": asdict(setting),
        "environment": describe_environment("cpu"),
        "rows": [],
    }


def earlier_content(output: Path, setting: Setting) -> dict[str, object] | None:
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


def _summary(row: dict) -> Iterator[str]:
    novel = next(entry for entry in row["measured"] if entry["group"] == "novel")
    yield f"{row['variant']}, seed {row['seed']}: {row['seconds']} s"
    yield from (f"{name} {novel[name]:.3f}" for name in ("psnr", "lpips", "depth_error"))


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
