"""The protocol that decoders are judged by: held-out scenes, fixed inputs, fixed views, true images.

Views come in two groups. `trajectories`: two frames of each of the six paths, which are inputs too where so
many trajectories go in. `novel`: frames of camera paths that nothing was trained on or read from.
What shows an input frame, moved or not, is measured on novel paths only: elsewhere it is the truth itself.

Shape letters: V trajectories, L frames, M target views, H W image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.data.batch import evaluation_batch
from lyra_ns.data.scenes import SceneSource
from lyra_ns.data.types import NOVEL_FIRST_ID, SceneBatch
from lyra_ns.evaluation.baselines import mean_colour, nearest_frame, warped_frame
from lyra_ns.gaussians import Gaussians
from lyra_ns.metrics import mean_and_spread, psnr, relative_depth_error, ssim
from lyra_ns.ops.lpips import PerceptualDistance
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings, render

METRICS = ("psnr", "ssim", "lpips", "depth_error", "psnr_teacher")
"""Names of the measures; depth_error is the mean relative error of z-depth, psnr_teacher the PSNR against the
frames that the codec decodes from the latents."""


@dataclass
class ProtocolConfig:
    """What is measured."""

    num_trajectories: tuple[int, ...] = (1, 2, 3, 6)
    """Numbers of input trajectories, in the official order 5, 0, 1, 2, 3, 4."""
    frames: tuple[int, ...] | None = None
    """Frames of each path to render; None takes the middle and the last."""
    baselines: bool = True
    """Also measure what needs no decoder: mean colour, nearest input frame, a frame moved by its true depth,
    and the teacher's own frames; all with the largest number of inputs."""
    depth: bool = True
    """Also measure depth, which every clip must have then; frames are only moved by true depth if it is."""
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
class ViewImages:
    """What one method shows in some of the batch's target views."""

    rows: list[int]
    """Places among the M target views."""
    rgb: Float[Tensor, "n H W 3"]
    """Colours, 0 to 1."""
    depth: Float[Tensor, "n H W"] | None = None
    """z-depth, if the method has any."""


@dataclass(frozen=True)
class SceneResult:
    """Everything about one scene and one number of inputs."""

    batch: SceneBatch
    """Inputs and true views."""
    views: dict[str, ViewImages]
    """Images by method."""
    scores: list[ViewScore]
    """One score per image and method."""
    seconds: float
    """Time from latents to Gaussians."""
    num_gaussians: int
    """Gaussians that pruning left."""


class TeacherFrames:
    """Frames decoded from a scene's latents, each clip only once."""

    def __init__(self, scene: SceneSource, reconstruct: Reconstructor) -> None:
        self._scene = scene
        self._codec, self._device = reconstruct.codec, reconstruct.device
        self._frames: dict[tuple[int, int], Float[Tensor, "H W 3"]] = {}

    def views(self, target_ids: Sequence[tuple[int, int]]) -> ViewImages:
        """The frames of those targets whose trajectories have latents."""
        wanted = [target for target in target_ids if target[0] in self._scene.input_ids]
        for trajectory in dict.fromkeys(target[0] for target in wanted if target not in self._frames):
            self._decode(trajectory, [frame for other, frame in wanted if other == trajectory])
        rows = [row for row, target in enumerate(target_ids) if target in wanted]
        return ViewImages(rows, torch.stack([self._frames[target_ids[row]] for row in rows]))

    @torch.no_grad()
    def _decode(self, trajectory: int, frames: Sequence[int]) -> None:
        raw = self._codec.from_diffusion(self._scene.latents(trajectory)[None].to(self._device).float())
        video = self._codec.decode(raw)[0]
        for frame in frames:
            self._frames[trajectory, frame] = ((video[:, frame] + 1) / 2).clamp(0, 1).movedim(0, -1).cpu()


def evaluate_scenes(
    reconstruct: Reconstructor,
    scenes: Iterable[SceneSource],
    perceptual: PerceptualDistance,
    config: ProtocolConfig,
) -> Iterator[SceneResult]:
    """Results scene by scene, each with every number of inputs; baselines with the largest number only."""
    most = max(config.num_trajectories)
    for scene in scenes:
        teacher = TeacherFrames(scene, reconstruct)
        for number in config.num_trajectories:
            chosen = replace(config, baselines=config.baselines and number == most)
            yield evaluate_scene(reconstruct, scene, perceptual, number, chosen, teacher)


def evaluate_scene(
    reconstruct: Reconstructor,
    scene: SceneSource,
    perceptual: PerceptualDistance,
    num_trajectories: int,
    config: ProtocolConfig,
    teacher: TeacherFrames | None = None,
) -> SceneResult:
    """Images and scores of one scene, read with `num_trajectories` inputs.

    `teacher` saves decoding the same frames again for another number.
    """
    batch = evaluation_batch(
        scene, reconstruct.codec, num_trajectories, config.frames, with_depth=config.depth
    )
    assert batch.target_ids is not None
    taught = (teacher or TeacherFrames(scene, reconstruct)).views(batch.target_ids[0])
    started = perf_counter()
    time = None if batch.target_time is None else float(batch.target_time[0])
    gaussians = reconstruct(batch.latents[0], batch.cameras[0], time)
    _wait_for(reconstruct.device)
    seconds = perf_counter() - started
    views = {"lyra": _rendered_views(gaussians, batch, reconstruct.device, config.render)}
    if config.baselines:
        views |= baseline_views(scene, batch) | {"teacher": taught}
    scores = [
        score
        for method, images in views.items()
        for score in _scores(batch, method, images, taught, perceptual)
    ]
    return SceneResult(batch, views, scores, seconds, gaussians.num)


