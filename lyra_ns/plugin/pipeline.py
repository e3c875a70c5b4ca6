"""LyraPipeline: hands whole batches to the model, which nerfstudio's own pipeline keeps back.

Source: docs/reference/nerfstudio.md, "Data manager and pipeline". What a training step is expected to need
decides how its memory is used, and what is said when it needs more than there is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import profiler
from nerfstudio.utils.rich_utils import CONSOLE

from lyra_ns.data.types import SceneBatch
from lyra_ns.data.view_sampling import SamplingConfig
from lyra_ns.decoder.blocks import RecomputePolicy, choose_policy, kept_bytes
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.device import GIB, free_bytes
from lyra_ns.gaussians import num_kept
from lyra_ns.ops.lpips import BYTES_PER_PIXEL, PIXELS_AT_ONCE
from lyra_ns.ops.ssd_types import ScanForm
from lyra_ns.plugin.datamanager import LyraDataManager, LyraDataManagerConfig
from lyra_ns.plugin.errors import DataError
from lyra_ns.plugin.model_config import LyraModelConfig
from lyra_ns.rendering.renderer import RenderSize

BYTES_PER_GAUSSIAN = 500
"""Raw channels, activated Gaussians, their rays and the gradients of all of these."""


@dataclass(frozen=True)
class BatchSize:
    """What the memory of a training step depends on."""

    num_scenes: int
    """Scenes."""
    num_trajectories: int
    """Input trajectories of each scene."""
    num_tokens: int
    """Tokens of all scenes."""
    num_gaussians: int
    """Gaussians of all scenes before pruning."""
    num_drawn: int
    """Those that pruning leaves."""
    num_targets: int
    """Target views of each scene."""
    height: int
    """Height of a target."""
    width: int
    """Width of a target."""

    def __str__(self) -> str:
        """The size in words."""
        return (
            f"{self.num_scenes} scene(s) of {self.num_trajectories} trajectories: "
            f"{self.num_tokens:,} tokens, {self.num_gaussians:,} Gaussians ({self.num_drawn:,} drawn), "
            f"{self.num_targets} targets of {self.height}x{self.width} each"
        )


def batch_size_of(batch: SceneBatch, decoder: DecoderConfig, prune_ratio: float) -> BatchSize:
    """The size of `batch` for this decoder."""
    num_scenes, num_views, _, latent_frames, height, width = batch.latents.shape
    counts = (num_views, latent_frames, height, width)
    num_gaussians = decoder.num_gaussians(*counts)
    return BatchSize(
        num_scenes=num_scenes,
        num_trajectories=num_views,
        num_tokens=num_scenes * decoder.num_tokens(*counts),
        num_gaussians=num_scenes * num_gaussians,
        num_drawn=num_scenes * num_kept(num_gaussians, prune_ratio),
        num_targets=batch.target_cameras.shape[1],
        height=batch.target_cameras.height,
        width=batch.target_cameras.width,
    )


def expected_bytes(
    size: BatchSize, config: LyraModelConfig, policy: RecomputePolicy, scan: ScanForm
) -> dict[str, int]:
    """Estimated bytes of a training step by part: blocks, Gaussians, renders, perceptual distance."""
    num_pixels = size.num_scenes * size.height * size.width
    views = RenderSize(size.num_drawn, size.num_targets, num_pixels)
    at_once = config.render.views_at_once
    kept = at_once if isinstance(at_once, int) else size.num_targets
    images = min(max(PIXELS_AT_ONCE, size.height * size.width), num_pixels * size.num_targets)
    perceptual = BYTES_PER_PIXEL[config.loss.lpips_net] * images if config.loss.lpips else 0
    return {
        "blocks": kept_bytes(config.decoder, size.num_tokens, policy, scan),
        "Gaussians": BYTES_PER_GAUSSIAN * size.num_gaussians,
        "renders": kept * views.kept_bytes(needs_gradient=True) + views.passing_bytes(needs_gradient=True),
        "perceptual distance": perceptual,
    }


def advice(size: BatchSize, config: LyraModelConfig, policy: RecomputePolicy) -> list[str]:
    """Options that would lower the need of such a batch, those that cost nothing but time first."""
    options = []
    if policy != "all":
        options.append("--pipeline.model.decoder.recompute all")
    if config.render.views_at_once != 1:
        options.append("--pipeline.model.render.views-at-once 1")
    if size.num_scenes > 1:
        options.append("--pipeline.datamanager.scenes-per-step 1 (and more processes)")
    if size.num_trajectories > 1:
        options.append(f"--pipeline.datamanager.sampling.num-trajectories-max {size.num_trajectories - 1}")
    if size.num_drawn == size.num_gaussians:
        options.append("--pipeline.model.prune-ratio 0.8")
    options.append("fewer --pipeline.datamanager.sampling.num-target-frames")
    return options


def out_of_memory_message(
    step: int,
    size: BatchSize | None,
    parts: dict[str, int],
    free_before: int | None,
    options: list[str],
    checkpoint: str,
) -> str:
    """What happened, what the batch was expected to need, what was free, what helps, and where to go on."""
    lines = [f"out of memory in training step {step}."]
    if size is not None:
        listed = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts.items())
        lines.append(f"The batch has {size}.")
        lines.append(f"It was expected to need about {sum(parts.values()) / GIB:.1f} GiB ({listed}).")
    if free_before is not None:
        lines.append(f"{free_before / GIB:.1f} GiB were free before the step.")
    lines.append("Any of these needs less: " + "; ".join(options) + ".")
    return "\n".join([*lines, checkpoint])


@dataclass
class LyraPipelineConfig(VanillaPipelineConfig):
    """Data manager and model."""

    _target: type = field(default_factory=lambda: LyraPipeline)
    datamanager: LyraDataManagerConfig = field(default_factory=LyraDataManagerConfig)
    """Scenes, how they are sampled and which one is shown."""
    model: LyraModelConfig = field(default_factory=LyraModelConfig)
    """The decoder and its losses."""


class LyraPipeline(VanillaPipeline):
    """Multi-scene batches in, losses out. Bad data ends the command with one sentence before step 0."""

    config: LyraPipelineConfig
    datamanager: LyraDataManager

    def __init__(
        self,
        config: LyraPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        """Build data manager and model, connect them and, for training (`val`), set the first weights."""
        config.datamanager.sampling = sampling_for(config)
        if world_size > 1 and config.model.use_cuda_graphs:
            CONSOLE.log("lyra: CUDA graphs are off, they do not work with several processes")
            config.model.use_cuda_graphs = False
        try:
            super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
            self.model.attach_scenes(self.datamanager.scenes)
            self.datamanager.needs_attributes_at = self.model.uses_attributes_at
            if test_mode == "val":
                self.model.prepare_training(self.datamanager.first_batch())
        except DataError as error:
            # nerfstudio would show forty lines of traceback around the one that helps.
            raise SystemExit(f"lyra: {error}") from error
        for line in self.model.describe_parts():
            CONSOLE.log(f"lyra: {line}")

    @profiler.time_function
    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Outputs, losses and metrics of the next training batch."""
        self._free_before_step, self._batch_size = free_bytes(torch.device(self.device)), None
        cameras, waiting = self.datamanager.next_train(step)
        batch = {"scenes": self.model.complete(waiting["pending"])}
        self._batch_size = batch_size_of(batch["scenes"], self.config.model.decoder, self.model.prune_ratio)
        outputs = self._model(cameras, batch)  # not self.model: DDP hooks onto this call
        metrics = self.model.get_metrics_dict(outputs, batch)
        return outputs, self.model.get_loss_dict(outputs, batch, metrics), metrics

    _batch_size: BatchSize | None = None
    _free_before_step: int | None = None

    def explain_out_of_memory(self, step: int, checkpoint: str) -> str:
        """What the batch of `step` was expected to need and what needs less; ends with `checkpoint`."""
        size, model = self._batch_size, self.config.model
        parts: dict[str, int] = {}
        options = ["--pipeline.datamanager.cache cpu", "fewer scenes or target views"]
        if size is not None:
            device = self.model.device
            scan = self.model.decoder.scan.form_on(device)
            policy = choose_policy(model.decoder, size.num_tokens, device, scan)
            parts = expected_bytes(size, model, policy, model.decoder.scan_form(scan, device))
            options = advice(size, model, policy)
        return out_of_memory_message(step, size, parts, self._free_before_step, options, checkpoint)

    @profiler.time_function
    @torch.no_grad()
    def get_eval_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Outputs, losses and metrics of a batch of held-out scenes."""
        self.eval()
        cameras, batch = self.datamanager.next_eval(step)
        batch = {"scenes": self.model.complete(batch["pending"])}
        outputs = self.model(cameras, batch)
        metrics = self.model.get_metrics_dict(outputs, batch)
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        self.train()
        return outputs, losses, metrics


def sampling_for(config: LyraPipelineConfig) -> SamplingConfig:
    """The sampling with what only the model's configuration knows: cell size, and whether depth is used."""
    model = config.model
    needs_depth = bool(model.loss.depth or model.loss.attributes) or model.warm_start_steps > 0
    sampling = config.datamanager.sampling
    return replace(
        sampling, cell_size=model.decoder.cell_size, with_depth=sampling.with_depth and needs_depth
    )
