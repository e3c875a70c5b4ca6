"""`ns-lyra evaluate` and `photo-check`, and where the decoders of commands come from."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from lyra_ns.cli.data import SampleData
from lyra_ns.cli.evaluate import Evaluate, PhotoCheck
from lyra_ns.cli.reconstruct import Reconstruct
from lyra_ns.codec import load_codec
from lyra_ns.data.open import held_out_names
from lyra_ns.data.store import LyraStore
from lyra_ns.decoder import checkpoints
from lyra_ns.decoder.checkpoints import (
    decoder_config_of,
    latest_checkpoint,
    load_any_decoder,
    load_decoder,
    save_decoder,
)
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.device import chosen_device
from lyra_ns.evaluation.baselines import pixel_gaussians
from lyra_ns.evaluation.photo_check import (
    TITLES,
    check_photo,
    cropped_and_resized,
    load_stereo_photo,
    photo_paths,
)
from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.ops.lpips import load_lpips
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings
from tests.helpers.small_dataset import write_small_clip
from tests.helpers.wall_scenes import write_wall_scenes

CELLS = (48 // 8) * (64 // 8) * 9
"""Gaussians of one trajectory of a wall, before pruning."""


def tiny_config(**changes) -> DecoderConfig:
    sizes = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8, "head_dim": 16}
    head = GaussianHeadConfig(near=1.0, far=30.0, distance_law="logarithmic", scale_law="footprint")
    return DecoderConfig(**sizes | {"head": head} | changes)


def tiny_decoder(**changes) -> LatentGaussianDecoder:
    torch.manual_seed(0)
    return LatentGaussianDecoder(tiny_config(**changes))


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wall_scenes(tmp_path_factory.mktemp("walls"), num_scenes=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_decoder(tiny_decoder(), tmp_path_factory.mktemp("decoder") / "tiny.safetensors"))


@pytest.mark.slow
def test_evaluate_prints_a_table_and_writes_all_about_it(walls, checkpoint, tmp_path, capsys):
    output = tmp_path / "results.json"
    Evaluate(
        data=walls,
        checkpoint=checkpoint,
        num_trajectories=(1, 3),
        output=output,
        device="cpu",
        prune_ratio=0.25,
    ).run()
    printed = capsys.readouterr().out
    assert "1 scenes, held out by the data's manifest" in printed
    assert "3 trajectories decoded in" in printed
    report = json.loads(output.read_text())
    assert report["data"]["scenes"] == ["wall_1"]
    assert report["data"]["codec"] == "linear"
    assert report["decoder"]["prune_ratio"] == 0.25
    assert report["decoder"]["config"]["width"] == 32
    assert report["protocol"]["render"]["response"] == "ewa"
    assert report["protocol"]["num_trajectories"] == [1, 3]
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert set(report["seconds_per_scene"]) == {"1", "3"}
    found = {(row["group"], row["num_trajectories"], row["method"]) for row in report["rows"]}
    assert {("novel", 1, "lyra"), ("novel", 3, "lyra"), ("novel", 3, "nearest frame")} <= found
    for row in report["rows"]:
        assert f"{row['psnr']:.2f}" in printed


def test_held_out_scenes_are_the_manifests_or_all(walls, tmp_path):
    assert held_out_names(LyraStore(walls)) == (["wall_1"], "held out by the data's manifest")
    for name in ("a", "b", "c"):
        write_small_clip(tmp_path / "static", name, 0, seed=1)
    names, how = held_out_names(LyraStore(tmp_path), 2)
    assert names == ["a", "b"]
    assert "no manifest" in how
    with pytest.raises(ValueError, match="at least 1, found 0"):
        held_out_names(LyraStore(walls), 0)


@pytest.mark.slow
def test_photo_check_writes_numbers_and_a_picture(checkpoint, tmp_path, capsys):
    PhotoCheck(checkpoint=checkpoint, output=tmp_path, height=48, width=64, num_frames=9, device="cpu").run()
    report = json.loads((tmp_path / "photo_check.json").read_text())
    scores = report["scores"]
    assert set(scores) == set(TITLES)
    assert scores["left_warped"]["psnr_covered"] > scores["left_copied"]["psnr_covered"] + 8
    assert report["num_gaussians"] == 6 * CELLS // 2
    printed = capsys.readouterr().out
    assert f"{scores['left_warped']['psnr']:.2f}" in printed
    assert (tmp_path / "photo_check.png").read_bytes()[:4] == b"\x89PNG"


def test_photo_paths_start_at_the_left_camera():
    photo = cropped_and_resized(load_stereo_photo(), 48, 64)
    paths = photo_paths(photo, 9)
    assert paths.shape == (6, 9)
    torch.testing.assert_close(paths.camera_to_world[:, 0], torch.eye(4).expand(6, 4, 4))
    # The official order reads left (0) second; its official range has its middle at a quarter of the depth.
    expected = -0.25 * 8 / 9 * photo.centre_depth
    assert paths.camera_to_world[1, -1, 0, 3].item() == pytest.approx(expected, rel=1e-4)


class HalfMetreScene(Reconstructor):
    """A decoder that knows the photograph's scene but always gives it in units of half a metre."""

    def __call__(self, z, cameras, target_time=None):
        """The left photograph at its measured depth, twice as large."""
        photo = cropped_and_resized(load_stereo_photo(), 48, 64)
        splats = pixel_gaussians(photo.left, photo.depth, photo.left_camera)
        return replace(splats, means=2 * splats.means, scales=2 * splats.scales)


