"""Examples, the notebook and the document of the Python API run as they stand, on clips of a small size."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lyra_ns
from lyra_ns.data.video import VideoSize
from lyra_ns.generation import decoder_input
from tests.helpers.wall_scenes import write_wall_scenes

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NUM_LINES = 6
"""From a picture in memory to a PLY."""


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wall_scenes(tmp_path_factory.mktemp("walls"), num_scenes=2)


@pytest.fixture
def here(tmp_path: Path, walls: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a photograph and a data set at the places that the document names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoder_input, "SMALL_SIZE", VideoSize(9, 64, 96))
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), "uint8")
    Image.fromarray(noise).resize((120, 80), Image.Resampling.BICUBIC).save("photo.jpg")
    Path("data").mkdir()
    Path("data/lyra-sample").symlink_to(walls)
    return tmp_path


def run_example(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python examples/NAME.py ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def blocks_of_document() -> list[str]:
    """The Python of docs/api.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)


def test_a_stored_scene_is_reconstructed(here, monkeypatch, capsys):
    run_example("reconstruct", "data/lyra-sample", "--output", "wall.ply", monkeypatch=monkeypatch)
    gaussians = lyra_ns.Gaussians.load("wall.ply")
    assert f"wall.ply: {gaussians.num:,} Gaussians of wall_1, seen along clockwise, left, right" in (
        capsys.readouterr().out
    )
    run_example("render", "wall.ply", "--num-views", "2", "--size", "48", "64", monkeypatch=monkeypatch)
    views = [np.asarray(Image.open(f"views/view_{number}.png")) for number in range(2)]
    assert views[0].shape == (48, 64, 3)
    assert (views[0] != 255).any(), "something is seen"
    assert (views[0] != views[1]).any(), "from two places"


@pytest.mark.slow
def test_a_picture_becomes_a_scene(here, monkeypatch, capsys):
    run_example("generate", "photo.jpg", "--num-trajectories", "1", monkeypatch=monkeypatch)
    num = lyra_ns.Gaussians.load("scene.ply").num
    printed = capsys.readouterr().out
    assert "clips made by warp" in printed
    assert f"scene.ply: {num:,} Gaussians; depth: the small network that ships" in printed


@pytest.mark.slow
def test_a_small_decoder_is_trained(here, monkeypatch):
    # By way of its first importer: nerfstudio.utils.writer cannot be imported first.
    from nerfstudio.configs.base_config import writer

    # nerfstudio's writers live as long as the process, and would go on writing to this folder in later tests.
    monkeypatch.setattr(writer, "EVENT_WRITERS", [])
    run_example("train_tiny", "data/lyra-sample", "--num-steps", "2", "--quick", monkeypatch=monkeypatch)
    lyra = lyra_ns.Lyra.from_pretrained("outputs/decoder", device="cpu")
    assert lyra.decoder.config.width == 64
    scene = lyra_ns.open_scene("data/lyra-sample")
    assert lyra.infer(scene.latents, scene.cameras).num > 0
    (run,) = Path("outputs").glob("*/lyra-tiny/*")
    assert list(run.glob("nerfstudio_models/step-*.ckpt"))


@pytest.mark.slow
def test_the_notebook_runs_cell_by_cell(here):
    notebook = json.loads((EXAMPLES / "photo_to_scene.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "stored without outputs"
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert lyra_ns.Gaussians.load("scene.ply").num == names["gaussians"].num
    assert "<title>photo" in Path("scene.html").read_text()


@pytest.mark.slow
def test_the_first_block_of_the_document_is_short_enough(here):
    block = blocks_of_document()[0]
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= NUM_LINES
    assert "asarray" in block
    exec(block, {})
    assert lyra_ns.Gaussians.load("scene.ply").num > 0


@pytest.mark.slow
def test_the_other_blocks_run_one_after_the_other(here, capsys):
    names: dict[str, object] = {"lyra_ns": lyra_ns}
    for block in blocks_of_document()[1:]:
        exec(block, names)
    assert "PSNR" in capsys.readouterr().out
    assert {path.name for path in Path().iterdir()} >= {"scene.ply", "scene.splat", "scene.html", "my-lyra"}


def test_the_document_tells_of_every_public_function():
    text = (ROOT / "docs" / "api.md").read_text()
    functions = [name for name in dir(lyra_ns) if name[0].islower()]
    assert [name for name in functions if name not in text] == []
    assert all(f"`{path.name}`" in text for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
