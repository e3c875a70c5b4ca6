"""The training of the small decoder: one step, its schedule, and a state from which another run goes on.

Shape letters: B scenes, V trajectories, M targets.
"""

from __future__ import annotations

import json
import math
import random
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lyra_ns.cameras import ray_grid
from lyra_ns.data.atomic import write_whole
from lyra_ns.decoder.checkpoints import load_decoder, save_decoder
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import TINY_DECODER
from lyra_ns.decoder.cuda_graphs import GraphedDecoder
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import prune
from lyra_ns.losses import LossConfig, mse_loss, perceptual_loss, reconstruction_losses, warm_start_loss
from lyra_ns.ops.lpips import PerceptualDistance, load_lpips
from lyra_ns.rendering import RenderSettings, render
from training.decoder.scenes import CELL_SIZE, ScenePool, TrainingBatch, gather

USUAL_SIZE = (160, 256)
"""Most steps have clips of this size, with any number of trajectories."""
USUAL_VIEWS = (1, 2, 3, 6, 6)
"""Numbers of trajectories at the usual size, drawn evenly."""
OTHER_VIEWS = (1, 6, 6)
"""And at other sizes: few, since every shape has CUDA graphs of its own."""


@dataclass(frozen=True)
class DecoderTrainingConfig:
    """How the decoder is trained."""

    learning_rate: float = 3e-4
    """Full rate of AdamW."""
    warmup_steps: int = 100
    """Steps, of every run, until the full rate is reached."""
    hold_share: float = 0.4
    """Part of the training with the full rate, before a cosine to `final_share` of it."""
    final_share: float = 0.02
    """Rate at the end, relative to the full one."""
    weight_decay: float = 0.01
    """Decoupled; matrices only."""
    max_norm: float = 1.0
    """Gradients of all parameters together are scaled down to this norm."""
    average_decay: float = 0.999
    """Share of the old average that a step leaves in the averaged weights, which are what is exported."""
    scenes_per_step: int = 6
    """Scenes of a step."""
    targets_per_scene: int = 5
    """Frames of each scene that are reproduced."""
    prune_ratio: float = 0.5
    """Share of Gaussians that is dropped."""
    usual_size_share: float = 0.5
    """Share of the steps with clips of the usual size."""
    photograph_share: float = 0.7
    """Share of the scenes that were made of photographs."""
    footprint_limit: float = 0.4
    """Bound of the Gaussians' lengths (`GaussianHeadConfig.footprint_limit`): longer ones show as streaks."""
    fine_weight: float = 0.4
    """Weight of the colour losses at the finer resolution."""
    seed: int = 0
    """Seed of the batches."""


LOSS = LossConfig(mse=4.0, lpips=0.25, lpips_net="alex", opacity=0.02, depth=0.05, attributes=0.1)
"""The losses of `lyra-tiny`."""
RENDER = RenderSettings(response="ewa")


