"""`ns-lyra generate` with refinement: what it refines against, what it gains, what it says of the result."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lyra_ns.cameras import CameraPath, relative_to
from lyra_ns.generation.decoder_input import AROUND, JUDGES_AROUND, KnownViews
from lyra_ns.generation.plan import DEGREES_TRIED, covered_degrees, turned_camera
from lyra_ns.generation.quality import SceneQuality, depth_percentiles, quality_warnings
from lyra_ns.generation.refining import num_refine_steps
from lyra_ns.generation.run import GeneratedScene
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.metrics import psnr
from lyra_ns.progress import StageProgress
from lyra_ns.refinement.views import RefinementViews
from lyra_ns.rendering import RenderSettings, render
from tests.generation.test_run import files, run  # noqa: F401 - a fixture

STEPS = 24


@pytest.fixture(scope="module")
def both(files, tmp_path_factory) -> dict[int, tuple[GeneratedScene, str]]:  # noqa: F811
    """The same scene without and with refinement."""
    folder = tmp_path_factory.mktemp("both")
    chosen = {"checkpoint": "shipped", "num_trajectories": 3}
    return {steps: run(files, folder / str(steps), refine_steps=steps, **chosen) for steps in (0, STEPS)}


def first_view(scene: GeneratedScene) -> torch.Tensor:
    given = scene.given
    camera = relative_to(given.cameras, given.cameras.camera_to_world[0, 0])[0, :1]
    with torch.no_grad():
        return render(scene.instants[0].gaussians, camera, RenderSettings(response="ewa")).rgb


@pytest.mark.slow
def test_refinement_brings_the_scene_closer_to_the_picture(both):
    (plain, _), (refined, printed) = both[0], both[STEPS]
    picture = plain.given.videos[0][:1].movedim(1, -1).float() / 255
    assert float(psnr(first_view(refined), picture)) > float(psnr(first_view(plain), picture)) + 1
    judged = refined.record["refinement"]["instants"][0]["held_back_psnr"]
    assert judged[str(STEPS)] > judged["0"] + 0.5
    assert f"{STEPS} steps in" in printed
    assert "[9/10] pictures rendered" in printed
    assert refined.instants[0].gaussians.num == plain.instants[0].gaussians.num


def test_without_steps_the_gaussians_are_those_of_the_decoder(both):
    plain, printed = both[0]
    assert plain.record["refinement"] == {"instants": []}
    assert "[8/9] pictures rendered" in printed
    assert "refined" not in printed


def test_a_run_ends_with_how_good_the_scene_is(both):
    for steps in (0, STEPS):
        scene, printed = both[steps]
        quality = json.loads((scene.folder / "record.json").read_text())["quality"]
        assert f"PSNR {quality['psnr']:.1f} dB, LPIPS {quality['lpips']:.3f}" in printed
        assert "of the view is known: " + ", ".join(
            f"{degrees} {name}" for name, degrees in quality["covered_degrees"].items()
        ) in printed.replace(" or more", "")
        assert set(quality["covered_degrees"]) == {"left", "right", "up", "down"}
        assert quality["depth_percentiles"] == [0.5, 1.0, 1.0]
        assert " s in all" in printed
        assert scene.record["total_seconds"] > sum(scene.record["seconds"].values()) * 0.99
    assert both[STEPS][0].record["quality"]["psnr"] > both[0][0].record["quality"]["psnr"] + 1


@pytest.mark.slow
def test_stored_latents_are_left_as_they_are_unless_one_asks(both, files, tmp_path):  # noqa: F811
    latents = both[0][0].folder / "latents"
    chosen = {"input": latents, "depth": "auto", "units": "auto", "height": None, "width": None}
    chosen["num_frames"] = None
    scene, printed = run(files, tmp_path / "plain", **chosen, refine_steps=None)
    assert scene.record["refinement"] == {"instants": []}
    assert scene.record["quality"] is None
    bare = tmp_path / "bare"
    shutil.copytree(latents, bare)
    for frames in bare.glob("static/*/rgb"):
        shutil.rmtree(frames)
    scene, printed = run(files, tmp_path / "asked", **(chosen | {"input": bare}), refine_steps=3)
    assert "3 steps in" in printed
    assert scene.record["refinement"]["instants"][0]["num_steps"] == 3


@pytest.mark.slow
def test_every_instant_of_a_moving_scene_is_refined_with_its_own_frames(files, tmp_path):  # noqa: F811
    scene, printed = run(
        files, tmp_path / "moving", input=files / "walk.mp4", checkpoint=str(files / "dynamic.safetensors"),
        static_camera=True, depth="plane", times=(0.0, 1.0), refine_steps=8, num_trajectories=2,
    )  # fmt: skip
    instants = scene.record["refinement"]["instants"]
    assert [instant["num_steps"] for instant in instants] == [4, 4]
    assert printed.count("4 steps in") == 2


def test_steps_by_default_and_what_cannot_be_asked_for(tmp_path):
    settings = GenerateSettings(input=Path("x.png"), output=tmp_path)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert num_refine_steps(settings, False, cpu) > 50
    assert num_refine_steps(settings, False, cuda) > num_refine_steps(settings, False, cpu)
    assert num_refine_steps(settings, True, cpu) == 0
    assert num_refine_steps(replace(settings, refine_steps=7), True, cpu) == 7
    with pytest.raises(ValueError, match="--refine-steps of 0 or more, found -1"):
        replace(settings, refine_steps=-1).check()
    with pytest.raises(ValueError, match="--refine-seconds above 0, found 0"):
        replace(settings, refine_seconds=0).check()


def camera() -> CameraPath:
    pose, intrinsics = torch.eye(4), torch.tensor([90.0, 90.0, 48.0, 32.0])
    return CameraPath(pose, intrinsics, torch.tensor(0.0), 64, 96)


def test_a_turned_camera_looks_at_the_centre_from_as_far_away():
    centre = torch.tensor([0.0, 0.0, 2.0])
    for right, up in (*AROUND, *JUDGES_AROUND, (0, 0)):
        pose = turned_camera(camera(), 2.0, right, up).camera_to_world[0]
        assert float((pose[:3, 3] - centre).norm()) == pytest.approx(2.0, abs=1e-5)
        torch.testing.assert_close(pose[:3, 3] + 2 * pose[:3, 2], centre, atol=1e-5, rtol=0)
        assert float(pose[0, 3]) * right >= 0
        assert float(pose[1, 3]) * up <= 0  # y points down
        if (right, up) == (0, 0):
            torch.testing.assert_close(pose, torch.eye(4), atol=1e-6, rtol=0)
    angle = turned_camera(camera(), 2.0, 16, 0).camera_to_world[0, :3, 2] @ torch.tensor([0.0, 0.0, 1.0])
    assert float(angle.acos().rad2deg()) == pytest.approx(16, abs=1e-3)


def test_covered_angles_end_before_the_first_that_is_not():
    def coverage(cameras: CameraPath) -> torch.Tensor:
        x, y = cameras.camera_to_world[:, 0, 3], cameras.camera_to_world[:, 1, 3]
        is_covered = (x > -2 * torch.tensor(7.0).deg2rad().sin()) & (y < 1e-4) & (y > -0.01)
        return torch.where(is_covered, 0.95, 0.89)

    found = covered_degrees(coverage, camera(), 2.0)
    assert found == {"left": 6, "right": DEGREES_TRIED[-1], "up": 0, "down": 0}


def test_what_is_doubtful_is_said_with_numbers():
    flat = quality_warnings((4.34, 4.5, 5.08), {"left": 4, "right": 12, "up": 0})
    assert "4.34, 4.5 and 5.08" in flat[0]
    assert "beyond 4 left, 0 up degrees" in flat[1]
    assert quality_warnings((1.0, 2.0, 9.0), {"left": 6, "right": 12}) == ()
    assert depth_percentiles(torch.zeros(1, 4, 4)) is None
    low, middle, high = depth_percentiles(torch.arange(1, 102).float())
    assert (low, middle, high) == pytest.approx((2, 51, 100))
    words = SceneQuality(31.26, 0.0712, {"left": DEGREES_TRIED[-1], "up": 4}, None, flat).in_words()
    assert words[0].endswith("PSNR 31.3 dB, LPIPS 0.071")
    assert words[1].endswith(f"{DEGREES_TRIED[-1]} or more left, 4 up")
    assert words[2].startswith("warning: the depth is nearly flat")


def test_known_views_move_into_the_frame_and_the_unit_of_the_gaussians():
    views = RefinementViews(torch.zeros(1, 64, 96, 3), camera().reshape(1), torch.full((1, 64, 96), 2.0))
    first = turned_camera(camera(), 2.0, 10, 0).camera_to_world[0]
    (moved,) = KnownViews(views).for_gaussians(first, 3.0)
    assert moved.depth is not None
    assert float(moved.depth.max()) == 6.0
    expected = torch.linalg.inv(first)
    expected[:3, 3] *= 3
    torch.testing.assert_close(moved.cameras.camera_to_world[0], expected, atol=1e-5, rtol=0)


def test_plain_lines_say_how_good_it_is(monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr("lyra_ns.progress.SECONDS_BETWEEN_LINES", -1.0)
    progress = StageProgress(1, torch.device("cpu"), Console(file=printed, soft_wrap=True))
    with progress.stage("Gaussians refined") as on_step:
        on_step(3, 9, "30.1 dB")
    assert "Gaussians refined: 3 of 9, 30.1 dB, about 0 s left" in printed.getvalue()
