"""LyraModel and LyraPipeline: training batches, held-out views, export and what the viewer asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.splatfacto import SplatfactoModel

from lyra_ns.codec import load_codec
from lyra_ns.data.store import read_manifest, write_manifest
from lyra_ns.decoder.checkpoints import save_decoder
from lyra_ns.decoder.config import TINY_DECODER, DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import Gaussians
from lyra_ns.losses import LossConfig
from lyra_ns.plugin.components import differing_fields
from lyra_ns.plugin.errors import CheckpointMismatch
from lyra_ns.plugin.model import splatfacto_params, without_invalid
from lyra_ns.plugin.optimizers import DecoderAdamWConfig
from lyra_ns.plugin.pipeline import LyraPipeline
from lyra_ns.plugin.scenes import SceneCache, SceneRequest
from lyra_ns.reconstruction import Reconstructor
from tests.helpers.wall_scenes import tiny_pipeline_config, wall_gaussians, write_wall_scenes

SMALL = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8, "head_dim": 16}


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small scenes on disk."""
    return write_wall_scenes(tmp_path_factory.mktemp("walls"))


def make_pipeline(root: Path, test_mode: str = "val", **model_changes) -> LyraPipeline:
    """A pipeline on the CPU; random weights from a fixed seed."""
    torch.manual_seed(0)
    return tiny_pipeline_config(root, **model_changes).setup(device="cpu", test_mode=test_mode)


@pytest.fixture(scope="module")
def pipeline(walls: Path) -> LyraPipeline:
    """For tests that change nothing."""
    return make_pipeline(walls)


def test_latents_of_another_codec_are_refused(tmp_path: Path) -> None:
    """Neither training nor viewer, ns-render and ns-export decode latents made with other weights."""
    root = write_wall_scenes(tmp_path, num_scenes=2)
    manifest = read_manifest(root)
    assert manifest is not None
    write_manifest(root, replace(manifest, codec_digest="0123456789abcdef"))
    for test_mode in ("val", "inference"):
        with pytest.raises(SystemExit, match=r"0123456789abcdef.*write the data again"):
            make_pipeline(root, test_mode)


def test_a_decoder_refuses_another_codec() -> None:
    """Weights that say which codec they were trained with read no other's latents."""
    decoder, codec = LatentGaussianDecoder(DecoderConfig(**SMALL)), load_codec("linear")
    decoder.codec_digest = codec.spec.digest
    assert Reconstructor(decoder, codec).codec is codec
    decoder.codec_digest = "0123456789abcdef"
    with pytest.raises(ValueError, match=f"0123456789abcdef, found the codec linear of.*{codec.spec.digest}"):
        Reconstructor(decoder, codec)


@pytest.mark.slow
def test_warm_start_then_rendering_losses(walls: Path) -> None:
    """The warm start regresses single Gaussians; after it the usual terms come, and they go down."""
    pipeline = make_pipeline(walls, warm_start_steps=2)
    optimizer = DecoderAdamWConfig(lr=3e-3).setup(pipeline.get_param_groups()["decoder"])
    totals = []
    for step in range(12):
        pipeline.train()
        pipeline.model.update_to_step(step)
        _, losses, metrics = pipeline.get_train_loss_dict(step)
        assert set(losses) == ({"warm_start"} if step < 2 else {"mse", "lpips", "depth", "opacity"})
        assert ("psnr" in metrics) == (step >= 2)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append(float(sum(losses.values())))
    assert totals[1] < totals[0]
    assert sum(totals[9:12]) < sum(totals[2:5])


def test_attribute_loss_goes_on_after_the_warm_start(walls: Path) -> None:
    """Where it has a weight; the batches then carry depth and colour of the inputs at every step."""
    loss = LossConfig(lpips=0.0, depth=0.0, opacity=0.0, attributes=0.5)
    pipeline = make_pipeline(walls, warm_start_steps=0, loss=loss)
    pipeline.train()
    _, losses, _ = pipeline.get_train_loss_dict(7)
    assert set(losses) == {"mse", "attributes"}
    assert float(losses["attributes"]) > 0.0


