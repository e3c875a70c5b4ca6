"""`ns-lyra refine`: what it reads, what it gains on frames that it held back, and what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lyra_ns.cameras import CameraPath, invert_rigid, look_at, nerfstudio_from_opencv
from lyra_ns.cli import main
from lyra_ns.cli.refine import Refine
from lyra_ns.codec import load_codec
from lyra_ns.data.store import Manifest, write_clip, write_manifest
from lyra_ns.export.ply import load_ply, save_ply
from lyra_ns.gaussians import Gaussians
from lyra_ns.generation.refining import chosen_frames, holding_back
from lyra_ns.refinement.views import RefinementViews
from lyra_ns.rendering import render
from tests.helpers.refinement_scenes import SETTINGS, spoiled, wall

HEIGHT, WIDTH, NUM_FRAMES = 64, 96, 9
WORLD = look_at(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 9.0]))
"""The frame of the Gaussians as it lies in the world of the stored cameras."""


def paths() -> CameraPath:
    """Two paths [2, L] from the frame of the Gaussians, to the left and to the right."""
    reach = torch.linspace(0, 0.8, NUM_FRAMES)
    centres = torch.zeros(2, NUM_FRAMES, 3)
    centres[0, :, 0], centres[1, :, 0] = -reach, reach
    poses = look_at(centres, torch.tensor([0.0, 0.0, 4.0]).expand(2, NUM_FRAMES, 3))
    intrinsics = torch.tensor([96.0, 96.0, 48.0, 32.0]).expand(2, NUM_FRAMES, 4)
    return CameraPath(poses, intrinsics, torch.linspace(0, 1, NUM_FRAMES).expand(2, -1), HEIGHT, WIDTH)


def frames(truth: Gaussians, cameras: CameraPath) -> torch.Tensor:
    with torch.no_grad():
        rgb = render(truth, cameras, SETTINGS).rgb.clamp(0, 1)
    return (rgb.movedim(-1, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gaussians (coarse.ply) and frames: stored (data), as latents alone (latents), with transforms.json."""
    folder = tmp_path_factory.mktemp("refine")
    truth, cameras = wall(), paths()
    save_ply(spoiled(truth), folder / "coarse.ply")
    stored = replace(cameras, camera_to_world=WORLD @ cameras.camera_to_world)
    codec = load_codec("linear")
    for trajectory in range(2):
        video = frames(truth, cameras[trajectory])
        write_clip(folder / "data" / "static", "wall", trajectory, stored[trajectory], rgb=video)
        z = codec.to_diffusion(codec.encode(video.transpose(0, 1)[None].float() / 127.5 - 1))[0]
        write_clip(folder / "latents" / "static", "wall", trajectory, stored[trajectory], z)
    manifest = Manifest(
        codec=codec.spec.codec, num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH, scenes={"wall": [0, 1]},
        splits={"train": ["wall"], "test": []}, codec_digest=codec.spec.digest,
    )  # fmt: skip
    write_manifest(folder / "latents", manifest)
    _write_transforms(folder / "pictures", frames(truth, cameras[1]), cameras[1])
    return folder


def _write_transforms(folder: Path, rgb: torch.Tensor, cameras: CameraPath) -> None:
    folder.mkdir()
    poses = nerfstudio_from_opencv(cameras.camera_to_world)
    entries = []
    # From the last to the first: the order of the names decides, not that of the file.
    for place in reversed(range(NUM_FRAMES)):
        Image.fromarray(np.ascontiguousarray(rgb[place].permute(1, 2, 0).numpy())).save(
            folder / f"view_{place}.png"
        )
        entries.append({"file_path": f"view_{place}.png", "transform_matrix": poses[place].tolist()})
    lens = {"fl_x": 96.0, "fl_y": 96.0, "cx": 48.0, "cy": 32.0, "w": WIDTH, "h": HEIGHT}
    (folder / "transforms.json").write_text(json.dumps(lens | {"frames": entries}))


def refine(folder: Path, output: Path, **changes) -> Refine:
    chosen = {"scene": folder / "coarse.ply", "data": folder / "data", "steps": 30, "device": "cpu"}
    return Refine(output=output, **(chosen | changes))


def gain(printed: str) -> float:
    """Held-back frames after minus before, in dB."""
    before, after = (
        float(line.split(": ")[1].split()[0])
        for line in printed.splitlines()
        if line.startswith("held-back frames")
    )
    return after - before


