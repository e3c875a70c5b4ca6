"""From photographs to a decoder in training, as a user runs it: make-data, check-data, ns-train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.small_network import options_of_network

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
"""Where this environment's commands are."""


def run(*command: object, expected: int = 0) -> str:
    """Run a command on the CPU and return what it printed."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "COLUMNS": "400",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    result = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert result.returncode == expected, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs and a file that is none."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("photos")
    for name, pixels in (("astronaut", data.astronaut()), ("coffee", data.coffee()), ("cat", data.chelsea())):
        Image.fromarray(np.asarray(pixels)).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"not a photograph")
    return folder


def test_photographs_become_training_data(photos: Path, tmp_path: Path) -> None:
    """The damaged one is named, the others train."""
    root = tmp_path / "data"
    command = [
        *(sys.executable, "-m", "lyra_ns.cli.main", "make-data", photos, "-o", root),
        *("--height", 160, "--width", 256, "--num-frames", 17, "--depth", "plane"),
    ]
    printed = run(*command, expected=1)
    assert "broken.jpg must be" in printed
    assert "18 clips made" in printed
    (photos / "broken.jpg").unlink()
    printed = run(sys.executable, "-m", "lyra_ns.cli.main", "check-data", root)
    assert "3 scenes, 18 clips" in printed
    assert "all good" in printed
    if not (BIN / "ns-train").exists():
        pytest.skip("nerfstudio's commands are not in this environment")
    output = tmp_path / "outputs"
    run(
        *("ns-train", "lyra-tiny", "--data", root, "--output-dir", output, "--timestamp", "run"),
        *("--vis", "tensorboard", "--machine.device-type", "cpu", "--max-num-iterations", 3),
        *("--steps-per-eval-batch", 0, "--steps-per-eval-image", 0, "--steps-per-eval-all-images", 0),
        *options_of_network({"decoder.cell-size": 8}),
    )
    assert list((output / "data" / "lyra-tiny" / "run" / "nerfstudio_models").glob("*.ckpt"))


def test_mistakes_end_with_one_sentence(tmp_path: Path) -> None:
    """No traceback, status 1."""
    (tmp_path / "empty").mkdir()
    printed = run(
        *(sys.executable, "-m", "lyra_ns.cli.main", "make-data", tmp_path / "empty", "-o", tmp_path / "out"),
        expected=1,
    )
    assert printed.startswith("ns-lyra: input")
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