@pytest.mark.slow
def test_evaluation_reports_all_metrics_over_held_out_scenes(pipeline: LyraPipeline) -> None:
    """What ns-eval writes: psnr, ssim, lpips and depth error of the true views of the held-out scene."""
    views = pipeline.datamanager.fixed_indices_eval_dataloader
    assert [camera.metadata["scene"] for camera, _ in views] == ["wall_3"] * 3
    metrics = pipeline.get_average_eval_image_metrics(get_std=True)
    assert {"psnr", "ssim", "lpips", "depth_error", "psnr_std"} <= set(metrics)
    assert all(value == value for value in metrics.values())


@pytest.mark.slow
def test_depth_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    """Data without depth can be evaluated all the same; training says what to switch off."""
    write_wall_scenes(tmp_path, num_scenes=2, with_depth=False)
    metrics = make_pipeline(tmp_path, test_mode="test").get_average_eval_image_metrics()
    assert "psnr" in metrics
    assert "depth_error" not in metrics
    with pytest.raises(SystemExit, match="depth"):
        make_pipeline(tmp_path)


def show(pipeline: LyraPipeline, gaussians: Gaussians) -> None:
    """Let the pipeline's model show these Gaussians, whatever its decoder predicts."""
    pipeline.model._cache = SceneCache(lambda request: gaussians)


@pytest.mark.slow
def test_true_gaussians_give_the_true_pictures(walls: Path) -> None:
    """Cameras, world, colours and depth fit together: the wall itself scores like the wall."""
    pipeline = make_pipeline(walls, test_mode="test")
    show(pipeline, wall_gaussians(seed=3))
    metrics = pipeline.get_average_eval_image_metrics()
    assert metrics["psnr"] > 30.0
    assert metrics["depth_error"] < 0.01


def test_exported_params_render_like_the_model(walls: Path) -> None:
    """Splatfacto's spaces (log, logit, SH, z-up world) hold the same scene as what is shown."""
    pipeline = make_pipeline(walls, test_mode="inference")
    truth = wall_gaussians(seed=3)
    show(pipeline, truth)
    model = pipeline.model
    # The inverse of the z-up world: x right, y down, z forward again.
    torch.testing.assert_close(model.means[:, [0, 2, 1]] * torch.tensor([1.0, -1.0, 1.0]), truth.means)
    torch.testing.assert_close(model.scales.exp(), truth.scales)
    torch.testing.assert_close(model.opacities.sigmoid()[:, 0], truth.opacities)
    torch.testing.assert_close(model.colors, truth.rgb)
    torch.testing.assert_close(model.shs_0 * 0.28209479177387814 + 0.5, truth.rgb)
    assert model.shs_rest.shape == (truth.num, 0, 3)
    assert isinstance(model, SplatfactoModel)
    assert model.config.sh_degree == 0


def test_invalid_gaussians_never_reach_the_exporter() -> None:
    """ns-export drops the whole scene for one NaN; saturated opacities must stay finite as logits."""
    gaussians = wall_gaussians(seed=0)
    gaussians.means[3, 1] = torch.nan
    gaussians.scales[5, 0] = torch.inf
    gaussians.opacities[7] = 1.0
    gaussians.opacities[8] = 0.0
    params = splatfacto_params(without_invalid(gaussians))
    assert params["means"].shape[0] == gaussians.num - 2
    assert all(bool(tensor.isfinite().all()) for tensor in params.values())


def test_viewer_background_lasts_one_frame(pipeline: LyraPipeline) -> None:
    """The viewer sets its colour before each frame; evaluation in between keeps white."""
    camera, _ = pipeline.datamanager.next_eval_image(0)
    pipeline.eval()
    pipeline.model.set_background(torch.tensor([0.0, 0.0, 1.0]))
    first = pipeline.model.get_outputs_for_camera(camera)
    second = pipeline.model.get_outputs_for_camera(camera)
    assert first["background"][0, 0].tolist() == [0.0, 0.0, 1.0]
    assert second["background"][0, 0].tolist() == [1.0, 1.0, 1.0]
    assert all(image.shape[:2] == (48, 64) for image in first.values())
    assert first["depth"].shape[-1] == 1


