"""What a training step is expected to need, and what to say when it needs more than there is."""

from __future__ import annotations

from dataclasses import dataclass

from lyra_ns.data.types import SceneBatch
from lyra_ns.decoder_config import DecoderConfig
from lyra_ns.device_memory import GIB
from lyra_ns.gaussians import num_kept
from lyra_ns.perceptual import BYTES_PER_PIXEL, PIXELS_AT_ONCE
from lyra_ns.plugin.model_config import LyraModelConfig
from lyra_ns.recomputation import RecomputePolicy, kept_bytes
from lyra_ns.rendering.plan import RenderSize
from lyra_ns.ssd_types import ScanForm

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
