"""`python -m benchmarks.training_step`: one training step at the paper's size, part by part.

The step is that of `ns-train lyra` without nerfstudio's trainer: the decoder's own code, pruning, rendering,
the losses and AdamW, on random latents, random ray latents, the official camera paths and random targets. It
is measured with the settings in force and with plain ones: every block recomputed, views drawn one by one and
drawn again in the backward pass, LPIPS in float32 image by image (docs/reference/performance.md,
"Training step").
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from statistics import median
from typing import Any, Literal

import lpips
import torch
import tyro
from torch import Tensor

from benchmarks.environment import describe_environment
from benchmarks.full_size.inputs import Size, cameras
from lyra_ns.cameras import ray_grid
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.data.types import SceneBatch
from lyra_ns.decoder.blocks import choose_policy
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.device import GIB
from lyra_ns.gaussians import prune
from lyra_ns.losses import LossConfig
from lyra_ns.ops.lpips import PerceptualDistance
from lyra_ns.plugin.model import BatchOutputs, loss_terms
from lyra_ns.rendering import RenderSettings, render

PARTS = ("forward", "render", "loss", "backward", "optimiser")

Way = Literal["fast", "plain"]


@dataclass(frozen=True)
class StepSize:
    """Sizes of a training step; the defaults are those of the paper's last static stage."""

    num_views: int = 6
    """Input trajectories."""
    num_targets: int = 54
    """Target views in all."""
    prune_ratio: float = 0.8
    """Share of Gaussians that is dropped before rendering."""
    num_frames: int = 121
    """Frames of a trajectory, 8 k + 1."""
    height: int = 704
    """Rows of pixels."""
    width: int = 1280
    """Columns of pixels."""


@dataclass(frozen=True)
class StepSettings:
    """How the step is computed."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The network, with its policy of recomputation."""
    render: RenderSettings = field(default_factory=RenderSettings)
    """How many views are drawn together."""
    lpips_net: Literal["vgg", "alex"] = "vgg"
    """Trunk of the perceptual distance, with random weights: they change no time."""
    lpips_dtype: torch.dtype | None = torch.bfloat16
    """Precision of that trunk; None is float32."""
    lpips_images_at_once: int | None = None
    """Images in it at a time; None: by the free memory."""


def settings_of(way: Way, settings: StepSettings) -> StepSettings:
    """`settings` as they are, or made plain."""
    if way == "fast":
        return settings
    return replace(
        settings,
        decoder=replace(settings.decoder, recompute="all"),
        render=replace(settings.render, views_at_once=1),
        lpips_dtype=None,
        lpips_images_at_once=1,
    )


