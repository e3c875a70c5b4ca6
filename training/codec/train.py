"""Trains the learned codec on pictures in motion: `python -m training.codec.train`.

Pieces chain: `--resume DIR` goes on from the state of an earlier piece, and the learning rate follows one
curve over `--total-seconds` of all pieces together. Everything lies on the device; a step's clips follow from
its number. Written are the state, curve.jsonl, evaluation.json and learned_codec.safetensors.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lyra_ns.codec.base import LatentStatistics
from lyra_ns.codec.learned import (
    FILE_NAME,
    LearnedCodecConfig,
    LearnedNetwork,
    config_of,
    read_learned_network,
)
from lyra_ns.codec.linear import load_linear_codec
from training.codec.clips import ClipShape, Draws, moving_pictures, moving_rays
from training.codec.evaluate import evaluate_codec, read_held_out
from training.codec.export import export_codec
from training.codec.objective import Objective, draw_latents, judge
from training.codec.pictures import Pack, TrainingPictures, ZipPack, load_pictures
from training.codec.state import Progress, SavedState, read_state, write_state

CONFIGS = {
    "full": LearnedCodecConfig(),
    "tiny": LearnedCodecConfig(
        encoder_widths=(16, 24, 32),
        encoder_blocks=(1, 1, 1),
        decoder_widths=(16, 24, 32),
        decoder_blocks=(1, 1, 1),
    ),
}
"""Networks by name; tiny is for trying things out."""
WARM_UP_STEPS = 200
RESTART_STEPS = 30
"""Steps over which the rate grows again when a piece resumes: the first moments begin anew."""
CONSTANT_SHARE = 0.35
"""Share of the total time before the rate begins to fall, along half a cosine."""
SHORTCUT_SHARE = 0.02
"""Share of the rate for the linear shortcut: it starts fitted, and each of its sums has 1536 terms."""
AVERAGE_DECAY = 0.999
LARGEST_GRADIENT = 1.0
REPORT_SECONDS = 20.0
STATE_SECONDS = 150.0
RAYS_EVERY = 4
"""Every so many steps two clips of the batch are the ray maps of one camera path."""
SYNCHRONISE_EVERY = 8
"""Steps after which the host waits for the device, so that the clock means something."""
STATISTICS_BATCHES = 8
STATISTICS_SEED = 2**40


@dataclass(frozen=True)
class TrainSettings:
    """One piece of training."""

    output: Path
    """Folder for everything that is written."""
    seconds: float
    """Length of this piece, from the start of the process's work, without the judgement at its end."""
    total_seconds: float
    """Length of all pieces together, by which the learning rate falls."""
    resume: Path | None = None
    """Folder with the state of an earlier piece."""
    start_from: Path | None = None
    """File of a codec to begin with instead, where the state was not kept: its weights, all else anew."""
    config: str = "full"
    """Name of the network, ignored when there are weights to begin with."""
    learning_rate: float = 6e-4
    """Highest rate of AdamW."""
    num_clips: int = 16
    """Clips of 17 x 160 x 256 in a batch; other sizes take as many as cost the same."""
    photograph_side: int = 768
    """Longest side of photographs on the device."""
    layer_side: int = 256
    """Longest side of textures and cut-outs."""
    seed: int = 0
    """Of everything drawn."""
    max_steps: int | None = None
    """Steps after which the piece ends whatever the clock says."""
    small: bool = False
    """Clips of a quarter of the size, for trying things out on a CPU."""


