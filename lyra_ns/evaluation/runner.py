"""The protocol that decoders are judged by: held-out scenes, fixed inputs, fixed views, true images.

Views come in two groups. `trajectories`: two frames of each of the six paths, which are inputs too where so
many trajectories go in. `novel`: frames of camera paths that nothing was trained on and nothing was read from.

Shape letters: V trajectories, L frames, M target views, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.data.loaded import SceneSource
from lyra_ns.data.sampling import evaluation_batch
from lyra_ns.data.types import NOVEL_FIRST_ID, SceneBatch
from lyra_ns.evaluation.baselines import mean_colour, nearest_frame, warped_frame
from lyra_ns.evaluation.metrics import mean_and_spread, psnr, relative_depth_error, ssim
from lyra_ns.perceptual import PerceptualDistance
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings, render

METRICS = ("psnr", "ssim", "lpips", "depth_error")
"""Names of the measures; depth_error is the mean relative error of z-depth."""


@dataclass
class ProtocolConfig:
    """What is measured."""

    num_trajectories: tuple[int, ...] = (1, 2, 3, 6)
    """Numbers of input trajectories, in the official order 5, 0, 1, 2, 3, 4."""
    frames: tuple[int, ...] | None = None
    """Frames of each path to render; None takes the middle and the last."""
    baselines: bool = True
    """Also measure what needs no decoder: mean colour, nearest input frame, a frame moved by its true depth."""
    render: RenderSettings = field(default_factory=lambda: RenderSettings(response="ewa"))
    """How the Gaussians are drawn."""


@dataclass(frozen=True)
class ViewScore:
    """One image of one method."""

    scene: str
    """Scene."""
    method: str
    """`lyra`, or the name of a baseline."""
    num_trajectories: int
    """Input trajectories."""
    group: str
    """`trajectories` or `novel`."""
    trajectory: int
    """Path of the view."""
    frame: int
    """Frame of the view."""
    values: dict[str, float]
    """Measures by name; NaN where one has no meaning."""


@dataclass(frozen=True)
class SceneResult:
    """Everything about one scene and one number of inputs."""

    batch: SceneBatch
    """Inputs and true views."""
    images: dict[str, Float[Tensor, "M H W 3"]]
    """Images by method."""
    depth: Float[Tensor, "M H W"]
    """z-depth of the decoder's Gaussians."""
    scores: list[ViewScore]
    """One score per image and method."""
    seconds: float
    """Time from latents to Gaussians."""
    num_gaussians: int
    """Gaussians that pruning left."""


def evaluate_scene(
    reconstruct: Reconstructor,
    scene: SceneSource,
    perceptual: PerceptualDistance,
    num_trajectories: int,
    config: ProtocolConfig,
) -> SceneResult:
    """Images and scores of one scene, read with `num_trajectories` inputs."""
    batch = evaluation_batch(scene, reconstruct.codec, num_trajectories, config.frames)
    started = perf_counter()
    gaussians = reconstruct(batch.latents[0], batch.cameras[0])
    _wait_for(reconstruct.device)
    seconds = perf_counter() - started
    rendered = render(gaussians, batch.target_cameras[0].to(reconstruct.device), config.render)
    images = {"lyra": rendered.rgb.clamp(0, 1).cpu()}
    if config.baselines:
        images |= baseline_images(scene, batch)
    depth = rendered.depth.cpu()
    scores = [
        score
        for method, rgb in images.items()
        for score in _scores(batch, method, rgb, depth if method == "lyra" else None, perceptual)
    ]
    return SceneResult(batch, images, depth, scores, seconds, gaussians.num)


