"""`python -m training.decoder PACK OUTPUT`: trains the decoder that ships, and says how good it is."""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import torch

from lyra_ns.codec import load_codec
from lyra_ns.data.picture_pack import Pack
from lyra_ns.depth.small import load_small_depth
from lyra_ns.synthetic.textures import save_texture_atlas
from training.decoder.judge import judge_decoder, judged_scenes
from training.decoder.photograph_scenes import draw_recipe, photograph_scene
from training.decoder.rendered_scenes import RenderedJobs, write_rendered_scenes
from training.decoder.scenes import SIZES, ScenePool, TrainingScene, load_scene
from training.decoder.train import (
    DecoderTraining,
    DecoderTrainingConfig,
    fresh_start,
    load_start,
    run_training,
)
from training.photographs.pack import texture_bank

USUAL_SIZE_SCENES = 0.4
"""Share of the scenes of the first of SIZES; the others share the rest."""


def parse() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training.decoder", description=__doc__)
    parser.add_argument("pack", type=Path, help="pack of photographs (python -m training.photographs.build)")
    parser.add_argument("output", type=Path, help="folder for weights, state and log")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--start", type=Path, help="decoder to start from; by default the one that ships")
    begin.add_argument("--fresh", action="store_true", help="start from random weights")
    parser.add_argument("--resume", action="store_true", help="go on from the state in OUTPUT")
    parser.add_argument("--seconds", type=float, default=500, help="of training in this run")
    parser.add_argument(
        "--total-seconds", type=float, default=1000, help="over all runs: length of the schedule"
    )
    parser.add_argument("--photograph-scenes", type=int, default=1000)
    parser.add_argument("--rendered-scenes", type=int, default=500)
    parser.add_argument("--scene-seconds", type=float, help="begin to train then, with the scenes there are")
    parser.add_argument("--workers", type=int, default=12, help="processes that render scenes")
    parser.add_argument(
        "--judge", type=Path, nargs="*", default=[], help="held-out photographs, never trained on"
    )
    parser.add_argument("--max-steps", type=int, help="stop there (for trials)")
    parser.add_argument("--scenes-per-step", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0, help="of scenes and batches")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Makes the scenes, trains, and says how good the result is on photographs that it never saw."""
    options = parse()
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", flush=True)

    pool = ScenePool(_scenes(options, say))
    say(f"scenes: {pool.describe()}")
    config = DecoderTrainingConfig(
        scenes_per_step=options.scenes_per_step,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    shipped = Path(str(files("lyra_ns.weights") / "lyra_tiny.safetensors"))
    decoder = (
        fresh_start(pool, config, options.device)
        if options.fresh
        else load_start(options.start or shipped, config, options.device)
    )
    training = DecoderTraining(decoder, config)
    if options.resume:
        training.resume(options.output)
        say(f"goes on at step {training.step}, after {training.seconds:.0f} s")
    judged = judged_scenes(options.judge, options.device) if options.judge else {}
    for name, row in judge_decoder(training.average, judged).items():
        say(f"before: {name}: {row}")
    run_training(training, pool, options.output, options.seconds, options.total_seconds, options.max_steps)
    say(f"{training.step} steps, {training.seconds:.0f} s")
    for name, row in judge_decoder(training.average, judged).items():
        say(f"after: {name}: {row}")


def _scenes(options: argparse.Namespace, say: Callable[[str], None]) -> list[tuple[str, TrainingScene]]:
    """All training scenes on the device; rendered ones are made by other processes meanwhile."""
    pack = Pack(options.pack)
    atlas = options.output / "textures.safetensors"
    if not atlas.is_file():
        save_texture_atlas(atlas, texture_bank(pack))
    say("textures written")
    jobs = RenderedJobs(
        options.output / "scenes", atlas, seed=2 + options.seed,
        sizes=_sizes(options.rendered_scenes, random.Random(options.seed + 1)),
        device=options.device,
    )  # fmt: skip
    until = time.monotonic() + (options.scene_seconds or math.inf)
    paths: list[Path] = []
    with ThreadPoolExecutor(1) as thread:
        made = write_rendered_scenes(jobs, options.workers)
        rendered = thread.submit(
            lambda: paths.extend(itertools.takewhile(lambda _: time.monotonic() < until, made))
        )
        scenes = _photograph_scenes(pack, options, until)
        say(f"{len(scenes)} scenes of photographs")
        rendered.result()
        made.close()
    say(f"{len(paths)} rendered scenes")
    return scenes + [("rendered", load_scene(path, options.device)) for path in paths]


def _photograph_scenes(
    pack: Pack, options: argparse.Namespace, until: float
) -> list[tuple[str, TrainingScene]]:
    draws = random.Random(options.seed)
    names = pack.names("photographs")
    sizes = _sizes(options.photograph_scenes, draws)
    order = [name for _ in range(len(sizes) // len(names) + 1) for name in draws.sample(names, len(names))]
    depth, codec = load_small_depth(options.device), load_codec("linear").to(options.device)
    cutouts = [_tensor(pack, name, options.device) for name in pack.names("cutouts")]
    scenes = []
    with ThreadPoolExecutor(8) as readers:
        pictures = readers.map(pack.read, order[: len(sizes)])
        for size, picture in zip(sizes, pictures, strict=True):
            if time.monotonic() > until:
                break
            photograph = torch.from_numpy(picture).to(options.device).movedim(-1, 0)
            recipe = draw_recipe(draws, size, len(cutouts))
            scene = photograph_scene(photograph, recipe, depth, codec, cutouts, draws=draws)
            scenes.append(("photograph", scene))
    return scenes


def _tensor(pack: Pack, name: str, device: str) -> torch.Tensor:
    return torch.from_numpy(pack.read(name)).to(device).movedim(-1, 0)


def _sizes(num: int, draws: random.Random) -> tuple[tuple[int, int], ...]:
    """So many sizes, drawn at random."""
    rest = (1 - USUAL_SIZE_SCENES) / (len(SIZES) - 1)
    return tuple(draws.choices(SIZES, [USUAL_SIZE_SCENES] + [rest] * (len(SIZES) - 1), k=num))


if __name__ == "__main__":
    main()