def batch_shapes(num_clips: int, small: bool = False) -> tuple[ClipShape, ...]:
    """The cycle of shapes: landscape, portrait, square, stills, long and large, each of about equal cost."""
    unit = 16 if small else 32
    wide, tall, square = (
        (5 * unit, 8 * unit),
        (8 * unit, 5 * unit),
        (208 * unit // 512 * 16, 208 * unit // 512 * 16),
    )
    half, quarter = max(num_clips // 2, 2), max(num_clips // 4, 2)
    return (
        ClipShape(num_clips, 17, *wide),
        ClipShape(num_clips, 17, *tall),
        ClipShape(4 * num_clips, 1, *wide),
        ClipShape(num_clips, 17, *wide),
        ClipShape(num_clips, 17, *square),
        ClipShape(half, 33, *wide),
        ClipShape(num_clips, 17, *wide),
        ClipShape(quarter, 17, 2 * wide[0], 2 * wide[1]),
    )


class Trainer:
    """Network, its running average, optimiser and pictures of one run."""

    def __init__(self, settings: TrainSettings, pictures: TrainingPictures, device: torch.device) -> None:
        self.settings = settings
        self.pictures = pictures
        self.device = device
        saved = read_state(settings.resume) if settings.resume else None
        torch.manual_seed(settings.seed)
        self.network = _new_network(settings, saved).to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.progress = saved.progress if saved else Progress()
        self.first_step = self.progress.step
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.network, settings.learning_rate),
            betas=(0.9, 0.99),
            fused=True if device.type == "cuda" else None,
        )
        if saved:
            self.average.load_state_dict(saved.weights("average"))
            saved.restore_moments(self.network, self.optimizer)
        self.shapes = batch_shapes(settings.num_clips, settings.small)

    def step(self) -> Objective:
        """One step of the optimiser."""
        number = self.progress.step
        draws = Draws(self.settings.seed * 1_000_003 + number, self.device)
        video = self.clips(self.shapes[number % len(self.shapes)], draws, with_rays=number % RAYS_EVERY == 0)
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            mean, log_variance = self.network.encode(video)
            latents = draw_latents(mean, log_variance, draws.normal(*mean.shape))
            decoded = self.network.decode(latents)
        objective = judge(decoded, video, mean, log_variance)
        self.optimizer.zero_grad(set_to_none=True)
        objective.loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self._update_average()
        self.progress.step += 1
        return objective

    @torch.no_grad()
    def clips(self, shape: ClipShape, draws: Draws, with_rays: bool) -> Float[Tensor, "B 3 L H W"]:
        """A batch of clips, the last two of them ray maps if asked for."""
        video = moving_pictures(self.pictures, shape, draws)
        if with_rays and shape.num_frames > 1:
            video[-2:] = moving_rays(ClipShape(2, shape.num_frames, shape.height, shape.width), draws)
        return video

    def learning_rate(self) -> float:
        """The rate of the next step."""
        step, share = self.progress.step, self.progress.seconds / self.settings.total_seconds
        warm = min((step + 1) / WARM_UP_STEPS, 1.0)
        if self.first_step:
            warm *= min((step - self.first_step + 1) / RESTART_STEPS, 1.0)
        fallen = min(max((share - CONSTANT_SHARE) / (1 - CONSTANT_SHARE), 0.0), 1.0)
        return self.settings.learning_rate * warm * max(0.5 * (1 + math.cos(math.pi * fallen)), 0.005)

    @torch.no_grad()
    def _update_average(self) -> None:
        step = self.progress.step
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    @torch.no_grad()
    def statistics(self) -> LatentStatistics:
        """Mean and deviation of the averaged network's latents on training clips, first and later ones."""
        columns = []
        for number in range(STATISTICS_BATCHES):
            video = self.clips(self.shapes[0], Draws(STATISTICS_SEED + number, self.device), with_rays=False)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                mean, _ = self.average.encode(video)
            columns.append([part.transpose(0, 1).flatten(1) for part in (mean[:, :, :1], mean[:, :, 1:])])
        parts = [torch.cat(part, 1) for part in zip(*columns, strict=True)]
        return LatentStatistics(
            torch.stack([part.mean(1) for part in parts], 1).cpu(),
            torch.stack([part.std(1) for part in parts], 1).clamp(min=1e-4).cpu(),
            repeat_last=True,
        )

    def save(self) -> None:
        """Writes the state."""
        write_state(
            self.settings.output, self.network, self.average, self.optimizer, self.statistics(), self.progress
        )