@pytest.mark.slow
def test_photo_is_read_in_the_unit_that_reproduces_the_input():
    reconstruct = HalfMetreScene(tiny_decoder(), load_codec("linear"))
    result = check_photo(reconstruct, RenderSettings(response="ewa"), load_lpips("alex"), 48, 64, 9)
    assert result.metric.units_per_metre == 1.0
    assert result.fitted.units_per_metre == pytest.approx(2.0, rel=0.15)
    assert max(result.units_tried.values()) == result.units_tried[f"{result.fitted.units_per_metre:.3g}"]
    metric, fitted = result.scores["reconstruction"], result.scores["reconstruction_fitted"]
    assert fitted.psnr_covered > metric.psnr_covered + 4
    true_depth = result.photo.depth
    typical = true_depth[true_depth > 0].median()
    assert result.fitted.depth.median() == pytest.approx(typical.item(), rel=0.1)


def nerfstudio_content(decoder: LatentGaussianDecoder, prefix: str = "_model.") -> dict:
    tensors = {f"{prefix}decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    return {"step": 5, "pipeline": tensors | {"datamanager.steps": torch.ones(1)}, "optimizers": {}}


@pytest.fixture
def tiny_method(monkeypatch) -> None:
    """Let `lyra-tiny` mean the network of these tests."""
    monkeypatch.setattr(checkpoints, "decoder_config_of", lambda name: tiny_config())


@pytest.mark.parametrize("prefix", ["_model.", "_model.module."])
def test_nerfstudio_runs_are_read_by_file_and_folder(tmp_path, tiny_method, prefix):
    decoder = tiny_decoder()
    folder = tmp_path / "nerfstudio_models"
    folder.mkdir()
    torch.save(nerfstudio_content(tiny_decoder(), prefix), folder / "step-000000009.ckpt")
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(nerfstudio_content(decoder, prefix), folder / "step-000000010.ckpt")
    assert latest_checkpoint(tmp_path) == latest_checkpoint(folder) == folder / "step-000000010.ckpt"
    for place in (tmp_path, folder, folder / "step-000000010.ckpt"):
        found = load_any_decoder(place).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in decoder.state_dict().items())


def test_another_network_in_a_nerfstudio_run_is_named(tmp_path):
    path = tmp_path / "step-000000001.ckpt"
    torch.save(nerfstudio_content(tiny_decoder()), path)
    with pytest.raises(
        ValueError, match=r"another network than that of lyra-tiny: \d+ of .*--config lyra or"
    ):
        load_any_decoder(path)


