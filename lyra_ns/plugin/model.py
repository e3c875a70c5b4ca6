"""LyraModel: nerfstudio's view of the decoder. Gaussians are predicted from latents, never optimised.

What nerfstudio asks of it: docs/reference/nerfstudio.md, "The exporter's contract" and "The viewer". Below
it: our Gaussians in the spaces that viewer and exporter read, what they and the evaluation get for one
camera, metrics and pictures of one evaluation image, and losses and metrics of one training batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from lyra_ns.cameras import NERFSTUDIO_WORLD_FROM_OPENCV_WORLD, RayGrid
from lyra_ns.codec import VideoLatentSpec
from lyra_ns.data.batch import PendingBatch
from lyra_ns.data.types import SceneBatch
from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.cuda_graphs import GraphedDecoder
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import Gaussians, prune
from lyra_ns.losses import LossConfig, reconstruction_losses, warm_start_loss
from lyra_ns.metrics import psnr, relative_depth_error, ssim
from lyra_ns.ops.lpips import SMALLEST_SIDE, PerceptualDistance
from lyra_ns.plugin.components import (
    FrozenParts,
    averaged_copy,
    decay_at,
    fitting_state,
    load_initial_weights,
    refuse_other_network,
    update_average,
)
from lyra_ns.plugin.errors import DataError, reading_data
from lyra_ns.plugin.model_config import LyraModelConfig
from lyra_ns.plugin.scenes import SceneCache, SceneLibrary, SceneRequest
from lyra_ns.plugin.viewer_panel import ViewerPanel
from lyra_ns.plugin.views import camera_path_of
from lyra_ns.rendering import RenderSettings, render
from lyra_ns.rendering.types import Rendered

SH_C0 = 0.28209479177387814
"""Value of the constant spherical harmonic."""
SMALLEST_SCALE = 1e-8
"""Scales are kept above it before their logarithm is taken."""
OPACITY_MARGIN = 1e-6
"""Opacities are kept this far from 0 and 1 before their logit is taken."""


def without_invalid(gaussians: Gaussians) -> Gaussians:
    """The Gaussians [G] without those that hold a NaN or an infinity.

    One of them would make ns-export drop the whole scene.
    """
    fields = [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities[:, None], gaussians.rgb]
    valid = torch.cat(fields, -1).isfinite().all(-1)
    return gaussians if bool(valid.all()) else gaussians.select(valid.nonzero()[:, 0])


def nothing_to_show(device: torch.device) -> Gaussians:
    """One invisible Gaussian, for where there is no scene: neither renderer nor viewer takes an empty set."""
    zeros = torch.zeros(1, 3, device=device)
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device)
    return Gaussians(zeros, quats, zeros + SMALLEST_SCALE, zeros[:, 0], zeros)


def splatfacto_params(gaussians: Gaussians) -> dict[str, Float[Tensor, "G ..."]]:
    """means, scales (log), quats, features_dc (SH), features_rest and opacities (logit) in the z-up world."""
    world = torch.tensor(NERFSTUDIO_WORLD_FROM_OPENCV_WORLD)
    placed = gaussians.transform(world)
    opacities = placed.opacities.clamp(OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    return {
        "means": placed.means,
        "scales": placed.scales.clamp(min=SMALLEST_SCALE).log(),
        "quats": placed.quats,
        "features_dc": (placed.rgb - 0.5) / SH_C0,
        "features_rest": placed.rgb.new_zeros(placed.num, 0, 3),
        "opacities": opacities.logit()[:, None],
    }


def with_background(settings: RenderSettings, background: Float[Tensor, "3"] | None) -> RenderSettings:
    """The settings with another background, or as they are."""
    if background is None:
        return settings
    return replace(settings, background=tuple(background.tolist()))


def outputs_of_camera(
    gaussians: Gaussians, camera: Cameras, settings: RenderSettings
) -> dict[str, Float[Tensor, "H W C"]]:
    """rgb, depth (z), accumulation and background of one camera."""
    rendered = render(gaussians, camera_path_of(camera), settings)
    alpha = rendered.alpha[0, ..., None]
    depth = rendered.depth[0, ..., None]
    return {
        "rgb": rendered.rgb[0].clamp(0.0, 1.0),
        # Where nothing is seen the viewer wants the far end, not something before the camera.
        "depth": torch.where(alpha > 0, depth, depth.max()),
        "accumulation": alpha,
        "background": alpha.new_tensor(settings.background).expand(*alpha.shape[:2], 3),
    }


def cropped(gaussians: Gaussians, box: OrientedBox | None) -> Gaussians:
    """The Gaussians [G] inside a box of the z-up world, at least one; all without a box."""
    if box is None:
        return gaussians
    inside = box.within(splatfacto_params(gaussians)["means"]).reshape(-1)
    index = inside.nonzero()[:, 0]
    return gaussians.select(index if len(index) else index.new_zeros(1))


@torch.no_grad()
def image_metrics(
    rgb: Float[Tensor, "H W 3"],
    true_rgb: Float[Tensor, "H W 3"],
    depth: Float[Tensor, "H W 1"],
    true_depth: Float[Tensor, "H W 1"] | None,
    perceptual: PerceptualDistance | None,
) -> dict[str, float]:
    """psnr, ssim, lpips (with a perceptual distance) and depth_error (where the true depth is known)."""
    image, truth = rgb.movedim(-1, 0)[None], true_rgb.movedim(-1, 0)[None]
    metrics = {"psnr": psnr(rgb[None], true_rgb[None]), "ssim": ssim(rgb[None], true_rgb[None])}
    if perceptual is not None and min(rgb.shape[:2]) >= SMALLEST_SIDE:
        metrics["lpips"] = perceptual(image, truth)
    if true_depth is not None:
        metrics["depth_error"] = relative_depth_error(depth[None, ..., 0], true_depth[None, ..., 0])
    return {name: float(value) for name, value in metrics.items()}


def image_pictures(
    outputs: dict[str, Tensor], true_rgb: Float[Tensor, "H W 3"], true_depth: Float[Tensor, "H W 1"] | None
) -> dict[str, Float[Tensor, "H W2 3"]]:
    """img, truth beside prediction, and depth, by `depth_picture`."""
    return {
        "img": torch.cat([true_rgb, outputs["rgb"]], 1),
        "depth": depth_picture(outputs["depth"], true_depth, outputs["accumulation"]),
    }


def depth_picture(
    depth: Float[Tensor, "H W 1"],
    true_depth: Float[Tensor, "H W 1"] | None,
    accumulation: Float[Tensor, "H W 1"],
) -> Float[Tensor, "H W2 3"]:
    """Depth in colour; beside the true one, on the same range, where it is known."""
    if true_depth is None:
        return colormaps.apply_depth_colormap(depth, accumulation=accumulation)
    known = true_depth[true_depth > 0]
    near, far = (float(known.min()), float(known.max())) if len(known) else (None, None)
    pictures = [
        colormaps.apply_depth_colormap(true_depth, near_plane=near, far_plane=far),
        colormaps.apply_depth_colormap(depth, accumulation=accumulation, near_plane=near, far_plane=far),
    ]
    return torch.cat(pictures, 1)


@dataclass(frozen=True)
class BatchOutputs:
    """What the model computed for a batch."""

    gaussians: Gaussians
    """All Gaussians [B, G]."""
    kept: Gaussians
    """Those that pruning left."""
    rays: RayGrid
    """The ray of each Gaussian, [B, V, L, h, w]."""
    rendered: Rendered | None
    """Images of the target cameras; None in the warm start, which renders nothing."""


def loss_terms(
    outputs: BatchOutputs, batch: SceneBatch, config: LossConfig, perceptual: PerceptualDistance | None
) -> dict[str, Tensor]:
    """Weighted terms of the loss by name; their sum is the loss."""
    if outputs.rendered is None:
        return {"warm_start": _attribute_loss(outputs, batch, config)}
    penalised = outputs.kept if config.penalises_pruned_opacities else outputs.gaussians
    terms = reconstruction_losses(
        outputs.rendered, batch.target_rgb, batch.target_depth, penalised.opacities, config, perceptual
    )
    if config.attributes and batch.input_depth is not None:
        terms["attributes"] = config.attributes * _attribute_loss(outputs, batch, config)
    return terms


def _attribute_loss(outputs: BatchOutputs, batch: SceneBatch, config: LossConfig) -> Tensor:
    assert batch.input_depth is not None
    assert batch.input_rgb is not None
    return warm_start_loss(
        outputs.gaussians, outputs.rays, batch.input_depth, batch.input_rgb, batch.cameras, config
    )


@torch.no_grad()
def metrics_of_batch(outputs: BatchOutputs, batch: SceneBatch) -> dict[str, Tensor]:
    """Mean PSNR of the batch, and counts of the Gaussians."""
    opacities = outputs.gaussians.opacities
    metrics = {
        "gaussian_count": torch.tensor(float(outputs.kept.num)),
        "mean_opacity": opacities.mean(),
        "num_trajectories": torch.tensor(float(len(batch.trajectories[0]))),
    }
    if outputs.rendered is not None:
        error = (outputs.rendered.rgb.clamp(0.0, 1.0) - batch.target_rgb).square()
        metrics["psnr"] = -10.0 * error.mean((-3, -2, -1)).clamp(min=1e-10).log10().mean()
    return metrics


def check_targets(batch: SceneBatch, config: LossConfig, uses_attributes: bool) -> None:
    """DataError if the data lacks what a loss term needs, before the first step."""
    if config.depth and batch.target_depth is None:
        raise DataError(
            f"scene {batch.names[0]} has no depth, which the depth loss needs: "
            "add depth files, or switch it off with --pipeline.model.loss.depth 0"
        )
    if uses_attributes and (batch.input_depth is None or batch.input_rgb is None):
        raise DataError(
            f"scene {batch.names[0]} has no depth or no frames, which the attribute loss needs: "
            "add them, or set --pipeline.model.warm-start-steps 0 --pipeline.model.loss.attributes 0"
        )


class LyraModel(SplatfactoModel):
    """Feed-forward decoder in the place where nerfstudio expects an optimised splat.

    It is a SplatfactoModel because ns-export and the viewer ask for one; of its parent it uses only the
    properties that read `gauss_params`.
    """

    config: LyraModelConfig

    def populate_modules(self) -> None:
        """Build the decoder; nothing of the parent's, which would fetch LPIPS and place random points."""
        self.decoder = LatentGaussianDecoder(self.config.decoder)
        decay = self.config.ema_decay
        self.averaged = averaged_copy(self.decoder, decay) if decay else None
        self._graphed = GraphedDecoder(self.decoder) if self.config.use_cuda_graphs else None
        metadata = self.kwargs.get("metadata") or {}
        # Frozen networks live in a plain object: they belong neither into checkpoints nor to the optimiser.
        self._frozen = FrozenParts(self.config, metadata.get("latents", VideoLatentSpec("unknown")))
        self._cache = SceneCache(self._decode_scene)
        self._scenes: SceneLibrary | None = None
        self._weights_version = 0
        self._viewer_background: Tensor | None = None
        self._centre_depth = 1.0
        self.crop_box: OrientedBox | None = None
        self.step = 0

    def attach_scenes(self, scenes: SceneLibrary) -> None:
        """Tell the model where the inputs of scenes come from; DataError if they do not suit the decoder."""
        if self.config.decoder.use_time and not scenes.is_dynamic:
            raise DataError(
                "the decoder reads times, which a static data set has not: give dynamic data, "
                "or leave out --pipeline.model.decoder.use-time True"
            )
        if scenes.is_dynamic and not self.config.decoder.use_time:
            CONSOLE.log(
                "lyra: things move in this data, but the decoder does not read times (decoder.use-time)"
            )
        # Opened now, so that latents of another codec are refused before anything of them is shown.
        self._frozen.codec(self.device)
        self._scenes = scenes
        self._cache.clear()
        self.lyra = ViewerPanel(
            scenes.names,
            scenes.active,
            scenes.trajectories(scenes.active),
            keep_ratio=1.0 - self.config.prune_ratio,
            centre_depth=lambda: self._centre_depth,
        )

    def describe_parts(self) -> list[str]:
        """One line for each part in use: scan, renderer, codec, perceptual distance, averaged weights."""
        lines = self._frozen.describe(self.decoder, self.device)
        if self.averaged is not None:
            decay = self.config.ema_decay
            lines.append(f"Evaluated, shown and exported: the moving average of the weights (decay {decay})")
        return lines

    @property
    def settled_decoder(self) -> LatentGaussianDecoder:
        """The decoder for everything but training: the averaged one where there is one."""
        return self.decoder if self.averaged is None else self.averaged

    @property
    def prune_ratio(self) -> float:
        """Share of Gaussians that is dropped at the present step."""
        return self.config.prune_ratio if self.step >= self.config.prune_from_step else 0.0

    @torch.no_grad()
    def _decode_scene(self, request: SceneRequest) -> Gaussians:
        assert self._scenes is not None, "attach_scenes comes first"
        inputs = self._scenes.inputs(request.scene, request.trajectories)
        reconstruct = self._frozen.reconstructor(self.settled_decoder, self.device)
        gaussians = reconstruct(inputs.z, inputs.cameras, request.target_time)
        gaussians = without_invalid(gaussians.transform(inputs.reference_from_first.to(self.device)))
        self._centre_depth = float(gaussians.means[:, 2].median())
        return gaussians

    def _request(self, scene: str, trajectories: tuple[int, ...], times: Tensor | None) -> SceneRequest:
        assert self._scenes is not None, "attach_scenes comes first"
        if not self._scenes.is_dynamic or not self.config.decoder.use_time:
            return SceneRequest(scene, trajectories)
        time = self.config.target_time if times is None else float(times.reshape(-1)[0])
        return SceneRequest(scene, trajectories, self._scenes.nearest_time(time))

    def _shown(self, times: Tensor | None, may_be_stale: bool) -> Gaussians:
        """What the viewer, ns-render and ns-export show: the panel's scene through the panel's filters."""
        state = self.lyra.state()
        request = self._request(state.scene, state.trajectories, times)
        try:
            gaussians = self._cache.get(request, self._weights_version, may_be_stale)
        except DataError as error:
            # A scene with a damaged file, chosen in the viewer: a thread there must not die of it.
            CONSOLE.log(f"lyra: {error}")
            self.lyra.show_stats(str(error))
            return nothing_to_show(self.device)
        shown = state.filter(gaussians)
        self.lyra.show_stats(f"{shown.num:,} of {gaussians.num:,} Gaussians")
        return shown

    def _evaluated(self, scene: str, times: Tensor | None) -> Gaussians:
        """What is measured on `scene`: all of its trajectories, pruned as the configuration says."""
        assert self._scenes is not None, "attach_scenes comes first"
        request = self._request(scene, tuple(self._scenes.trajectories(scene)), times)
        return prune(self._cache.get(request, self._weights_version), self.prune_ratio)

    def complete(self, batch: PendingBatch) -> SceneBatch:
        """The batch with its target frames, decoded by the codec where they are latents."""
        return batch.complete(self._frozen.codec(self.device))

    def condition(self, batch: SceneBatch) -> tuple[Tensor, Conditioning]:
        """Raw latents and conditioning of a batch."""
        codec, builder = self._frozen.codec(self.device), self._frozen.conditioning(self.device)
        target_time = batch.target_time if self.config.decoder.use_time else None
        return codec.from_diffusion(batch.latents.float()), builder.build(batch.cameras, target_time)

    def forward(self, ray_bundle: Cameras | None, batch: dict[str, Any] | None = None) -> dict[str, Any]:
        """Outputs of a training batch, or of one camera when there is none."""
        if batch is None:
            assert ray_bundle is not None
            return self.get_outputs(ray_bundle)
        if self.training:
            self._weights_version += 1
        scenes: SceneBatch = batch["scenes"]
        raw_latents, conditioning = self.condition(scenes)
        decode = (self._graphed or self.decoder) if self.training else self.settled_decoder
        gaussians = decode(raw_latents, conditioning)
        kept = prune(gaussians, self.prune_ratio)
        if self.training and self.step < self.num_warm_start_steps:
            return vars(BatchOutputs(gaussians, kept, conditioning.rays, None))
        rendered = render(kept, scenes.target_cameras, self.config.render)
        return vars(BatchOutputs(gaussians, kept, conditioning.rays, rendered))

    @property
    def num_warm_start_steps(self) -> int:
        """First steps in which single Gaussians are regressed; none when it starts from trained weights."""
        return self.config.warm_start_steps if self.config.init_from == "none" else 0

    def uses_attributes_at(self, step: int) -> bool:
        """Whether the loss of `step` compares single Gaussians with depth and colour of their pixels."""
        return step < self.num_warm_start_steps or self.config.loss.attributes > 0

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Weighted terms of the loss."""
        perceptual = self._frozen.training_perceptual(self.device) if self.config.loss.lpips else None
        return loss_terms(BatchOutputs(**outputs), batch["scenes"], self.config.loss, perceptual)

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Tensor]:
        """What is logged beside the loss; nothing here waits for the device."""
        return metrics_of_batch(BatchOutputs(**outputs), batch["scenes"])

    @torch.no_grad()
    def prepare_training(self, first_batch: PendingBatch) -> None:
        """First weights and input statistics; DataError if the data lacks what the losses need."""
        with reading_data():
            load_initial_weights(self.decoder, self.config.init_from)
            if self.config.loss.lpips:
                self._frozen.perceptual(self.device)
        batch = self.complete(first_batch)
        check_targets(batch, self.config.loss, self.uses_attributes_at(0))
        if self.config.decoder.input_statistics and self.config.init_from == "none":
            raw_latents, conditioning = self.condition(batch)
            self.decoder.set_input_statistics(raw_latents, conditioning.plucker)
        if self.averaged is not None:
            self.averaged.load_state_dict(self.decoder.state_dict())
        self._weights_version += 1

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """One group: the decoder."""
        return {"decoder": list(self.decoder.parameters())}

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Keep the step and the averaged weights; the parent's densification has no place here."""
        callbacks = [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.update_to_step)]
        if self.averaged is not None:
            after = [TrainingCallbackLocation.AFTER_TRAIN_ITERATION]
            callbacks.append(TrainingCallback(after, self.update_average))
        return callbacks

    def update_average(self, step: int) -> None:
        """Move the averaged weights towards those that step `step` left."""
        assert self.averaged is not None
        update_average(self.averaged, self.decoder, decay_at(step, self.config.ema_decay))
        self._weights_version += 1

    def update_to_step(self, step: int) -> None:
        """Set the step that warm start and pruning go by."""
        self.step = step

    def load_state_dict(
        self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load exactly these weights; CheckpointMismatch names what is missing and what is unexpected.

        Averaged weights may be missing or too many: they start from the others or are left out.
        """
        state_dict, change = fitting_state(state_dict, self.averaged is not None)
        if change:
            CONSOLE.log(f"lyra: {change}")
        refuse_other_network(self.state_dict(), state_dict)
        self._weights_version += 1
        return nn.Module.load_state_dict(self, state_dict, strict=True, assign=assign)

    @property
    def gauss_params(self) -> dict[str, Tensor]:
        """The shown Gaussians in splatfacto's spaces and the z-up world."""
        return splatfacto_params(self._shown(None, may_be_stale=False))

    @property
    def shs_0(self) -> Tensor:
        """SH coefficients of degree 0; the parent would take `features_dc` for colour logits."""
        return self.features_dc

    @property
    def colors(self) -> Tensor:
        """Colours from 0 to 1."""
        return 0.5 + SH_C0 * self.features_dc

    def set_background(self, background_color: Tensor) -> None:
        """Colour behind the viewer's next frame only: evaluation keeps the background of the method."""
        assert background_color.shape == (3,)
        self._viewer_background = background_color

    @torch.no_grad()
    def get_outputs_for_camera(
        self, camera: Cameras, obb_box: OrientedBox | None = None
    ) -> dict[str, Tensor]:
        """Images of one camera: rgb, z-depth, accumulation, background, each [H, W, C]."""
        self.set_crop(obb_box)
        return self.get_outputs(camera.to(self.device))

    def get_outputs(self, camera: Cameras) -> dict[str, Tensor]:
        """As `get_outputs_for_camera`, on the model's device. A scene named in the metadata is evaluated."""
        viewer_background, self._viewer_background = self._viewer_background, None
        scene = (camera.metadata or {}).get("scene")
        if scene is None:
            gaussians = self._shown(camera.times, may_be_stale=viewer_background is not None)
        else:
            gaussians = self._evaluated(scene, camera.times)
        settings = with_background(self.config.render, viewer_background)
        return outputs_of_camera(cropped(gaussians, self.crop_box), camera, settings)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """psnr, ssim, lpips and depth_error of one image, and pictures of truth beside prediction."""
        truth, true_depth = batch["image"].to(self.device), batch.get("depth_image")
        true_depth = None if true_depth is None else true_depth.to(self.device)
        perceptual = self._frozen.perceptual_if_present(self.device)
        metrics = image_metrics(outputs["rgb"], truth, outputs["depth"], true_depth, perceptual)
        return metrics, image_pictures(outputs, truth, true_depth)
