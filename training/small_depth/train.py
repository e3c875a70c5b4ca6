"""Trains the small depth network on scenes that are drawn and rendered while it learns.

    python -m training.small_depth.train --output depth_small.safetensors --seconds 240

Shape letters: N images, h w size.
"""

from __future__ import annotations

import json
import math
import random
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from lyra_ns.depth.small import SmallDepthConfig, SmallDepthNetwork, save_small_depth
from lyra_ns.synthetic.textures import load_texture_atlas
from training.small_depth.data import DepthBatch, ScenePool, SceneSource, draw_shape
from training.small_depth.validate import validate

GRADIENT_SCALES = (1, 2, 4, 8)
"""Distances in pixels over which differences of log depth are compared."""
AVERAGE_EVERY = 4
"""Steps between two updates of the average."""


@dataclass
class TrainingOptions:
    """Options of a training."""

    output: Path
    """File for the weights."""
    seconds: float = 240.0
    """Time to train, without the first filling of the pool."""
    device: str = "cuda"
    """Where to render and train."""
    batch_size: int = 64
    """Pictures in a step."""
    learning_rate: float = 1.5e-3
    """Highest rate of AdamW; it rises over the first 2 % of the time and falls as a cosine."""
    weight_decay: float = 0.02
    """Weight decay of AdamW."""
    gradient_weight: float = 0.5
    """Weight of the differences of log depth beside log depth itself."""
    average_decay: float = 0.998
    """Share that the average of the weights, which is what is kept, keeps of itself in each step."""
    pool_size: int = 4080
    """Rendered images that batches are cut from."""
    image_size: int = 384
    """Side of rendered images in pixels."""
    rendered_at_once: int = 48
    """Images that are rendered at once."""
    render_every: int = 2
    """Steps after which so many of the pool are rendered anew."""
    seed: int = 0
    """Seed of scenes and weights."""
    use_trunk: bool = True
    """Whether the network sees the features of the AlexNet trunk."""
    checkpoint: Path | None = None
    """File for the state of the training, written once a minute; one that is there is gone on from."""
    report_every: int = 200
    """Steps between two lines of progress."""
    texture_atlas: Path | None = None
    """Pictures as `save_texture_atlas` wrote them, for machines without scikit-image."""
    num_validation: int = 32
    """Scenes of each kind to validate on; 0 leaves validation (which needs scikit-image) to
    `python -m training.small_depth.validate`."""
    report: Path | None = None
    """File for the validation's numbers, which are printed, too."""


def depth_distance(
    log_depth: Float[Tensor, "N h w"], target: Float[Tensor, "N h w"], gradient_weight: float
) -> Float[Tensor, ""]:
    """Mean error of log depth after the best factor of each picture, and of its differences at four scales.

    D. Eigen et al., "Depth Map Prediction from a Single Image", NeurIPS 2014 (scale-invariant log error);
    Z. Li and N. Snavely, "MegaDepth", CVPR 2018 (differences at several scales).
    """
    error = log_depth - target
    error = error - error.mean((1, 2), keepdim=True)
    loss = error.abs().mean()
    for scale in GRADIENT_SCALES:
        down = (error[:, scale:] - error[:, :-scale]).abs().mean()
        right = (error[:, :, scale:] - error[:, :, :-scale]).abs().mean()
        loss = loss + gradient_weight / len(GRADIENT_SCALES) * (down + right)
    return loss


class Training:
    """Network, its average, the optimiser and how far they are."""

    def __init__(self, options: TrainingOptions) -> None:
        """Starts anew, or from the checkpoint."""
        torch.manual_seed(options.seed)
        self.options, self.device = options, torch.device(options.device)
        config = SmallDepthConfig(use_trunk=options.use_trunk)
        self.network = SmallDepthNetwork(config).to(self.device)
        self.average = deepcopy(self.network).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay,
            betas=(0.9, 0.98), fused=self.device.type == "cuda",
        )  # fmt: skip
        self.step, self.elapsed = 0, 0.0
        if options.checkpoint and options.checkpoint.is_file():
            self._read(options.checkpoint)

    def run(self, pool: ScenePool) -> None:
        """Trains until the time is over."""
        choice = random.Random(self.options.seed + self.step)
        before, saved = self.elapsed, self.elapsed
        started = monotonic()
        while self.elapsed < self.options.seconds:
            if self.step % self.options.render_every == 0:
                pool.renew()
            loss = self._step(pool.batch(self.options.batch_size, draw_shape(choice)))
            self.step += 1
            if self.step % self.options.report_every == 0:
                rate = self.optimizer.param_groups[0]["lr"]
                print(
                    f"step {self.step}  {self.elapsed:.0f} s  loss {loss.item():.4f}  rate {rate:.2e}",
                    flush=True,
                )
            self.elapsed = before + monotonic() - started
            if self.options.checkpoint and self.elapsed - saved > 60:
                self.write(self.options.checkpoint)
                saved = self.elapsed

    def _step(self, batch: DepthBatch) -> Tensor:
        """One step of the optimiser; the loss stays on the device."""
        self.optimizer.param_groups[0]["lr"] = self.options.learning_rate * rate_at(
            self.elapsed / self.options.seconds
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            log_depth = self.network(batch.rgb)
        loss = depth_distance(log_depth, batch.log_depth, self.options.gradient_weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if self.step % AVERAGE_EVERY == 0:
            self._update_average()
        return loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.options.average_decay**AVERAGE_EVERY, (1 + self.step) / (10 + self.step))
        for kept, current in zip(self.average.parameters(), self.network.parameters(), strict=True):
            kept.lerp_(current, 1 - decay)

    def write(self, path: Path) -> None:
        """Writes the state of the training."""
        state = {
            "network": self.network.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(), "step": self.step, "elapsed": self.elapsed,
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        torch.save(state, partial)
        partial.replace(path)

    def _read(self, path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        print(f"going on from {path}: step {self.step}, {self.elapsed:.0f} s", flush=True)


def rate_at(progress: float) -> float:
    """Share of the highest learning rate at a share of the time."""
    progress = min(progress, 1.0)
    return min(1.0, (progress + 0.001) / 0.02) * (0.5 + 0.5 * math.cos(math.pi * progress))


def train(options: TrainingOptions) -> dict[str, Any]:
    """Trains, writes the weights, and returns what validation of the written file found."""
    if options.device.startswith("cuda"):
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    training = Training(options)
    started = monotonic()
    # Going on, other scenes are drawn than at the start.
    bank = load_texture_atlas(options.texture_atlas) if options.texture_atlas else None
    source = SceneSource(options.device, seed=options.seed + training.step, held_out=False, bank=bank)
    pool = ScenePool(source, options.pool_size, options.image_size, options.rendered_at_once)
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    print(f"pool of {options.pool_size} images filled in {monotonic() - started:.1f} s", flush=True)
    training.run(pool)
    del pool
    if options.checkpoint:
        training.write(options.checkpoint)
    save_small_depth(training.average, options.output)
    found: dict[str, Any] = {"steps": training.step, "seconds": round(training.elapsed, 1)}
    return found | (validate(options.output, options.num_validation) if options.num_validation else {})


def main() -> None:
    """Entry of the command line."""
    options = tyro.cli(TrainingOptions, description=__doc__)
    found = json.dumps(train(options), indent=1)
    print(found)
    if options.report:
        options.report.write_text(found + "\n")


if __name__ == "__main__":
    main()