def test_what_is_no_run_of_ours_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no step-\*\.ckpt"):
        load_any_decoder(tmp_path)
    path = tmp_path / "step-000000001.ckpt"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_any_decoder(path)
    torch.save({"pipeline": {"_model.field.weight": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match=r"no checkpoint of `ns-train lyra`.*_model\.field"):
        load_any_decoder(path)


class _Trap:
    """What an attacker's checkpoint holds: code that runs when it is read without care."""

    def __reduce__(self):
        return (Path.touch, (Path("trap_was_sprung"),))


def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step-000000001.ckpt"
    torch.save({"pipeline": _Trap()}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match="do not trust a file that holds code"):
        load_any_decoder(path)
    assert not (tmp_path / "trap_was_sprung").exists()


def test_shipped_decoder_is_the_network_of_lyra_tiny():
    assert load_any_decoder("shipped").config == decoder_config_of("lyra-tiny")
    assert load_any_decoder("shipped", "lyra-tiny").config == decoder_config_of("lyra-tiny")


@pytest.mark.parametrize("config", ["lyra", "lyra-dynamic"])
def test_no_other_network_is_read_from_the_shipped_file(config):
    with pytest.raises(ValueError, match=f"ships is one of lyra-tiny, found --config {config}: give its"):
        load_any_decoder("shipped", config)


def test_our_files_bring_their_configuration(checkpoint):
    found = load_any_decoder(checkpoint)
    assert found.config == load_decoder(checkpoint).config
    assert found.config.width == 32


def test_methods_name_their_networks():
    assert decoder_config_of("lyra") == DecoderConfig()
    assert decoder_config_of("lyra-dynamic") == DecoderConfig(use_time=True)
    assert decoder_config_of("lyra-tiny").cell_size == 4


def test_device_is_what_is_there():
    assert chosen_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert chosen_device("auto").type == "cuda"
    else:
        assert chosen_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="give cpu"):
            chosen_device("cuda")


def test_sample_data_that_no_decoder_could_read_is_not_made(tmp_path):
    with pytest.raises(ValueError, match="multiples of 16, as decoders need, found 152 and 256"):
        SampleData(output=tmp_path / "data", height=152, num_scenes=1).run()
    assert not (tmp_path / "data").exists()


def test_a_device_that_does_not_exist_is_refused_with_one_sentence():
    with pytest.raises(ValueError, match="expected auto, cpu or cuda as --device, found 'tpu'"):
        chosen_device("tpu")


def test_arguments_of_the_command_line():
    command = tyro.cli(Reconstruct, args=["data", "--output", "a.ply", "--trajectories", "5", "0"])
    assert (command.data, command.output) == (Path("data"), Path("a.ply"))
    assert command.trajectories == (5, 0)
    assert command.checkpoint == "shipped"
    evaluate = tyro.cli(Evaluate, args=["data", "--num-scenes", "2", "--num-trajectories", "1", "6"])
    assert (evaluate.num_scenes, evaluate.num_trajectories) == (2, (1, 6))


@pytest.mark.parametrize("numbers", [(), (0,), (1, 7)])
def test_evaluate_refuses_numbers_of_trajectories_before_it_measures(tmp_path, numbers):
    with pytest.raises(ValueError, match="--num-trajectories from 1 to 6"):
        Evaluate(data=tmp_path / "none", num_trajectories=numbers).run()


@pytest.mark.parametrize("size", [(100, 256), (160, 100), (0, 256)])
def test_photo_check_names_the_sizes_that_it_can_have(tmp_path, size):
    with pytest.raises(ValueError, match=f"--height and --width in multiples of 16.* found {size[0]}"):
        PhotoCheck(output=tmp_path, height=size[0], width=size[1]).run()


@pytest.mark.parametrize("command", [Reconstruct, Evaluate])
def test_a_share_of_all_gaussians_is_not_dropped(tmp_path, command):
    output = tmp_path / ("a.ply" if command is Reconstruct else "a.json")
    with pytest.raises(ValueError, match=r"--prune-ratio .* found 1\.5"):
        command(data=tmp_path / "none", output=output, prune_ratio=1.5).run()


def test_reconstruct_refuses_moments_outside_the_scene(tmp_path):
    with pytest.raises(ValueError, match="--time from 0 to 1, found 2"):
        Reconstruct(data=tmp_path / "none", output=tmp_path / "a.ply", time=2.0).run()