class Step:
    """A decoder with everything that one training step of it needs."""

    def __init__(self, size: StepSize, settings: StepSettings, device: torch.device) -> None:
        torch.manual_seed(0)
        self.size, self.settings, self.device = size, settings, device
        self.decoder = LatentGaussianDecoder(settings.decoder).to(device).train()
        self.batch, self.conditioning = random_batch(size, settings.decoder, device)
        network = lpips.LPIPS(net=settings.lpips_net, pnet_rand=True, verbose=False)
        self.perceptual = PerceptualDistance(
            network, "random", settings.lpips_dtype, settings.lpips_images_at_once
        ).to(device)
        self.optimiser = torch.optim.AdamW(self.decoder.parameters(), lr=1e-4, fused=device.type == "cuda")
        self.loss_config = LossConfig(lpips_net=settings.lpips_net)

    def run(self) -> tuple[dict[str, float], float]:
        """Milliseconds of each part of one step, and the loss."""
        times: dict[str, float] = {}
        self.optimiser.zero_grad(set_to_none=True)
        with self._timed("forward", times):
            gaussians = self.decoder(self.batch.latents, self.conditioning)
            kept = prune(gaussians, self.size.prune_ratio)
        with self._timed("render", times):
            rendered = render(kept, self.batch.target_cameras, self.settings.render)
        with self._timed("loss", times):
            outputs = BatchOutputs(gaussians, kept, self.conditioning.rays, rendered)
            terms = loss_terms(outputs, self.batch, self.loss_config, self.perceptual)
            loss = reduce(torch.add, terms.values())
        with self._timed("backward", times):
            loss.backward()
        with self._timed("optimiser", times):
            torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
            self.optimiser.step()
        return times, float(loss.detach())

    @contextmanager
    def _timed(self, part: str, times: dict[str, float]) -> Iterator[None]:
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        times[part] = 1000 * (time.perf_counter() - started)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def random_batch(
    size: StepSize, decoder: DecoderConfig, device: torch.device
) -> tuple[SceneBatch, Conditioning]:
    """Normal latents and ray latents, the official paths as cameras, and evenly drawn targets."""
    if size.num_targets % size.num_views:
        raise ValueError(
            f"targets are spread evenly over {size.num_views} trajectories, found {size.num_targets}: "
            "give a multiple"
        )
    generator = torch.Generator(device).manual_seed(1)
    paths = cameras(size.num_views, Size(size.num_frames, size.height, size.width), device)
    height, width = size.height // decoder.spatial_stride, size.width // decoder.spatial_stride
    latent_frames = (size.num_frames - 1) // decoder.temporal_stride + 1
    shape = (1, size.num_views, decoder.latent_channels, latent_frames, height, width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    frames = torch.linspace(0, size.num_frames - 1, size.num_targets // size.num_views).long().to(device)
    images = (1, size.num_targets, size.height, size.width)
    batch = SceneBatch(
        names=["random"],
        trajectories=[list(READING_ORDER[: size.num_views])],
        latents=normal(*shape),
        cameras=paths,
        target_cameras=paths[:, :, frames].reshape(1, size.num_targets),
        target_rgb=uniform(*images, 3),
        target_depth=1.0 + 4.0 * uniform(*images),
    )
    rays = ray_grid(paths, size.height // decoder.cell_size, size.width // decoder.cell_size)
    plucker = normal(1, size.num_views, 2 * decoder.latent_channels, *shape[3:])
    return batch, Conditioning(plucker, rays)


def training_row(
    size: StepSize, settings: StepSettings, way: Way, device: torch.device, repetitions: int = 3
) -> dict[str, Any]:
    """Median times in milliseconds, peak memory in GiB and what was chosen; a first step does not count."""
    step = Step(size, settings_of(way, settings), device)
    _, first_loss = step.run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    runs = [step.run() for _ in range(repetitions)]
    times = {part: median(run[part] for run, _ in runs) for part in PARTS}
    peak = torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None
    decoder, (_, num_views, _, *latent) = step.settings.decoder, step.batch.latents.shape
    num_tokens = decoder.num_tokens(num_views, *latent)
    return {
        "way": way,
        "V": size.num_views,
        "targets": size.num_targets,
        "prune": size.prune_ratio,
        "tokens": num_tokens,
        "Gaussians": decoder.num_gaussians(num_views, *latent),
        "recompute": choose_policy(decoder, num_tokens, device, step.decoder.scan.form_on(device)),
        **{f"{part}_ms": round(milliseconds, 1) for part, milliseconds in times.items()},
        "step_s": round(sum(times.values()) / 1000, 3),
        "peak_gib": None if peak is None else round(peak, 1),
        "loss": runs[-1][1],
        "first_loss": first_loss,
    }


def training_rows(
    size: StepSize,
    settings: StepSettings | None = None,
    ways: tuple[Way, ...] = ("fast", "plain"),
    device: str = "cuda",
    repetitions: int = 3,
) -> list[dict[str, Any]]:
    """One row for each way; one that does not fit into memory says so in place of its times."""
    rows = []
    torch.backends.cudnn.benchmark = True  # as ns-train does
    for way in ways:
        try:
            rows.append(
                training_row(size, settings or StepSettings(), way, torch.device(device), repetitions)
            )
        except torch.cuda.OutOfMemoryError as error:
            rows.append({"way": way, "V": size.num_views, "targets": size.num_targets, "error": str(error)})
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return rows


def print_table(rows: list[dict[str, Any]], write: Callable[[str], Any] = print) -> None:
    """The rows as a table, one line each."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    for line in cells:
        write("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main(
    size: tyro.conf.OmitArgPrefixes[StepSize],
    ways: tuple[Way, ...] = ("fast", "plain"),
    recompute: Literal["auto", "none", "states", "scans", "all"] = "auto",
    lpips_net: Literal["vgg", "alex"] = "vgg",
    repetitions: int = 3,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    output: Path | None = None,
) -> None:
    """Measure one training step and print a table; `output` also writes it as JSON."""
    settings = StepSettings(decoder=DecoderConfig(recompute=recompute), lpips_net=lpips_net)
    rows = training_rows(size, settings, ways, device, repetitions)
    print_table(rows)
    if output is not None:
        output.write_text(json.dumps({"environment": describe_environment(device), "rows": rows}, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