def baseline_images(scene: SceneSource, batch: SceneBatch) -> dict[str, Float[Tensor, "M H W 3"]]:
    """What the target views look like to methods without a network, from the same input trajectories."""
    frames, depth, cameras = _inputs(scene, batch)
    targets = batch.target_cameras[0].to("cpu")
    typical = float(depth[depth > 0].median())
    return {
        "mean colour": mean_colour(frames, targets.shape[0]),
        "nearest frame": nearest_frame(frames, cameras, targets, typical),
        "frame moved by true depth": warped_frame(frames, depth, cameras, targets, typical).rgb,
    }


def _inputs(scene: SceneSource, batch: SceneBatch) -> tuple[Tensor, Tensor, CameraPath]:
    """Frames [V, L, 3, H, W] from 0 to 1, z-depth [V, L, H, W] and cameras of a batch's only scene."""
    every = range(scene.num_frames)
    ids = batch.trajectories[0]
    frames = torch.stack([scene.rgb(trajectory, every) for trajectory in ids]).float().cpu() / 255
    depth = torch.stack([scene.depth(trajectory, every) for trajectory in ids]).float().cpu()
    return frames, depth, batch.cameras[0].to("cpu")


def _scores(
    batch: SceneBatch, method: str, rgb: Tensor, depth: Tensor | None, perceptual: PerceptualDistance
) -> Iterator[ViewScore]:
    truth = batch.target_rgb[0].cpu()
    columns = {
        "psnr": psnr(rgb, truth),
        "ssim": ssim(rgb, truth),
        "lpips": _perceptual_distances(perceptual, rgb, truth),
        "depth_error": torch.full((len(rgb),), float("nan")),
    }
    if depth is not None and batch.target_depth is not None:
        columns["depth_error"] = relative_depth_error(depth, batch.target_depth[0].cpu().float())
    assert batch.target_ids is not None
    for row, (trajectory, frame) in enumerate(batch.target_ids[0]):
        group = "novel" if trajectory >= NOVEL_FIRST_ID else "trajectories"
        values = {name: float(column[row]) for name, column in columns.items()}
        yield ViewScore(
            batch.names[0], method, len(batch.trajectories[0]), group, trajectory, frame, values
        )


@torch.no_grad()
def _perceptual_distances(perceptual: PerceptualDistance, rgb: Tensor, truth: Tensor) -> Tensor:
    return perceptual(rgb.movedim(-1, 1), truth.movedim(-1, 1)).cpu()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summary_rows(scores: Sequence[ViewScore]) -> list[dict[str, object]]:
    """Mean and spread of each measure by group, number of inputs and method, ready for JSON."""
    rows: list[dict[str, object]] = []
    keys = dict.fromkeys((score.group, score.num_trajectories, score.method) for score in scores)
    for group, num_trajectories, method in keys:
        chosen = [s for s in scores if (s.group, s.num_trajectories, s.method) == (group, num_trajectories, method)]
        row: dict[str, object] = {
            "group": group, "num_trajectories": num_trajectories, "method": method, "num_views": len(chosen),
        }  # fmt: skip
        for name in METRICS:
            values = torch.tensor([score.values[name] for score in chosen])
            # An input frame that is asked for again is equal to itself: its PSNR is infinite and says nothing.
            statistics = mean_and_spread(values)
            row[name] = statistics.mean if statistics.num else None
            row[f"{name}_std"] = statistics.std if statistics.num else None
        rows.append(row)
    return rows


def as_table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as aligned text."""
    header = f"{'views':<13}{'inputs':>7}  {'method':<26}{'PSNR dB':>9}{'SSIM':>8}{'LPIPS':>8}{'depth':>8}"
    lines = [header]
    for row in rows:
        numbers = "".join(
            f"{row[name]:>{width}.{digits}f}" if row[name] is not None else f"{'-':>{width}}"
            for name, width, digits in (("psnr", 9, 2), ("ssim", 8, 3), ("lpips", 8, 3), ("depth_error", 8, 3))
        )
        lines.append(f"{row['group']:<13}{row['num_trajectories']:>7}  {row['method']:<26}{numbers}")
    return "\n".join(lines)
