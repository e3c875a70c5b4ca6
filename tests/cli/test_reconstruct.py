"""`ns-lyra reconstruct`: which scene it reads, what it writes and prints, and what it refuses."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lyra_ns import reconstruction
from lyra_ns.cli import main
from lyra_ns.cli.reconstruct import Reconstruct
from lyra_ns.data.open import chosen_trajectories, open_scene, read_inputs, stored_scene
from lyra_ns.data.store import LyraStore
from lyra_ns.decoder.checkpoints import save_decoder
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.export.ply import load_ply
from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.memory import DoesNotFit
from tests.helpers.small_dataset import HEIGHT, WIDTH, write_small_clip, write_small_dataset
from tests.helpers.wall_scenes import write_wall_scenes

CELLS = (48 // 8) * (64 // 8) * 9
"""Gaussians of one trajectory of a wall, before pruning."""
SMALL_CELLS = (HEIGHT // 8) * (WIDTH // 8) * 17
"""Gaussians of one trajectory of a small clip, before pruning."""


def tiny_decoder(**changes: Any) -> LatentGaussianDecoder:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8, "head_dim": 16}
    head = GaussianHeadConfig(near=1.0, far=30.0, distance_law="logarithmic", scale_law="footprint")
    return LatentGaussianDecoder(DecoderConfig(**sizes | {"head": head} | changes))


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wall_scenes(tmp_path_factory.mktemp("walls"), num_scenes=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_decoder(tiny_decoder(), tmp_path_factory.mktemp("decoder") / "tiny.safetensors"))


def reconstruct(walls: Path, checkpoint: str, output: Path, **changes) -> Reconstruct:
    settings = {"trajectories": (5, 0), "device": "cpu"} | changes
    return Reconstruct(data=walls, checkpoint=checkpoint, output=output, **settings)


@pytest.mark.parametrize("suffix", [".ply", ".splat", ".html"])
def test_reconstruct_writes_what_the_suffix_says(walls, checkpoint, tmp_path, capsys, suffix):
    output = tmp_path / f"scene{suffix}"
    reconstruct(walls, checkpoint, output).run()
    content = output.read_bytes()
    starts = {".ply": b"ply\n", ".html": b"<!doctype html"}
    assert content[:14].lower().startswith(starts.get(suffix, b""))
    if suffix == ".splat":
        assert len(content) == 32 * CELLS
    printed = capsys.readouterr().out
    assert f"{CELLS:,} Gaussians of wall_1 from trajectories 5, 0" in printed
    stages = ("scene found", "decoder loaded", "scene read", "conditioning", "trunk", "head", "written")
    times = [float(re.search(rf"^  {stage} in (\d+\.\d\d) s$", printed, re.M)[1]) for stage in stages]
    assert 0 < sum(times) < 100
    assert re.search(r"^memory estimate, whole: .* \(conditioning .*, trunk .*, head .*, gaussians", printed)


def test_reconstruct_reads_the_scene_and_trajectories_asked_for(walls, checkpoint, tmp_path):
    def means(name: str, **changes) -> torch.Tensor:
        reconstruct(walls, checkpoint, tmp_path / name, **changes).run()
        return load_ply(tmp_path / name).means

    usual = means("usual.ply")
    assert usual.shape == (CELLS, 3)
    assert means("unpruned.ply", prune_ratio=0.0).shape == (2 * CELLS, 3)
    assert means("one.ply", trajectories=(5,)).shape == (CELLS // 2, 3)
    torch.testing.assert_close(means("named.ply", scene="wall_1"), usual)
    assert not torch.equal(means("other.ply", scene="wall_0"), usual)
    assert not torch.equal(means("turned.ply", trajectories=(0, 5)), usual)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scene": "wall_7"}, r"no scene 'wall_7'.*its 2, wall_0, wall_1$"),
        ({"trajectories": (5, 4)}, r"trajectories \[0, 1, 5\], found \[5, 4\]"),
        ({"trajectories": ()}, r"trajectories \[0, 1, 5\], found \[\]"),
        ({"output": Path("scene.obj")}, r"\.ply, \.splat, \.html, found 'scene\.obj'"),
        ({"time": 0.5}, "static and has no moments"),
        ({"prune_ratio": 1.0}, r"--prune-ratio from 0 to below 1"),
        ({"checkpoint": "nowhere.safetensors"}, "no decoder at nowhere"),
    ],
)
def test_reconstruct_refuses_what_cannot_be(walls, checkpoint, tmp_path, changes, message):
    command = replace(reconstruct(walls, checkpoint, tmp_path / "scene.ply"), **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        command.run()
    assert not list(tmp_path.iterdir())


def test_dynamic_scenes_are_shown_at_the_moment_asked_for(tmp_path):
    root = write_wall_scenes(tmp_path / "walls", num_scenes=1, is_dynamic=True)
    decoder = tiny_decoder(use_time=True)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = str(save_decoder(decoder, tmp_path / "tiny.safetensors"))
    found = []
    for time in (0.0, 1.0, None):
        reconstruct(root, path, tmp_path / "scene.ply", time=time).run()
        found.append(load_ply(tmp_path / "scene.ply").means)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_codec_must_be_known(tmp_path, checkpoint):
    write_small_clip(tmp_path / "static", "a", 0, seed=1)
    output = tmp_path / "scene.ply"
    with pytest.raises(ValueError, match="give --codec cosmos:PATH"):
        reconstruct(tmp_path, checkpoint, output, trajectories=(0,)).run()
    reconstruct(tmp_path, checkpoint, output, trajectories=(0,), codec="linear").run()
    assert load_ply(output).num == 17 * (HEIGHT // 8) * (WIDTH // 8) // 2


def test_inputs_keep_their_order(walls):
    scene = stored_scene(LyraStore(walls))
    assert scene.name == "wall_1"
    z, cameras = read_inputs(scene, (5, 1))
    torch.testing.assert_close(z[1], scene.latents(1))
    torch.testing.assert_close(cameras[0].camera_to_world, scene.cameras(5).camera_to_world)


def test_usual_trajectories_are_read_by_default(walls, checkpoint, tmp_path, capsys):
    assert chosen_trajectories(stored_scene(LyraStore(walls)), None) == (5, 0, 1)
    reconstruct(walls, checkpoint, tmp_path / "scene.ply", trajectories=None).run()
    assert "from trajectories 5, 0, 1 on cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inner", "is_dynamic"),
    [
        (".", False),
        ("static", False),
        ("diffusion_output", False),
        ("static/diffusion_output", False),
        ("dynamic/diffusion_output", True),
    ],
)
def test_roots_are_found_where_official_tools_leave_them(tmp_path, inner, is_dynamic):
    write_small_dataset(tmp_path / "data", num_scenes=1, num_trajectories=2)
    root = tmp_path / "given" / inner
    root.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / "static").rename(root)
    scene = open_scene(tmp_path / "given")
    assert scene.input_ids == [0, 1]
    assert scene.is_dynamic == is_dynamic
    if "/" in inner:
        other = tmp_path / "given" / ("static" if is_dynamic else "dynamic") / "diffusion_output"
        other.mkdir(parents=True)
        with pytest.raises(ValueError, match="both static and dynamic scenes: give"):
            open_scene(tmp_path / "given")


def test_bare_folder_of_one_trajectory(tmp_path, checkpoint):
    """pose/, intrinsics/ and latent/ are enough, with the number of the folder or without."""
    root = write_small_dataset(tmp_path / "data", num_scenes=1, num_trajectories=2) / "static"
    for unread in ("rgb", "depth"):
        shutil.rmtree(root / "1" / unread)
    settings = {"codec": "linear", "trajectories": None}
    reconstruct(root, checkpoint, tmp_path / "a.ply", **settings | {"trajectories": (1,)}).run()
    reconstruct(root / "1", checkpoint, tmp_path / "b.ply", **settings).run()
    (root / "1").rename(tmp_path / "mine")
    reconstruct(tmp_path / "mine", checkpoint, tmp_path / "c.ply", **settings).run()
    assert load_ply(tmp_path / "a.ply").num == SMALL_CELLS // 2
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "c.ply").read_bytes()
    shutil.rmtree(tmp_path / "mine" / "pose")
    (tmp_path / "mine" / "pose").mkdir()
    with pytest.raises(FileNotFoundError, match=r"pose holds no CLIP\.npz"):
        reconstruct(tmp_path / "mine", checkpoint, tmp_path / "d.ply", **settings).run()


def test_chunked_way_gives_the_same(walls, checkpoint, tmp_path, capsys):
    found = []
    for memory in ("whole", "chunked"):
        reconstruct(walls, checkpoint, tmp_path / f"{memory}.ply", memory=memory).run()
        found.append(load_ply(tmp_path / f"{memory}.ply"))
        assert ("in chunks" if memory == "chunked" else "estimate, whole") in capsys.readouterr().out
    for name, values in vars(found[0]).items():
        torch.testing.assert_close(getattr(found[1], name), values, rtol=1e-4, atol=1e-5)


def test_too_little_memory_is_refused_before_anything_is_computed(walls, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "available_bytes", lambda device: 2**20)
    message = (
        r"^this scene needs about \d+\.\d MiB beyond the weights \(.*\) even in the chunked way, "
        r"and 1\.0 MiB of cpu are free: read fewer trajectories \(such as --trajectories 5 0 1\)$"
    )
    with pytest.raises(DoesNotFit, match=message):
        reconstruct(walls, checkpoint, tmp_path / "scene.ply").run()


@pytest.mark.parametrize("is_gpu", [False, True])
def test_running_out_of_memory_is_one_sentence(walls, checkpoint, tmp_path, monkeypatch, capsys, is_gpu):
    def exhaust(*inputs: Any) -> None:
        if is_gpu:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.61 GiB.")
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(LatentGaussianDecoder, "trunk", exhaust)
    output = str(tmp_path / "scene.ply")
    arguments = ["reconstruct", str(walls), "--checkpoint", checkpoint, "--device", "cpu", "--output", output]
    monkeypatch.setattr("sys.argv", ["ns-lyra", *arguments])
    with pytest.raises(SystemExit):
        main.main()
    error = capsys.readouterr().err
    assert error.startswith("ns-lyra: cpu ran out of memory; the estimate was ")
    assert "were free at the start: read fewer trajectories" in error
    assert "or take the chunked way (--memory chunked)" in error
    assert error.count("\n") == 1