def test_crop_box_hides_what_lies_outside(walls: Path) -> None:
    """Even when nothing is left."""
    pipeline = make_pipeline(walls, test_mode="test")
    show(pipeline, wall_gaussians(seed=3))
    camera = pipeline.datamanager.train_dataset.cameras[:1]
    left = OrientedBox.from_params((-2.0, 3.0, 0.0), (0.0, 0.0, 0.0), (4.0, 1.0, 9.0))
    seen = pipeline.model.get_outputs_for_camera(camera, left)["accumulation"][..., 0]
    assert float(seen[:, :28].mean()) > 0.9
    assert float(seen[:, 36:].mean()) < 0.1
    nothing = OrientedBox.from_params((90.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert pipeline.model.get_outputs_for_camera(camera, nothing)["rgb"].shape == (48, 64, 3)


def test_checkpoint_holds_the_decoder_only(pipeline: LyraPipeline) -> None:
    """No codec, no LPIPS, no Gaussians."""
    keys = {key for key in pipeline.state_dict() if not key.startswith("_model.decoder.")}
    assert keys == {"_model.device_indicator_param"}


def test_foreign_checkpoints_are_refused(walls: Path, pipeline: LyraPipeline) -> None:
    """Nerfstudio would load what fits and leave the rest random, without a word."""
    state = pipeline.state_dict()
    state.pop("_model.decoder.enc_norm.weight")
    with pytest.raises(CheckpointMismatch, match=r"missing \['decoder.enc_norm.weight'\]"):
        make_pipeline(walls, test_mode="test").load_pipeline(state, step=3)


def test_loaded_checkpoints_show_the_same_pictures(walls: Path, pipeline: LyraPipeline) -> None:
    """The scene is predicted again from its latents: nothing of it is in the checkpoint."""
    torch.manual_seed(7)
    other = make_pipeline(walls, test_mode="test")
    camera = other.datamanager.train_dataset.cameras[4:5]
    with torch.no_grad():
        other.model.decoder.deconv.bias.add_(0.5)
    before = other.model.get_outputs_for_camera(camera)["rgb"]
    other.load_pipeline({key: value.clone() for key, value in pipeline.state_dict().items()}, step=3)
    after, expected = (p.model.get_outputs_for_camera(camera)["rgb"] for p in (other, pipeline))
    torch.testing.assert_close(after, expected)
    assert not torch.allclose(before, expected)


@pytest.mark.slow
def test_training_changes_what_is_shown(walls: Path) -> None:
    """Cached Gaussians of older weights are not shown, except for a while in the viewer."""
    pipeline = make_pipeline(walls)
    camera = pipeline.datamanager.train_dataset.cameras[4:5]
    before = pipeline.model.get_outputs_for_camera(camera)["rgb"]
    pipeline.train()
    pipeline.get_train_loss_dict(0)
    with torch.no_grad():
        pipeline.model.decoder.deconv.bias.add_(0.5)
    assert not torch.allclose(pipeline.model.get_outputs_for_camera(camera)["rgb"], before)


def test_cache_serves_stale_gaussians_to_the_viewer_only() -> None:
    """And forgets the least recently used scene."""
    calls: list[SceneRequest] = []
    cache = SceneCache(lambda request: calls.append(request) or wall_gaussians(seed=0), capacity=2)
    cache.STALE_FACTOR = 1e9
    first, second, third = (SceneRequest(name, (0,)) for name in "abc")
    cache.get(first, version=1)
    cache.get(first, version=1)
    cache.get(first, version=2, may_be_stale=True)
    assert calls == [first]
    cache.get(first, version=2)
    cache.get(second, version=2)
    cache.get(third, version=2)
    cache.get(first, version=2)
    assert calls == [first, first, second, third, first]


@pytest.mark.slow
def test_weights_start_from_a_file(tmp_path: Path, walls: Path, pipeline: LyraPipeline) -> None:
    """Without warm start, which would undo them; a file of another network is refused in one sentence."""
    path = save_decoder(pipeline.model.decoder, tmp_path / "decoder.safetensors")
    torch.manual_seed(5)
    started = make_pipeline(walls, init_from=str(path), warm_start_steps=9)
    torch.testing.assert_close(started.model.decoder.state_dict(), pipeline.model.decoder.state_dict())
    assert started.model.num_warm_start_steps == 0
    wider = replace(started.config.model.decoder, width=64)
    with pytest.raises(SystemExit, match="width 32 instead of 64"):
        make_pipeline(walls, init_from=str(path), decoder=wider)


def test_missing_weights_are_one_sentence(walls: Path) -> None:
    """Not a traceback."""
    with pytest.raises(SystemExit, match=r"nowhere\.safetensors"):
        make_pipeline(walls, init_from="nowhere.safetensors")


@pytest.mark.slow
def test_pruning_starts_at_its_step(walls: Path) -> None:
    """Four in five Gaussians go, in training and in evaluation."""
    pipeline = make_pipeline(walls, prune_ratio=0.8, prune_from_step=5)
    counts: list[tuple[float, float]] = []
    for step in (4, 5):
        pipeline.train()
        pipeline.model.update_to_step(step)
        outputs, _, metrics = pipeline.get_train_loss_dict(0)
        counts.append((float(metrics["gaussian_count"]), float(outputs["gaussians"].num)))
    assert counts[0][0] == counts[0][1]
    assert counts[1][0] == int(counts[1][1] * (1 - 0.8))


def test_missing_data_is_one_sentence() -> None:
    """It says how to get some."""
    with pytest.raises(SystemExit, match="ns-lyra sample-data --output data/lyra-sample"):
        tiny_pipeline_config(None).setup(device="cpu", test_mode="val")


@pytest.mark.slow
def test_dynamic_scenes_are_shown_at_the_cameras_moment(tmp_path: Path) -> None:
    """Other moments, other Gaussians; cameras without one show the configured moment. Training works too."""
    write_wall_scenes(tmp_path, num_scenes=2, is_dynamic=True)
    decoder = replace(tiny_pipeline_config(tmp_path).model.decoder, use_time=True)
    pipeline = make_pipeline(tmp_path, decoder=decoder, target_time=1.0)
    assert pipeline.datamanager.includes_time
    embedding = pipeline.model.decoder.patch_time_embed_tgt
    # A random decoder's time embeddings are zero.
    torch.nn.init.normal_(embedding.proj.weight)
    cameras = pipeline.datamanager.train_dataset.cameras
    early, late = cameras[:1], cameras[8:9]
    late.camera_to_worlds = early.camera_to_worlds
    pictures = [pipeline.model.get_outputs_for_camera(camera)["rgb"] for camera in (early, late)]
    assert not torch.allclose(*pictures)
    early.times = None
    torch.testing.assert_close(pipeline.model.get_outputs_for_camera(early)["rgb"], pictures[1])
    pipeline.train()
    pipeline.model.update_to_step(10_000)
    _, losses, _ = pipeline.get_train_loss_dict(0)
    assert torch.isfinite(sum(losses.values()))


def test_a_decoder_of_times_refuses_static_data(walls: Path) -> None:
    """In one sentence, before training."""
    decoder = replace(tiny_pipeline_config(walls).model.decoder, use_time=True)
    with pytest.raises(SystemExit, match="a static data set has not"):
        make_pipeline(walls, decoder=decoder)


def test_initial_weights_do_not_ask_how_they_are_computed_with() -> None:
    """A form of the attention is a choice of the machine; a number of heads belongs to the weights."""
    other = replace(TINY_DECODER, attention="torch", recompute="all")
    assert differing_fields(TINY_DECODER, other) == []
    assert differing_fields(TINY_DECODER, replace(other, num_heads=8)) == ["num_heads 4 instead of 8"]
