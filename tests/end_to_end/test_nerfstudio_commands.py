"""Every ns-* command on a small data set, as a user runs it: train, resume, evaluate, render, export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.utils.eval_utils import eval_setup

from lyra_ns.cameras import NERFSTUDIO_WORLD_FROM_OPENCV_WORLD
from lyra_ns.export.ply import load_ply
from lyra_ns.plugin.views import camera_path_of
from lyra_ns.rendering import render
from tests.helpers.small_network import options_of_network
from tests.helpers.wall_scenes import NOVEL_PATH, write_wall_scenes

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
"""Where this environment's commands are."""


def run(command: str, *arguments: object, expect_success: bool = True) -> str:
    """Run one of the environment's commands on the CPU and return all that it printed."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "400",
    }
    result = subprocess.run(
        [BIN / command, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode == 0) == expect_success, (
        f"{command}: {result.returncode}\n{result.stdout[-4000:]}"
    )
    return result.stdout


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small scenes on disk."""
    if not (BIN / "ns-train").exists():
        pytest.skip("nerfstudio's commands are not in this environment")
    return write_wall_scenes(tmp_path_factory.mktemp("data") / "walls")


def train(walls: Path, output: Path, *arguments: object) -> str:
    """`ns-train lyra-tiny` for a few steps with evaluation in between."""
    return run(
        "ns-train",
        "lyra-tiny",
        *("--data", walls, "--output-dir", output, "--timestamp", "run", "--vis", "tensorboard"),
        *("--steps-per-eval-batch", 3, "--steps-per-eval-image", 3, "--steps-per-eval-all-images", 5),
        *("--machine.device-type", "cpu", "--max-num-iterations", 6),
        *options_of_network({"warm-start-steps": 2, "decoder.cell-size": 8}),
        *arguments,
    )


@pytest.fixture(scope="module")
def config(walls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config.yml of a finished run."""
    output = tmp_path_factory.mktemp("outputs")
    printed = train(walls, output)
    assert "not the Cosmos tokenizer" in printed
    assert "AlexNet" in printed
    return output / "walls" / "lyra-tiny" / "run" / "config.yml"


def test_methods_are_listed() -> None:
    """Both of them, through the installed entry points."""
    printed = run("ns-train", "--help")
    assert "lyra-tiny" in printed
    assert "the paper's network" in printed


def test_training_without_data_says_how_to_get_some(tmp_path: Path) -> None:
    """In one sentence at the end, without a traceback."""
    printed = run("ns-train", "lyra-tiny", "--output-dir", tmp_path, expect_success=False)
    assert "Traceback" not in printed
    assert "ns-lyra sample-data --output data/lyra-sample" in printed.splitlines()[-1]


def test_resumed_run_continues(walls: Path, config: Path, tmp_path: Path) -> None:
    """From the last checkpoint, with its step."""
    printed = train(walls, tmp_path, "--load-dir", config.parent / "nerfstudio_models")
    assert "Done loading Nerfstudio checkpoint" in printed
    (checkpoint,) = (tmp_path / "walls" / "lyra-tiny" / "run" / "nerfstudio_models").iterdir()
    # nerfstudio 1.1.5 counts the iterations of this run, newer versions all.
    assert checkpoint.name in ("step-000000011.ckpt", "step-000000005.ckpt")


def test_eval_measures_held_out_scenes(config: Path, tmp_path: Path) -> None:
    """Colour, perception and depth, and pictures if asked."""
    run(
        *("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json"),
        *("--render-output-path", tmp_path / "pictures"),
    )
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert {"psnr", "ssim", "lpips", "depth_error"} <= set(results)
    assert results["psnr"] > 5.0
    assert len(list((tmp_path / "pictures").glob("eval_img_*.png"))) == 3


def test_render_dataset_writes_truth_and_prediction(config: Path, tmp_path: Path) -> None:
    """One picture of each kind for each true view of the active scene."""
    run("ns-render", "dataset", "--load-config", config, "--output-path", tmp_path)
    for kind in ("gt-rgb", "rgb", "depth"):
        assert len(list((tmp_path / "test" / kind).glob("*.jpg"))) == 3


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ns-render wants ffmpeg for videos")
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("interpolate", ["--interpolation-steps", "2"]),
        ("spiral", ["--seconds", "0.25"]),
        ("camera-path", ["--camera-path-filename", "path.json"]),
    ],
)
def test_render_writes_videos(config: Path, tmp_path: Path, kind: str, arguments: list[str]) -> None:
    """Along a path between views, on a spiral, and along a path made in the viewer."""
    write_camera_path(tmp_path / "path.json")
    arguments = [str(tmp_path / each) if each == "path.json" else each for each in arguments]
    video = tmp_path / "video.mp4"
    run("ns-render", kind, "--load-config", config, "--output-path", video, *arguments)
    assert video.stat().st_size > 500


def write_camera_path(path: Path) -> None:
    """A camera path as the viewer's Render tab saves it."""
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    cameras = [{"camera_to_world": pose.flatten().tolist(), "fov": 50, "aspect": 1.33}] * 3
    content = {
        "camera_type": "perspective",
        "render_height": NOVEL_PATH.height,
        "render_width": NOVEL_PATH.width,
        "camera_path": cameras,
        "fps": 24,
        "seconds": 0.125,
        "crop": None,
    }
    path.write_text(json.dumps(content))


def test_export_reads_back_and_renders_the_same(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the unchanged exporter writes is what the model shows, in the z-up world: 50 dB and more."""
    # Here too on the CPU: another device would predict slightly other Gaussians.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run("ns-export", "gaussian-splat", "--load-config", config, "--output-dir", tmp_path)
    exported = load_ply(tmp_path / "splat.ply")
    _, pipeline, _, _ = eval_setup(config, test_mode="inference")
    model = pipeline.model
    camera = pipeline.datamanager.train_dataset.cameras[4:5]
    shown = model.get_outputs_for_camera(camera)["rgb"]
    z_up = torch.tensor(NERFSTUDIO_WORLD_FROM_OPENCV_WORLD)
    rendered = render(exported.transform(z_up.T), camera_path_of(camera), model.config.render)
    error = (rendered.rgb[0].clamp(0, 1) - shown).square().mean()
    assert -10 * float(error.clamp(min=1e-12).log10()) >= 50.0