@torch.no_grad()
def _rendered_views(
    gaussians: Gaussians, batch: SceneBatch, device: torch.device, settings: RenderSettings
) -> ViewImages:
    rendered = render(gaussians, batch.target_cameras[0].to(device), settings)
    rows = list(range(batch.target_cameras.shape[1]))
    return ViewImages(rows, rendered.rgb.clamp(0, 1).cpu(), rendered.depth.cpu())


def baseline_views(scene: SceneSource, batch: SceneBatch) -> dict[str, ViewImages]:
    """What methods without a network show, from the same input trajectories."""
    ids = batch.trajectories[0]
    every = range(scene.num_frames)
    frames = torch.stack([scene.rgb(trajectory, every) for trajectory in ids]).cpu().float() / 255
    targets = batch.target_cameras[0].to("cpu")
    rows = list(range(targets.shape[0]))
    views = {"mean colour": ViewImages(rows, mean_colour(frames, len(rows)))}
    assert batch.target_ids is not None
    novel = [row for row in rows if batch.target_ids[0][row][0] >= NOVEL_FIRST_ID]
    if not novel or batch.target_depth is None:
        return views
    depth = torch.stack([scene.depth(trajectory, every) for trajectory in ids]).cpu().float()
    typical = float(depth[depth > 0].median())
    seen_from = (batch.cameras[0].to("cpu"), targets[novel], typical)
    return views | {
        "nearest frame": ViewImages(novel, nearest_frame(frames, *seen_from)),
        "frame moved by true depth": ViewImages(novel, warped_frame(frames, depth, *seen_from).rgb),
    }


def _scores(
    batch: SceneBatch, method: str, images: ViewImages, taught: ViewImages, perceptual: PerceptualDistance
) -> Iterator[ViewScore]:
    assert batch.target_ids is not None
    truth = batch.target_rgb[0].cpu()[images.rows]
    unknown = torch.full((len(images.rows),), float("nan"))
    columns = dict.fromkeys(METRICS, unknown) | {
        "psnr": psnr(images.rgb, truth),
        "ssim": ssim(images.rgb, truth),
        "lpips": _perceptual_distances(perceptual, images.rgb, truth),
    }
    if images.depth is not None and batch.target_depth is not None:
        true_depth = batch.target_depth[0].cpu().float()[images.rows]
        columns["depth_error"] = relative_depth_error(images.depth, true_depth)
    if method == "lyra":
        columns["psnr_teacher"] = unknown.index_copy(
            0, torch.tensor(taught.rows), psnr(images.rgb[taught.rows], taught.rgb)
        )
    for place, row in enumerate(images.rows):
        trajectory, frame = batch.target_ids[0][row]
        group = "novel" if trajectory >= NOVEL_FIRST_ID else "trajectories"
        values = {name: float(column[place]) for name, column in columns.items()}
        number = len(batch.trajectories[0])
        yield ViewScore(batch.names[0], method, number, group, trajectory, frame, values)


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
    # Methods keep their order, so that the decoder stands above what it is compared with.
    for group, num_trajectories, method in sorted(keys, key=lambda key: (key[0] == "novel", key[1])):
        chosen = [
            score
            for score in scores
            if (score.group, score.num_trajectories, score.method) == (group, num_trajectories, method)
        ]
        row: dict[str, object] = {
            "group": group, "num_trajectories": num_trajectories, "method": method, "num_views": len(chosen),
        }  # fmt: skip
        for name in METRICS:
            values = torch.tensor([score.values[name] for score in chosen])
            # Where a measure has no meaning for any view, JSON gets null.
            statistics = mean_and_spread(values)
            row[name] = statistics.mean if statistics.num else None
            row[f"{name}_std"] = statistics.std if statistics.num else None
        rows.append(row)
    return rows


TABLE_COLUMNS = (
    ("psnr", "PSNR dB", 9, 2),
    ("ssim", "SSIM", 8, 3),
    ("lpips", "LPIPS", 8, 3),
    ("depth_error", "depth", 8, 3),
    ("psnr_teacher", "vs teacher", 12, 2),
)
"""Measure, title, width and digits of each column."""


def as_table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as aligned text, those of one group and number of inputs together."""
    titles = "".join(f"{title:>{width}}" for _, title, width, _ in TABLE_COLUMNS)
    lines = [f"{'views':<13}{'inputs':>7}  {'method':<26}{titles}"]
    for row in rows:
        numbers = "".join(
            f"{row[name]:>{width}.{digits}f}" if row[name] is not None else f"{'-':>{width}}"
            for name, _, width, digits in TABLE_COLUMNS
        )
        lines.append(f"{row['group']:<13}{row['num_trajectories']:>7}  {row['method']:<26}{numbers}")
    return "\n".join(lines)