class Curve:
    """Sums up steps, prints a line every twenty seconds and writes it to curve.jsonl."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        self.path = path
        self.trainer = trainer
        self._begin()

    def _begin(self) -> None:
        self.since = time.monotonic()
        self.num_steps = 0
        self.sums = torch.zeros(4, device=self.trainer.device)

    def add(self, objective: Objective) -> None:
        """Counts one step in, without waiting for it."""
        parts = (
            objective.loss.detach(),
            objective.squared_error,
            objective.first_squared_error,
            objective.divergence,
        )
        self.sums += torch.stack(parts)
        self.num_steps += 1

    def report_if_due(self, is_last: bool = False) -> None:
        """Writes a line if it is time; FloatingPointError if training has gone wrong."""
        seconds = time.monotonic() - self.since
        if not self.num_steps or (seconds < REPORT_SECONDS and not is_last):
            return
        loss, squared, first, divergence = (self.sums / self.num_steps).tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.trainer.progress.step}: resume from the last state with a "
                "lower --learning-rate"
            )
        line = {
            "step": self.trainer.progress.step,
            "seconds": round(self.trainer.progress.seconds, 1),
            "loss": round(loss, 5),
            "psnr": round(-10 * math.log10(max(squared, 1e-12)), 2),
            "first_frame_psnr": round(-10 * math.log10(max(first, 1e-12)), 2),
            "divergence": round(divergence, 3),
            "learning_rate": self.trainer.optimizer.param_groups[0]["lr"],
            "seconds_per_step": round(seconds / self.num_steps, 4),
            "gib": _peak_memory(self.trainer.device),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        self._begin()


def train(settings: TrainSettings, pack: Pack, device: torch.device) -> Trainer:
    """One piece of training. ValueError or FileNotFoundError before it if an input is wrong."""
    start = time.monotonic()
    _prepare(device)
    settings.output.mkdir(parents=True, exist_ok=True)
    pictures = load_pictures(pack, device, settings.photograph_side, settings.layer_side)
    trainer = Trainer(settings, pictures, device)
    stacks = (pictures.photographs, pictures.textures, pictures.cutouts)
    num_weights = sum(parameter.numel() for parameter in trainer.network.parameters())
    counts = "/".join(str(len(stack)) for stack in stacks)
    print(
        f"{num_weights / 1e6:.2f} M weights, {counts} photographs, textures and cut-outs on {device} after "
        f"{time.monotonic() - start:.0f} s, from step {trainer.progress.step}",
        flush=True,
    )
    curve = Curve(_curve_file(settings), trainer)
    saved_at = clock = time.monotonic()
    while not _is_over(settings, trainer, start):
        curve.add(trainer.step())
        if device.type == "cuda" and trainer.progress.step % SYNCHRONISE_EVERY == 0:
            torch.cuda.synchronize(device)
        now = time.monotonic()
        trainer.progress.seconds += now - clock
        clock = now
        curve.report_if_due()
        if now - saved_at > STATE_SECONDS:
            trainer.save()
            saved_at = clock = time.monotonic()
    curve.report_if_due(is_last=True)
    trainer.save()
    return trainer


def finish(trainer: Trainer, held_out: str | None) -> dict[str, Any]:
    """Writes the codec's file, and its judgement on held-out photographs if they are given."""
    output = trainer.settings.output
    codec = export_codec(output).to(trainer.device)
    (output / FILE_NAME).write_bytes(codec.to_bytes())
    result: dict[str, Any] = {"progress": asdict(trainer.progress), "digest": codec.digest}
    if held_out:
        result |= evaluate_codec(codec, read_held_out(held_out), trainer.device)
        (output / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _prepare(device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def _new_network(settings: TrainSettings, saved: SavedState | None) -> LearnedNetwork:
    if settings.start_from is not None and saved is None:
        return read_learned_network(settings.start_from)
    network = LearnedNetwork(config_of(saved.config) if saved else CONFIGS[settings.config])
    if saved:
        network.load_state_dict(saved.weights("network"))
    else:
        network.start_from(load_linear_codec())
    return network


def _parameter_groups(network: LearnedNetwork, rate: float) -> list[dict[str, Any]]:
    """Weights that multiply decay a little, biases and normalisations do not; the shortcut learns slowly."""
    shortcuts = [*network.encoder.shortcuts.parameters(), *network.decoder.shortcuts.parameters()]
    rest = [parameter for parameter in network.parameters() if all(parameter is not one for one in shortcuts)]
    matrices = [parameter for parameter in rest if parameter.ndim > 1]
    vectors = [parameter for parameter in rest if parameter.ndim <= 1]
    return [
        {"params": matrices, "lr": rate, "share": 1.0, "weight_decay": 1e-3},
        {"params": vectors, "lr": rate, "share": 1.0, "weight_decay": 0.0},
        {"params": shortcuts, "lr": rate, "share": SHORTCUT_SHARE, "weight_decay": 0.0},
    ]


def _is_over(settings: TrainSettings, trainer: Trainer, start: float) -> bool:
    if settings.max_steps is not None and trainer.progress.step - trainer.first_step >= settings.max_steps:
        return True
    return time.monotonic() - start >= settings.seconds


def _curve_file(settings: TrainSettings) -> Path:
    """The curve of this piece, behind that of the pieces before it."""
    path = settings.output / "curve.jsonl"
    if settings.resume is None:
        path.write_text("")
    elif settings.resume.resolve() != settings.output.resolve():
        before = settings.resume / path.name
        path.write_text(before.read_text() if before.is_file() else "")
    return path


def _peak_memory(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.codec.train", description=__doc__)
    add = parser.add_argument
    add("--pack", type=Path, required=True, help="zip of training pictures")
    add("--output", type=Path, required=True, help="folder to write to")
    add("--seconds", type=float, required=True, help="length of this piece")
    add("--total-seconds", type=float, help="length of all pieces together; by default this one's")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", type=Path, help="folder with the state of an earlier piece")
    begin.add_argument("--start-from", type=Path, help="file of a codec whose weights to begin with")
    add("--held-out", help="folder, zip or npz of photographs to judge by, or skimage")
    add("--config", choices=sorted(CONFIGS), default="full")
    add("--learning-rate", type=float, default=TrainSettings.learning_rate)
    add("--num-clips", type=int, default=TrainSettings.num_clips)
    add("--photograph-side", type=int, default=TrainSettings.photograph_side)
    add("--layer-side", type=int, default=TrainSettings.layer_side)
    add("--seed", type=int, default=0)
    add("--max-steps", type=int)
    add("--dry-run-steps", type=int, help="do so many steps of every shape, then everything up to the end")
    add("--small", action="store_true", help="clips of a quarter of the size")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Trains one piece and prints the judgement."""
    options = _parser().parse_args(arguments)
    max_steps = options.max_steps
    if options.dry_run_steps is not None:
        max_steps = options.dry_run_steps * len(batch_shapes(options.num_clips))
    settings = TrainSettings(
        output=options.output,
        seconds=options.seconds,
        total_seconds=options.total_seconds or options.seconds,
        resume=options.resume,
        start_from=options.start_from,
        config=options.config,
        learning_rate=options.learning_rate,
        num_clips=options.num_clips,
        photograph_side=options.photograph_side,
        layer_side=options.layer_side,
        seed=options.seed,
        max_steps=max_steps,
        small=options.small,
    )
    if options.held_out:
        read_held_out(options.held_out)  # a wrong path is said before training, not after it
    trainer = train(settings, ZipPack(options.pack), torch.device(options.device))
    result = finish(trainer, options.held_out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
