"""`ns-lyra generate` on a photograph with the decoder that ships, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lyra_ns.cameras import relative_to
from lyra_ns.data.open import open_scene, read_inputs
from lyra_ns.export.ply import load_ply
from lyra_ns.metrics import psnr
from lyra_ns.rendering import RenderSettings, render

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]

ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
LEAST_PSNR = 18.0
"""dB of the scene seen from where the photograph was taken; a mean colour reaches 14."""


def ns_lyra(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lyra_ns.cli.main", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT)


def test_a_photograph_becomes_a_scene_that_looks_like_it(tmp_path: Path):
    from skimage.data import coffee

    Image.fromarray(coffee()).save(tmp_path / "coffee.jpg", quality=95)
    output = tmp_path / "scene"
    words = ("generate", tmp_path / "coffee.jpg", "-o", output, "--depth", "plane", "--units", "3.7")
    result = ns_lyra(*words, "--num-trajectories", 3)
    assert result.returncode == 0, result.stderr
    assert "nothing was generated" in result.stdout
    record = json.loads((output / "record.json").read_text())
    assert record["clips"] == {"num_frames": 17, "height": 160, "width": 240}
    scene = open_scene(output / "latents")
    _, cameras = read_inputs(scene, (5,))
    start = relative_to(cameras, cameras.camera_to_world[0, 0])[0, :1]
    with torch.no_grad():
        seen = render(load_ply(output / "scene.ply"), start, RenderSettings(response="ewa")).rgb
    truth = scene.rgb(5, [0]).movedim(1, -1).float() / 255
    mean = truth.mean((1, 2), keepdim=True).expand_as(truth)
    assert float(psnr(seen, truth)) > max(LEAST_PSNR, float(psnr(mean, truth)) + 3)
    again = ns_lyra(*words)
    assert again.returncode == 1
    assert again.stderr.strip() == (
        f"ns-lyra: output {output} is there already and not empty: give another folder, or --overwrite"
    )
