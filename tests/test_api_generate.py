"""`lyra_ns.generate`: pictures in every form give one scene, and files are there only when asked for."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lyra_ns
from lyra_ns.codec import load_codec
from lyra_ns.decoder.checkpoints import save_decoder
from lyra_ns.generation.in_memory import Generated
from lyra_ns.lyra import Lyra
from tests.test_api import small_decoder

FILES = {"scene.ply", "scene.html", "video.mp4", "contact_sheet.png", "latents", "record.json"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    decoder = small_decoder()
    decoder.codec_digest = load_codec("linear").spec.digest
    save_decoder(decoder, folder / "lyra.safetensors")
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), "uint8")
    Image.fromarray(noise).resize((120, 80), Image.Resampling.BICUBIC).save(folder / "picture.png")
    np.save(folder / "depth.npy", np.full((80, 120), 4.0, np.float32))
    return folder


def make(files: Path, image: Any, out: Any = None, **changes: Any) -> Generated:
    settings = {
        "checkpoint": files / "lyra.safetensors",
        "depth": files / "depth.npy",
        "units": 2.0,
        "device": "cpu",
        "num_trajectories": 2,
        "refine_steps": 0,
        **{"height": 64, "width": 96, "num_frames": 9},
    }
    return lyra_ns.generate(image, out, **(settings | changes))


@pytest.fixture(scope="module")
def of_path(files: Path) -> Generated:
    return make(files, str(files / "picture.png"))


def assert_same(found: Generated, expected: Generated) -> None:
    assert torch.equal(found.latents, expected.latents)
    torch.testing.assert_close(vars(found.gaussians), vars(expected.gaussians), rtol=0, atol=0)


@pytest.mark.slow
def test_a_scene_comes_as_tensors(of_path: Generated, files: Path) -> None:
    assert of_path.gaussians.num == 2 * 9 * 8 * 12 // 2
    assert of_path.latents.shape == (2, 16, 2, 8, 12)
    assert of_path.cameras.shape == (2, 9)
    assert torch.equal(of_path.cameras.camera_to_world[0, 0], torch.eye(4))
    assert [video.shape for video in of_path.videos] == [(9, 3, 64, 96)] * 2
    assert [instant.time for instant in of_path.instants] == [None]
    assert of_path.record["teacher"]["name"] == "warp"
    assert of_path.record["settings"]["checkpoint"] == str(files / "lyra.safetensors")
    assert of_path.folder is None


def test_a_decoder_gives_the_same_of_its_latents(of_path: Generated, files: Path) -> None:
    lyra = Lyra.from_pretrained(files / "lyra.safetensors", device="cpu")
    again = lyra.infer(of_path.latents, of_path.cameras)
    torch.testing.assert_close(again.means, of_path.gaussians.means, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["array", "floats", "pillow", "tensor", "opaque", "path"])
def test_a_picture_may_have_any_form(of_path: Generated, files: Path, form: str) -> None:
    with Image.open(files / "picture.png") as picture:
        array = np.array(picture.convert("RGB"))
    forms = {
        "array": array,
        "floats": array.astype(np.float64) / 255,
        "pillow": Image.fromarray(array),
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
        "opaque": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        "path": files / "picture.png",
    }
    assert_same(make(files, forms[form]), of_path)


@pytest.mark.slow
def test_grey_pictures_and_pictures_of_other_modes_are_taken(files: Path) -> None:
    with Image.open(files / "picture.png") as picture:
        grey = picture.convert("L")
        assert_same(make(files, np.array(grey)), make(files, grey))
        assert make(files, picture.convert("CMYK")).gaussians.num > 0


@pytest.mark.slow
def test_nothing_is_left_on_disk(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = sorted(files.rglob("*"))
    make(files, np.zeros((80, 120, 3), np.uint8))
    with pytest.raises(ValueError, match="from 1 to 6"):
        make(files, np.zeros((80, 120, 3), np.uint8), num_trajectories=9)
    assert not list(tmp_path.iterdir())
    assert sorted(files.rglob("*")) == before


@pytest.mark.slow
def test_files_are_written_where_they_are_asked_for(of_path: Generated, files: Path, tmp_path: Path) -> None:
    made = make(files, str(files / "picture.png"), str(tmp_path / "scene"))
    assert made.folder == tmp_path / "scene"
    assert {path.name for path in made.folder.iterdir()} == FILES
    assert_same(made, of_path)
    assert json.loads((made.folder / "record.json").read_text())["scene"] == "picture"
    found = lyra_ns.Gaussians.load(made.folder / "scene.ply")
    torch.testing.assert_close(found.means, made.gaussians.means)
    with pytest.raises(FileExistsError, match="--overwrite"):
        make(files, files / "picture.png", tmp_path / "scene")


@pytest.mark.slow
def test_stages_are_printed_only_when_asked_for(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(files, files / "picture.png")
    assert capsys.readouterr().out == ""
    make(files, files / "picture.png", progress=True)
    printed = capsys.readouterr().out
    assert "[1/7] decoder read" in printed
    assert "[7/7] Gaussians reconstructed" in printed
    assert "pictures rendered" not in printed


@pytest.mark.slow
def test_lists_and_single_values_are_taken_for_tuples(files: Path) -> None:
    made = make(files, files / "picture.png", trajectory="left", intrinsics=[100.0, 100.0, 60.0, 40.0])
    assert made.record["settings"]["trajectory"] == ["left"]
    assert made.record["settings"]["intrinsics"] == [100.0, 100.0, 60.0, 40.0]
    assert made.latents.shape[0] == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((80, 120, 2), np.uint8), r"found shape \(80, 120, 2\): reorder its axes"),
        (np.zeros((1, 80, 120, 3), np.uint8), r"found shape \(1, 80, 120, 3\)"),
        (np.zeros((80, 120, 3), np.int64), "floats from 0 to 1, found int64: convert it"),
        (np.full((80, 120, 3), 255.0), "found 255 to 255: scale it"),
        (np.full((80, 120, 3), np.nan), "found nan to nan"),
        (torch.zeros(3, 20, 30), "at least 64 pixels on each side, found 30 x 20"),
    ],
)
def test_pictures_of_another_shape_or_range_are_refused(files: Path, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(files, image)


def test_settings_that_do_not_exist_are_refused(files: Path) -> None:
    with pytest.raises(TypeError, match=r"has no setting num_path: the settings are .*num_trajectories"):
        make(files, files / "picture.png", num_path=2)
    with pytest.raises(TypeError, match="has no setting output"):
        make(files, files / "picture.png", output="scene")
    with pytest.raises(ValueError, match="ns-lyra generate --dry-run"):
        make(files, files / "picture.png", dry_run=True)
    with pytest.raises(FileNotFoundError, match=r"nothing\.png does not exist"):
        make(files, "nothing.png")
    with pytest.raises(ValueError, match="expected an input or a prompt, found neither"):
        make(files, None)