@pytest.mark.slow
@pytest.mark.parametrize("data", ["data", "latents", "pictures"])
def test_frames_that_were_held_back_gain(folder, tmp_path, capsys, data):
    refine(folder, tmp_path / "fine.ply", data=folder / data).run()
    printed = capsys.readouterr().out
    assert gain(printed) > 2.5
    assert "frames of 96 x 64, " in printed
    fine, coarse = load_ply(tmp_path / "fine.ply"), load_ply(folder / "coarse.ply")
    assert fine.num == coarse.num
    assert f"{fine.num:,} Gaussians; " in printed
    camera = paths()[1, [6]]  # not among the frames: the truth in the frame of the Gaussians
    with torch.no_grad():
        truth, *seen = (render(scene, camera, SETTINGS).rgb for scene in (wall(), coarse, fine))
    before, after = ((image - truth).square().mean() for image in seen)
    assert after < 0.6 * before


@pytest.mark.parametrize("suffix", [".splat", ".html"])
def test_the_suffix_says_what_is_written(folder, tmp_path, suffix):
    refine(folder, tmp_path / f"fine{suffix}", steps=1, held_back=0).run()
    content = (tmp_path / f"fine{suffix}").read_bytes()
    assert len(content) > 1000
    assert (suffix == ".html") == content[:14].lower().startswith(b"<!doctype html")


@pytest.mark.slow
def test_the_folder_of_a_generated_scene_brings_its_clips(folder, tmp_path, capsys):
    scene = tmp_path / "scene"
    scene.mkdir()
    (scene / "scene.ply").symlink_to(folder / "coarse.ply")
    (scene / "latents").symlink_to(folder / "latents")
    refine(scene, tmp_path / "fine.ply", scene=scene, data=None, steps=20).run()
    assert gain(capsys.readouterr().out) > 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": Path("fine.obj")}, r"--output must end in .ply, .splat, .html, found 'fine.obj'"),
        ({"scene": Path("nowhere.ply")}, "nowhere.ply does not exist: give a .ply"),
        ({"data": Path("nowhere")}, "nowhere does not exist: give frames with cameras"),
        ({"data": None}, "latents does not exist: give frames with cameras"),
        ({"steps": 0}, "--steps of 1 or more, found 0"),
        ({"frames_per_trajectory": 0}, "found 0, 1 and 8"),
        ({"held_back": -1}, "found 9, 1 and -1"),
        ({"time": 1.5}, "--time from 0 to 1, found 1.5"),
        ({"densify": 2.0}, "--densify needs a GPU"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_heavy(folder, tmp_path, monkeypatch, changes, said):
    monkeypatch.setitem(sys.modules, "lyra_ns.refinement.run", None)  # importing it would raise ImportError
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        refine(folder, **({"output": tmp_path / "fine.ply"} | changes)).run()


def test_data_that_does_not_fit_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"has the trajectories \[0, 1\], found \[4\] asked for"):
        refine(folder, tmp_path / "a.ply", trajectories=(0, 4)).run()
    with pytest.raises(ValueError, match="scene wall is static: leave out --time"):
        refine(folder, tmp_path / "a.ply", time=0.5).run()
    wrong = tmp_path / "wrong"
    _write_transforms(wrong, torch.zeros(NUM_FRAMES, 3, 70, 100, dtype=torch.uint8), paths()[1])
    with pytest.raises(
        ValueError, match=r"have 96 x 64 pixels \(width x height\), found 100 x 70 in view_0.png"
    ):
        refine(folder, tmp_path / "a.ply", data=wrong).run()
    assert not (tmp_path / "a.ply").exists()


def test_frames_and_judges_are_spread_evenly():
    assert chosen_frames(17, 5, None) == [0, 4, 8, 12, 16]
    assert chosen_frames(3, 9, None) == [0, 1, 2]
    assert chosen_frames(17, 5, 0.5) == [8]
    views = RefinementViews(torch.zeros(12, 4, 4, 3), paths()[0, [0] * 12])
    assert holding_back(views, 5).held_back == (2, 7)
    assert holding_back(views, 1).held_back == (1, 3, 5, 7, 9, 11)
    assert holding_back(views, 100).held_back == (6,)
    assert holding_back(views, 0).held_back == ()
    assert holding_back(views[0], 5).held_back == ()


def test_the_command_line_knows_it(folder, tmp_path, monkeypatch, capsys):
    line = f"ns-lyra refine {folder / 'coarse.ply'} --data {folder / 'data'} --steps 2 --device cpu -o"
    monkeypatch.setattr(sys, "argv", [*line.split(), str(tmp_path / "fine.ply")])
    main.main()
    assert "2 steps in" in capsys.readouterr().out


def test_stored_worlds_are_moved_into_the_frame_of_the_gaussians():
    """What the fixture relies on: the first camera is the frame, wherever it lies."""
    moved = invert_rigid(WORLD) @ (WORLD @ paths().camera_to_world)
    torch.testing.assert_close(moved, paths().camera_to_world, atol=1e-5, rtol=0)