class DecoderTraining:
    """The decoder, its averaged weights, the optimiser, and how far it is."""

    def __init__(self, decoder: LatentGaussianDecoder, config: DecoderTrainingConfig) -> None:
        self.config = config
        self.decoder = decoder.train()
        self.average = deepcopy(decoder).requires_grad_(False).eval()
        self.device = next(decoder.parameters()).device
        parameters = list(decoder.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=self.device.type == "cuda"
        )
        self.step = 0
        self.seconds = 0.0
        self._steps_of_run = 0
        self._graphed = GraphedDecoder(decoder)
        perceptual = load_lpips("alex")
        self._perceptual: PerceptualDistance = (
            perceptual.computing_in(torch.bfloat16) if self.device.type == "cuda" else perceptual
        )

    def learning_rate_at(self, progress: float) -> float:
        """Rate at this share of the whole training: warm-up, full, cosine."""
        config = self.config
        warm = min(1.0, (self._steps_of_run + 1) / config.warmup_steps)
        fall = max(0.0, progress - config.hold_share) / (1 - config.hold_share)
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, fall)))
        return config.learning_rate * warm * (config.final_share + (1 - config.final_share) * wave)

    def train_step(self, batch: TrainingBatch, progress: float) -> dict[str, Tensor]:
        """Learns from one batch; weighted terms of the loss, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate_at(progress)
        terms = self.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.config.max_norm)
        self.optimizer.step()
        self._update_average()
        self.step += 1
        self._steps_of_run += 1
        return {name: term.detach() for name, term in terms.items()}

    def losses(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Weighted terms of the loss of a batch."""
        rays = ray_grid(batch.cameras, *(side // CELL_SIZE for side in batch.target_rgb.shape[2:4]))
        gaussians = self._graphed(batch.latents, Conditioning(batch.plucker, rays))
        kept = prune(gaussians, self.config.prune_ratio)
        rendered = render(kept, batch.target_cameras, RENDER)
        terms = reconstruction_losses(
            rendered, batch.target_rgb, batch.target_depth, gaussians.opacities, LOSS, self._perceptual
        )
        fine = render(kept, batch.fine_cameras, RENDER).rgb
        weight = self.config.fine_weight
        terms["fine mse"] = weight * LOSS.mse * mse_loss(fine, batch.fine_rgb)
        terms["fine lpips"] = weight * LOSS.lpips * perceptual_loss(fine, batch.fine_rgb, self._perceptual)
        terms["attributes"] = LOSS.attributes * warm_start_loss(
            gaussians, rays, batch.cell_depth, batch.cell_rgb, batch.cameras, LOSS
        )
        return terms

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.average_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.decoder.parameters()), 1 - decay)

    def save(self, folder: Path) -> None:
        """Writes the averaged decoder as it ships, and the state to go on from; each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        save_decoder(self.average, folder / "lyra_tiny.safetensors", "float16")
        tensors = {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        progress = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
        write_whole(folder / "state.safetensors", save(tensors, {"progress": json.dumps(progress)}))

    def resume(self, folder: Path) -> None:
        """Goes on from the state in a folder; FileNotFoundError if there is none."""
        path = folder / "state.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"expected the state of a training in {path}, found none: leave --resume out"
            )
        with safe_open(path, "pt", str(self.device)) as file:
            progress = json.loads((file.metadata() or {})["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parts: dict[str, dict[str, Tensor]] = {"decoder": {}, "average": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = value
        self.decoder.load_state_dict(parts["decoder"])
        self.average.load_state_dict(parts["average"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, field = name.split(".", 1)
            state.setdefault(int(index), {})[field] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        self.step, self.seconds = progress["step"], progress["seconds"]


def run_training(
    training: DecoderTraining,
    pool: ScenePool,
    output: Path,
    seconds: float,
    total_seconds: float,
    max_steps: int | None = None,
    save_every: float = 120.0,
) -> None:
    """Trains for `seconds`, of a schedule that lasts `total_seconds` over all runs; the state is saved."""
    config = training.config
    draws = random.Random(f"{config.seed} {training.step}")
    before, start = training.seconds, time.monotonic()
    saved = reported = start
    recent: list[dict[str, Tensor]] = []
    log = output / "log.jsonl"
    output.mkdir(parents=True, exist_ok=True)
    while (now := time.monotonic()) - start < seconds and (max_steps is None or training.step < max_steps):
        training.seconds = before + now - start
        batch = draw_batch(pool, draws, config)
        recent.append(training.train_step(batch, training.seconds / total_seconds))
        if now - reported > 20:
            reported = now
            _report(training, recent, log)
            recent = []
        if now - saved > save_every:
            saved = now
            training.save(output)
    training.seconds = before + time.monotonic() - start
    if recent:
        _report(training, recent, log)
    training.save(output)


def draw_batch(pool: ScenePool, draws: random.Random, config: DecoderTrainingConfig) -> TrainingBatch:
    """A random batch: of one size, as many scenes as the configuration says, one to six trajectories."""
    others = [size for size in pool.sizes if size != USUAL_SIZE]
    is_usual = USUAL_SIZE in pool.sizes and (not others or draws.random() < config.usual_size_share)
    size = USUAL_SIZE if is_usual else draws.choice(others)
    shares = {"photograph": config.photograph_share, "rendered": 1 - config.photograph_share}
    scenes = pool.draw(draws, size, config.scenes_per_step, shares)
    num_views = draws.choice(USUAL_VIEWS if is_usual else OTHER_VIEWS)
    return gather(scenes, draws, num_views, config.targets_per_scene)


def _report(training: DecoderTraining, recent: list[dict[str, Tensor]], log: Path) -> None:
    """A line on the screen and in the log: means over the steps since the last one."""
    means = {name: float(torch.stack([terms[name] for terms in recent]).mean()) for name in recent[0]}
    line = {
        "step": training.step,
        "seconds": round(training.seconds, 1),
        "psnr": round(-10 * math.log10(max(means["mse"] / LOSS.mse, 1e-10)), 2),
        "fine psnr": round(
            -10 * math.log10(max(means["fine mse"] / LOSS.mse / training.config.fine_weight, 1e-10)), 2
        ),
        **{name: round(value, 5) for name, value in means.items()},
    }
    print(json.dumps(line), flush=True)
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def load_start(
    path: Path, config: DecoderTrainingConfig, device: torch.device | str
) -> LatentGaussianDecoder:
    """The decoder to start from, in float32 on the device, its Gaussians bounded as the training says."""
    decoder = load_decoder(path).to(device).float()
    head = replace(decoder.config.head, footprint_limit=config.footprint_limit)
    decoder.config = replace(decoder.config, head=head)
    return decoder


def fresh_start(
    pool: ScenePool, config: DecoderTrainingConfig, device: torch.device | str
) -> LatentGaussianDecoder:
    """A decoder of the shipped sizes with random weights; its inputs are whitened by what one batch holds."""
    torch.manual_seed(config.seed)
    head = replace(TINY_DECODER.head, footprint_limit=config.footprint_limit)
    decoder = LatentGaussianDecoder(replace(TINY_DECODER, head=head)).to(device)
    batch = draw_batch(pool, random.Random(f"{config.seed} statistics"), config)
    decoder.set_input_statistics(batch.latents, batch.plucker)
    return decoder
