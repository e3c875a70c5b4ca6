"""`ns-lyra generate`: what a run writes, says and records, and that nothing half-written is ever left."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lyra_ns.camera_paths import path_of_poses
from lyra_ns.cameras import look_at
from lyra_ns.cli import main
from lyra_ns.cli.generate import GROUPS, default_output
from lyra_ns.cli.reconstruct import Reconstruct
from lyra_ns.codec import load_codec
from lyra_ns.data.camera_files import indexed_bytes, write_npz
from lyra_ns.data.depth_files import depth_bytes
from lyra_ns.data.store import LyraStore
from lyra_ns.data.video import VideoSize, read_video, video_bytes, video_size
from lyra_ns.decoder.checkpoints import save_decoder
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.depth import registry
from lyra_ns.depth.small import load_small_depth
from lyra_ns.export.ply import load_ply
from lyra_ns.gaussians import GaussianHeadConfig
from lyra_ns.generation import run as run_module
from lyra_ns.generation.clips import clip_sizes, decoder_size, paths_follow_near
from lyra_ns.generation.folder import check_output, whole_folder
from lyra_ns.generation.inputs import ClipSizes, size_of_aspect
from lyra_ns.generation.length_unit import LengthUnit, farthest_frames, fitted_unit, search_unit
from lyra_ns.generation.reading import read_source
from lyra_ns.generation.run import generate
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import RenderSettings

SIZE = {"height": 64, "width": 96, "num_frames": 9}
RESULT = {"scene.ply", "scene.html", "video.mp4", "contact_sheet.png", "latents", "record.json"}


def decoder(use_time: bool = False) -> LatentGaussianDecoder:
    """A decoder of the shipped kind with random weights, for the linear codec."""
    torch.manual_seed(0)
    head = GaussianHeadConfig(near=1.0, far=30.0, distance_law="logarithmic", scale_law="footprint")
    config = DecoderConfig(
        width=32,
        depth=2,
        pattern="1M1T",
        num_heads=2,
        state_size=8,
        head_dim=16,
        head=head,
        use_time=use_time,
    )
    made = LatentGaussianDecoder(config)
    made.codec_digest = load_codec("linear").spec.digest
    with torch.no_grad():
        # Embeddings of rays and times start at 0, where no time changes anything.
        for name, weights in made.named_parameters():
            if "time" in name and not bool(weights.any()):
                weights.normal_(std=0.5)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_decoder(decoder(), folder / "static.safetensors")
    save_decoder(decoder(use_time=True), folder / "dynamic.safetensors")
    noise = np.random.default_rng(0).integers(0, 255, (16, 24, 3), "uint8")
    Image.fromarray(noise).resize((240, 160), Image.Resampling.BICUBIC).save(folder / "photo.png")
    depth = np.full((160, 240), 5.0, np.float32)
    depth[40:120, 80:160] = 2.5
    np.save(folder / "depth.npy", depth)
    rgb = torch.from_numpy(np.array(Image.open(folder / "photo.png"))).permute(2, 0, 1)
    moving = torch.stack([rgb.roll(4 * frame, -1) for frame in range(12)])
    (folder / "walk.mp4").write_bytes(video_bytes(moving))
    return folder


def settings(files: Path, output: Path, **changes) -> GenerateSettings:
    chosen = {
        "input": files / "photo.png",
        "output": output,
        "checkpoint": str(files / "static.safetensors"),
        "depth": str(files / "depth.npy"),
        "units": 4.0,
        "refine_steps": 0,
        "device": "cpu",
        **SIZE,
    }
    return GenerateSettings(**(chosen | changes))


def run(files: Path, output: Path, **changes) -> tuple[run_module.GeneratedScene, str]:
    printed = io.StringIO()
    scene = generate(settings(files, output, **changes), Console(file=printed, soft_wrap=True))
    return scene, printed.getvalue()


@pytest.fixture(scope="module")
def made(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("made") / "scene"
    _, printed = run(files, output, fov=70.0, seed=3)
    return output, printed


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_an_image_becomes_a_scene_with_everything_around_it(made):
    output, printed = made
    assert names(output) == RESULT
    assert names(output.parent) == {"scene"}
    num_gaussians = 6 * 9 * 8 * 12 // 2
    assert load_ply(output / "scene.ply").num == num_gaussians
    assert (output / "scene.html").read_text().lower().startswith("<!doctype html")
    video = video_size(output / "video.mp4")
    assert (video.num_frames, video.height, video.width) == (72, 128, 192)
    with Image.open(output / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 96
        assert sheet.height > 7 * 64
    assert f"{num_gaussians:,} Gaussians" in printed
    assert "nothing was generated" in printed
    assert "[1/9] decoder read" in printed
    assert "[9/9] files written" in printed
    assert "cropped" in printed or "not cropped" in printed


def upright(folder: Path) -> Path:
    """A picture 180 wide and 240 high, red above and blue below, stored lying as phones do."""
    pixels = np.zeros((240, 180, 3), np.uint8)
    pixels[:120, :, 0] = pixels[120:, :, 2] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    lying.save(folder / "upright.png", exif=exif)
    return folder / "upright.png"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (240, 176)),
        ({"crop": True}, (160, 256)),
        ({"height": 96, "width": 64}, (96, 64)),
        ({"height": 96}, (96, 256)),
    ],
)
def test_clips_keep_the_aspect_of_the_picture_unless_told_otherwise(files, tmp_path, changes, size):
    given = {"input": upright(tmp_path), "height": None, "width": None, "depth": "plane", "dry_run": True}
    scene, printed = run(files, tmp_path / "out", **(given | {"num_trajectories": 1} | changes))
    assert scene.record["clips"] == {"num_frames": 9, "height": size[0], "width": size[1]}
    assert f"for clips of {size[1]} x {size[0]}" in printed
    frames = read_video(tmp_path / "out" / "preview" / "5_clockwise.mp4", range(1))
    assert frames.shape[-2:] == size
    above, below = frames[0].float().chunk(2, dim=1)
    assert above[0].mean() > 150 > 50 > below[0].mean()
    assert below[2].mean() > 150 > 50 > above[2].mean()


def test_decoders_and_teachers_that_know_one_size_get_it():
    picture = (240, 180)
    small, full = (
        decoder(),
        LatentGaussianDecoder(DecoderConfig(width=32, depth=1, pattern="1T", num_heads=2)),
    )
    for asked, made_for, size in (
        ({}, small, (240, 176)),
        ({}, full, (704, 1280)),
        ({"weights": "gen3c"}, small, (704, 1280)),
        ({"weights": "gen3c", "height": 960}, small, (960, 1280)),
    ):
        chosen = GenerateSettings(input=Path("a.png"), output=Path("b"), **asked)
        clips = clip_sizes(chosen, made_for).of_picture(*picture)
        assert (clips.height, clips.width) == size
        again = decoder_size(chosen, made_for, clips)
        expected = size_of_aspect(size[1] / size[0], 160 * 256) if made_for is small else size
        assert (again.height, again.width) == expected
    cropped = GenerateSettings(input=Path("a.png"), output=Path("b"), weights="gen3c", crop=True)
    assert decoder_size(cropped, small, VideoSize(121, 704, 1280)) == VideoSize(17, 160, 256)


def test_paths_follow_near_depth_but_for_those_who_know_the_official_data():
    small = decoder()
    full = LatentGaussianDecoder(DecoderConfig(width=32, depth=1, pattern="1T", num_heads=2))
    for asked, made_for, is_near in (
        ({}, small, True),
        ({}, full, False),
        ({"weights": "gen3c"}, small, False),
        ({"depth_units": "centre_quantile"}, small, False),
        ({"paths_follow": "official"}, small, False),
        ({"paths_follow": "near", "weights": "gen3c"}, full, True),
    ):
        chosen = GenerateSettings(input=Path("a.png"), output=Path("b"), **asked)
        assert paths_follow_near(chosen, made_for) == is_near


def test_a_path_that_would_fly_through_something_is_shortened_and_said_to_be(files, tmp_path):
    chosen = {"trajectory": ("zoom_in",), "distance_factor": 2.5, "dry_run": True}
    scene, printed = run(files, tmp_path / "a", paths_follow="official", **chosen)
    (path,) = scene.record["paths"]
    # The box lies at half the depth of the wall, which is the unit: two thirds of the way to it are clear.
    assert path["distance"] < path["drawn_distance"]
    assert 0.3 < path["distance"] * 8 / 9 <= 1 / 3
    share = f"{path['distance'] / path['drawn_distance']:.0%}"
    assert f"path zoom_in: {share} of its length, or it would fly through what is near" in printed
    assert scene.record["scale"]["near_depth"] == 0.5


def test_the_record_says_how_the_scene_was_made(made):
    record = json.loads((made[0] / "record.json").read_text())
    assert record["settings"]["seed"] == 3
    assert record["settings"]["units"] == 4.0
    assert record["scale"]["depth_factor"] == pytest.approx(1 / 5)
    assert record["scale"]["pose_scale_origin"] == "assumed"
    assert record["lens"]["origin"] == "given as --fov 70"
    assert record["depth"]["estimator"] == "file depth.npy"
    assert record["teacher"]["name"] == "warp"
    assert "nothing was generated" in record["teacher"]["statement"]
    assert len(record["teacher"]["clips"]) == 6
    assert [path["trajectory"] for path in record["paths"]] == [5, 0, 1, 2, 3, 4]
    assert 0.2 <= record["paths"][1]["distance"] <= 0.3
    assert record["unit"]["factor"] == 4.0
    assert record["codec"]["name"] == "linear"
    assert record["environment"]["versions"]["lyra_ns"]
    assert record["num_gaussians"] == [2592]


@pytest.mark.slow
def test_its_latents_give_the_same_scene_again(made, files, tmp_path):
    output, _ = made
    store = LyraStore(output / "latents")
    clip = store.clips("photo")[0]
    assert (store.names, sorted(store.clips("photo"))) == (["photo"], [0, 1, 2, 3, 4, 5])
    # Lengths are in the unit that the decoder was given: depth 5 is 1 in the scene and 4 there.
    assert float(clip.depth([0]).median()) == pytest.approx(4.0, rel=1e-3)
    assert float(clip.depth([0])[0, 32, 48]) == pytest.approx(2.0, rel=1e-3)
    checkpoint = str(files / "static.safetensors")
    Reconstruct(
        data=output / "latents", output=tmp_path / "again.ply", checkpoint=checkpoint, device="cpu"
    ).run()
    first, again = load_ply(output / "scene.ply"), load_ply(tmp_path / "again.ply")
    torch.testing.assert_close(again.means, first.means, atol=1e-4, rtol=1e-4)
    scene, printed = run(files, tmp_path / "third", input=output / "latents", units="scene")
    assert names(tmp_path / "third") == RESULT - {"latents"}
    torch.testing.assert_close(scene.instants[0].gaussians.means, first.means, atol=1e-4, rtol=1e-4)
    assert "[5/5] files written" in printed


def test_units_cannot_be_fitted_without_frames(made, files, tmp_path):
    shutil.copytree(made[0] / "latents", tmp_path / "latents")
    shutil.rmtree(tmp_path / "latents" / "static" / "0" / "rgb")
    with pytest.raises(ValueError, match="--units fitted compares with the frames"):
        run(files, tmp_path / "a", input=tmp_path / "latents", units="fitted")


@pytest.mark.slow
def test_paths_are_named_repeated_or_read_from_files(files, tmp_path):
    centres = torch.linspace(0, 1, 9)[:, None] * torch.tensor([2.0, 0.0, 0.0])
    poses = look_at(centres.double(), torch.tensor([0.0, 0.0, 8.0]).double().expand(9, 3))
    write_npz(tmp_path / "drive.npz", path_of_poses(poses, torch.tensor([90.0, 90, 48, 32]), 64, 96))
    scene, _ = run(
        files, tmp_path / "a", trajectory=("down", "none", str(tmp_path / "drive.npz")), pose_scale=0.5
    )
    assert [(path["name"], path["trajectory"]) for path in scene.record["paths"]] == [
        ("down", 0), ("none", 1), ("drive", 2),
    ]  # fmt: skip
    cameras = scene.given.cameras
    ends = cameras.camera_to_world[:, -1, :3, 3]
    # The box in the middle is half as far away as the median, of which the depth makes 1.
    assert scene.record["scale"]["centre_depth"] == 0.5
    down = scene.record["paths"][0]["distance"] * 0.5 * 8 / 9 * 4.0
    torch.testing.assert_close(ends[0], torch.tensor([0.0, down, 0.0]))
    torch.testing.assert_close(ends[1], torch.zeros(3))
    # 2 units of the file are 1 of the depth (0.5), 0.2 of the scene (median depth 5) and 0.8 of the decoder.
    torch.testing.assert_close(ends[2].norm(), torch.tensor(0.8))


@pytest.mark.slow
def test_the_zoom_of_a_path_file_is_kept(files, tmp_path):
    lens = torch.tensor([90.0, 90, 48, 32]) * torch.linspace(1, 1.5, 9)[:, None]
    lens[:, 2:] = torch.tensor([48.0, 32])
    write_npz(tmp_path / "zoom.npz", path_of_poses(torch.eye(4).repeat(9, 1, 1), lens, 64, 96))
    scene, _ = run(files, tmp_path / "a", trajectory=(str(tmp_path / "zoom.npz"), "left"), fov=60.0)
    by_number = dict(zip(scene.given.trajectories, scene.given.cameras.intrinsics, strict=True))
    zoomed, plain = by_number[0], by_number[1]
    torch.testing.assert_close(plain, plain[:1].expand(9, 4))
    torch.testing.assert_close(zoomed[0], plain[0])
    torch.testing.assert_close(zoomed[-1], plain[0] * torch.tensor([1.5, 1.5, 1, 1]))


@pytest.mark.slow
def test_the_seed_and_the_number_of_paths_decide_the_paths(files, tmp_path):
    def lengths(output: str, **changes) -> list[float]:
        scene, _ = run(files, tmp_path / output, dry_run=True, **changes)
        return [path["distance"] for path in scene.record["paths"]]

    assert lengths("a", num_trajectories=2) == lengths("b", num_trajectories=3)[:2]
    assert lengths("c", num_trajectories=2) != lengths("d", num_trajectories=2, seed=1)
    doubled = lengths("e", num_trajectories=1, distance_factor=2.0)
    assert doubled == pytest.approx([2 * lengths("f", num_trajectories=1)[0]])


@pytest.mark.slow
def test_a_dry_run_shows_what_a_teacher_would_see_and_a_real_run_keeps_it(files, tmp_path):
    output = tmp_path / "scene"
    _, printed = run(files, output, dry_run=True, num_trajectories=2)
    assert names(output) == {"preview"}
    expected = {"5_clockwise.mp4", "0_left.mp4", "sheet.png", "cameras.png", "depth.png"}
    assert names(output / "preview") == expected
    assert "path 0 left:" in printed
    assert "of the pixels are known" in printed
    assert "decoder: about" in printed
    assert "nothing was generated" in printed
    run(files, output, dry_run=True, num_trajectories=1)
    assert names(output / "preview") == expected - {"0_left.mp4"}
    run(files, output, num_trajectories=1)
    assert names(output) == RESULT | {"preview"}
    with pytest.raises(FileExistsError, match="--overwrite"):
        run(files, output, dry_run=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["make_clips", "write_video", "write_record"])
def test_after_an_error_only_clips_are_left_and_an_earlier_result_stays(files, tmp_path, monkeypatch, stage):
    output = tmp_path / "scene"
    run(files, output, num_trajectories=1)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    def fail(*arguments, **options):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(run_module, stage, fail)
    kept = [] if stage == "make_clips" else ["5.safetensors"]
    for place in (output, tmp_path / "fresh"):
        with pytest.raises(RuntimeError, match="disk is full"):
            run(files, place, num_trajectories=1, overwrite=True)
        assert [path.name for path in place.glob("unfinished/*")] == kept
        shutil.rmtree(place / "unfinished", ignore_errors=True)
    assert names(tmp_path) == ({"scene", "fresh"} if kept else {"scene"})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_only_own_results_are_replaced(files, tmp_path):
    output = tmp_path / "scene"
    run(files, output, num_trajectories=1)
    with pytest.raises(FileExistsError, match="not empty"):
        run(files, output)
    run(files, output, num_trajectories=2, overwrite=True)
    assert sorted(LyraStore(output / "latents").clips("photo")) == [0, 5]
    with pytest.raises(ValueError, match="lies in the output"):
        run(files, output, input=output / "latents", overwrite=True)
    (output / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        run(files, output, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        run(files, tmp_path / "file")
    with pytest.raises(ValueError, match=r"can be written to, found .*file"):
        run(files, tmp_path / "file" / "scene")


def test_places_that_no_folder_can_take_are_refused_before_the_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="mount point"):
        check_output(Path("/proc"), None, overwrite=True, is_dry_run=False)
    monkeypatch.setattr("os.access", lambda place, mode: False)
    with pytest.raises(ValueError, match="must be in a folder that can be written to"):
        check_output(tmp_path / "deep" / "scene", None, overwrite=False, is_dry_run=False)


def test_a_failure_leaves_no_new_folders(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "mine" / "new" / "scene" / "preview"):
        _ = 1 / 0
    assert names(tmp_path) == {"mine"}
    assert not names(tmp_path / "mine")


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "scene").symlink_to(tmp_path / "disk")
    with whole_folder(tmp_path / "scene") as folder:
        (folder / "scene.ply").touch()
    assert (tmp_path / "scene").is_symlink()
    assert names(tmp_path / "disk") == {"scene.ply"}
    assert names(tmp_path) == {"disk", "scene"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": None}, ValueError, "input or a prompt, found neither"),
        ({"input": Path("nothing.png")}, FileNotFoundError, "does not exist"),
        ({"fov": 60.0, "intrinsics": (9.0, 9.0, 9.0, 9.0)}, ValueError, "found both"),
        ({"fov": 200.0}, ValueError, "--fov between 0 and 180"),
        ({"num_trajectories": 7}, ValueError, "from 1 to 6, found 7"),
        ({"height": 70}, ValueError, "multiples of 16, found 70 and 96"),
        ({"num_frames": 10}, ValueError, "8k \\+ 1"),
        ({"trajectory": ("sideways",)}, ValueError, "left, right, .* found 'sideways'"),
        ({"trajectory": ("nowhere.npz",)}, FileNotFoundError, r"nowhere\.npz does not exist"),
        ({"units": 0.0}, ValueError, "--units above 0"),
        ({"pose_scale": -1.0}, ValueError, "--pose-scale above 0"),
        ({"checkpoint": "nothing.safetensors"}, FileNotFoundError, "no decoder"),
        ({"teacher": "gen3c"}, ValueError, "needs weights"),
        ({"teacher": "warp", "weights": "x"}, ValueError, "has no weights"),
        ({"weights": "nowhere/at/all"}, FileNotFoundError, "nowhere/at/all"),
        ({"depth": "shallow"}, ValueError, "--depth, found 'shallow'"),
        ({"depth": "none.npy"}, FileNotFoundError, r"none\.npy does not exist"),
        ({"times": (1.5,)}, ValueError, "--times from 0 to 1"),
        ({"device": "cuda"}, ValueError, "cuda was asked for"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(files, tmp_path, changes, error, message):
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(error, match=message) as caught:
        run(files, tmp_path / "scene", **changes)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == set()


def test_a_path_of_another_length_says_how_to_fit_it(files, tmp_path):
    poses = torch.eye(4).repeat(5, 1, 1)
    write_npz(tmp_path / "short.npz", path_of_poses(poses, torch.tensor([90.0, 90, 48, 32]), 64, 96))
    chosen = {"trajectory": (str(tmp_path / "short.npz"),)}
    with pytest.raises(ValueError, match=r"short\.npz.*9 frames, found 5.*--path-length"):
        run(files, tmp_path / "scene", **chosen)
    scene, _ = run(files, tmp_path / "scene", path_length="resample", dry_run=True, **chosen)
    assert scene.record["paths"][0]["name"] == "short"


@pytest.mark.slow
def test_videos_need_cameras_and_a_decoder_that_knows_motion(files, tmp_path):
    video = {"input": files / "walk.mp4", "depth": "plane", "num_trajectories": 2}
    with pytest.raises(ValueError, match=r"needs the cameras of its frames.*--static-camera"):
        run(files, tmp_path / "a", **video)
    with pytest.raises(ValueError, match=r"static: it knows no motion.*--first-frame-only"):
        run(files, tmp_path / "a", static_camera=True, **video)
    with pytest.raises(ValueError, match="9 frames from frame 4 on, which reach frame 12, found 12"):
        run(files, tmp_path / "a", static_camera=True, frames_from=4, **video)
    assert names(tmp_path) == set()
    scene, printed = run(files, tmp_path / "a", first_frame_only=True, frames_from=4, **video)
    assert "frames 4 to 4" in printed
    assert not scene.given.is_dynamic


@pytest.mark.slow
def test_a_video_with_a_dynamic_decoder_gives_one_scene_per_moment(files, tmp_path):
    scene, _ = run(
        files, tmp_path / "a", input=files / "walk.mp4", depth="plane", static_camera=True,
        num_trajectories=2, checkpoint=str(files / "dynamic.safetensors"), times=(0.0, 1.0),
    )  # fmt: skip
    assert names(tmp_path / "a") == RESULT | {"instants"}
    assert names(tmp_path / "a" / "instants") == {"scene_0.000.ply", "scene_1.000.ply"}
    store = LyraStore(tmp_path / "a" / "latents")
    assert store.is_dynamic
    # The clips show things at their own moment: the picture runs to the right, frame by frame.
    first, last = scene.given.videos[1][0].float(), scene.given.videos[1][8].float()
    assert float((first - last).abs().mean()) > 5
    assert not torch.equal(scene.instants[0].gaussians.means, scene.instants[1].gaussians.means)


def write_vipe(root: Path) -> None:
    """What ViPE writes of a video with a camera that slides 0.1 a frame past a wall 2 away."""
    noise = np.random.default_rng(1).integers(0, 255, (8, 30, 3), "uint8")
    wall = np.array(Image.fromarray(noise).resize((240, 64), Image.Resampling.BICUBIC))
    # A focal length of 80 pixels makes 0.1 at depth 2 four pixels.
    frames = [torch.from_numpy(wall[:, 4 * frame : 4 * frame + 96]) for frame in range(9)]
    poses = torch.eye(4).repeat(9, 1, 1)
    poses[:, 0, 3] = 0.1 * torch.arange(9)
    poses[:, 1, 3] = 5.0
    content = {
        "rgb/walk.mp4": video_bytes(torch.stack(frames).permute(0, 3, 1, 2)),
        "pose/walk.npz": indexed_bytes(poses),
        "intrinsics/walk.npz": indexed_bytes(torch.tensor([80.0, 80, 48, 32]).expand(9, 4)),
        "depth/walk.zip": depth_bytes(torch.full((9, 64, 96), 2.0)),
    }
    for name, values in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(values)


@pytest.mark.slow
def test_vipes_cameras_are_followed_in_units_of_the_scene(files, tmp_path):
    write_vipe(tmp_path / "vipe")
    chosen = {"input": tmp_path / "vipe", "depth": "auto", "trajectory": ("none",), "times": (0.5,)}
    with pytest.raises(ValueError, match="static: it knows no motion"):
        run(files, tmp_path / "a", **chosen)
    dynamic = str(files / "dynamic.safetensors")
    scene, printed = run(files, tmp_path / "a", checkpoint=dynamic, units=3.0, **chosen)
    assert "depth: ViPE's own" in printed
    assert "lens: ViPE" in printed
    # Lengths stay as ViPE gives them, and are three times that for the decoder: 0.1 of a frame is 0.3.
    centres = scene.given.cameras.camera_to_world[0, :, :3, 3]
    expected = torch.arange(9)[:, None] * torch.tensor([0.3, 0.0, 0.0])
    torch.testing.assert_close(centres, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(scene.given.cameras.intrinsics[0, 0], torch.tensor([80.0, 80, 48, 32]))
    # The source camera sees every frame as it was.
    source = read_video(tmp_path / "vipe" / "rgb" / "walk.mp4").float()
    assert float((scene.given.videos[0].float() - source).abs().mean()) < 1.5
    scene, _ = run(files, tmp_path / "b", **chosen, first_frame_only=True)
    assert not scene.given.is_dynamic


@pytest.mark.slow
def test_paths_of_moving_scenes_never_get_the_numbers_of_reversed_videos(files, tmp_path):
    """Readers would leave their latents out."""
    write_vipe(tmp_path / "vipe")
    chosen = {"input": tmp_path / "vipe", "depth": "auto", "checkpoint": str(files / "dynamic.safetensors")}
    with pytest.raises(ValueError, match="at most 6 of --trajectory for a moving scene, found 7"):
        run(files, tmp_path / "a", trajectory=("left",) * 7, **chosen)
    scene, _ = run(
        files, tmp_path / "a", trajectory=("left",) * 7, first_frame_only=True, dry_run=True, **chosen
    )
    assert len(scene.record["paths"]) == 7


@pytest.mark.slow
def test_a_picture_alone_gets_the_depth_that_ships(files, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "why_no_moge", lambda: "MoGe is not installed")
    _, printed = run(files, tmp_path / "made", depth="auto", num_trajectories=1)
    assert "the small network that ships (MoGe is not installed)" in printed
    record = json.loads((tmp_path / "made" / "record.json").read_text())
    assert record["depth"]["estimator"] == load_small_depth().name
    depth = LyraStore(tmp_path / "made" / "latents").scene("photo").clips[5].depth([0])
    # Its median is 1, times the units that `settings` asks for.
    assert float(depth.median()) == pytest.approx(4, rel=0.1)
    assert depth.std() > 0


def test_the_fitted_unit_is_the_one_that_reproduces_the_clips(monkeypatch):
    """A decoder that is sharp at 3.7 units of depth and worse elsewhere gets about that."""
    from lyra_ns.generation import length_unit

    cameras = path_of_poses(torch.eye(4).repeat(9, 1, 1), torch.tensor([90.0, 90, 48, 32]), 64, 96)[None]
    cameras.camera_to_world[0, :, 0, 3] = torch.linspace(0, 1, 9)
    seen: list[float] = []

    def reconstructed(z, path, time):
        seen.append(float(path.camera_to_world[0, -1, 0, 3]))
        return seen[-1]

    reconstruct = mock.create_autospec(Reconstructor, instance=True, side_effect=reconstructed)
    reconstruct.device = torch.device("cpu")

    def rendered(factor, views, settings):
        from types import SimpleNamespace

        shade = 0.6 + 0.1 * np.log(factor / 3.7) ** 2
        return SimpleNamespace(rgb=torch.full((1, 64, 96, 3), shade))

    monkeypatch.setattr(length_unit, "render", rendered)
    video = torch.full((9, 3, 64, 96), 128, dtype=torch.uint8)
    settings, steps = RenderSettings(response="ewa"), []
    z = torch.zeros(1, 16, 2, 8, 12)
    unit = fitted_unit(
        reconstruct, z, cameras, [video], settings, 2.4, on_step=lambda *step: steps.append(step)
    )
    assert seen == pytest.approx([2.4, 3.6, 5.4])
    assert unit.factor == pytest.approx(3.6)
    assert unit.origin == "fitted: of 3 the clips are reproduced best in it"
    assert set(unit.tried) == {"2.4", "3.6", "5.4"}
    assert steps == [(1, 6), (2, 6), (3, 6)]


def hill(top: float, width: float = 0.5):
    """Closeness in dB of a decoder that knows units of `top`, and the units that it is asked for."""
    asked: list[float] = []

    def closeness(unit: float) -> float:
        asked.append(unit)
        return 25 - (np.log(unit / top) / width) ** 2

    return closeness, asked


@pytest.mark.parametrize("top", [0.6, 1.1, 2.0, 2.9, 3.0, 3.6, 4.5, 7.0, 10.0, 18.0])
def test_the_search_for_the_unit_goes_on_outwards_and_asks_seldom(top):
    closeness, asked = hill(top)
    tried = search_unit(closeness, 3.0)
    assert list(tried) == asked
    assert len(asked) <= (4 if 1.5 < top < 7 else 6)
    best = max(tried, key=tried.__getitem__)
    assert abs(np.log(best / top)) < (0.15 if 1.5 < top < 7 else 0.5 * np.log(1.5))


def test_the_search_for_the_unit_is_bounded_and_ends_where_nothing_is_gained():
    closeness, asked = hill(1e4)
    assert max(search_unit(closeness, 3.0)) == pytest.approx(3.0 * 1.5**5)
    closeness, asked = hill(1e-4)
    assert min(search_unit(closeness, 3.0)) == pytest.approx(3.0 / 1.5**4)
    asked.clear()
    # A decoder to which the unit hardly matters.
    closeness, asked = hill(30.0, width=50.0)
    search_unit(closeness, 3.0)
    assert asked == pytest.approx([3.0, 4.5, 6.75])


@pytest.mark.slow
def test_units_of_the_shipped_kind_of_decoder_are_fitted_by_default(files, tmp_path, monkeypatch):
    asked = []

    def fitted(reconstruct: Reconstructor, *arguments):
        asked.append(reconstruct)
        return LengthUnit(2.5, "fitted", {"2.5": 20.0})

    monkeypatch.setattr(run_module, "fitted_unit", fitted)
    scene, printed = run(files, tmp_path / "a", units="auto", num_trajectories=1)
    assert len(asked) == 1
    assert scene.record["unit"]["factor"] == 2.5
    assert "lengths times 2.5" in printed


def test_the_farthest_frame_of_a_closed_loop_is_not_its_last():
    cameras = path_of_poses(torch.eye(4).repeat(9, 1, 1), torch.tensor([90.0, 90, 48, 32]), 64, 96)[None]
    cameras.camera_to_world[0, :, 0, 3] = torch.sin(torch.linspace(0, torch.pi, 9))
    assert farthest_frames(cameras) == [4]


@pytest.mark.slow
def test_a_prompt_is_painted_first(files, tmp_path, monkeypatch):
    from lyra_ns.text import to_image

    asked = []

    def load(model, device, memory):
        def paint(prompt, height, width, seed):
            asked.append((model, prompt, height, width, seed))
            return torch.full((3, height, width), 90, dtype=torch.uint8)

        return paint

    monkeypatch.setattr(to_image, "load_text_to_image", load)
    chosen = {"input": None, "depth": "plane", "text_to_image": "some/model", "dry_run": True}
    scene, _ = run(files, tmp_path / "a", prompt="A red barn, at dusk", seed=7, **chosen)
    assert asked == [("some/model", "A red barn, at dusk", 128, 192, 7)]
    assert scene.record["scene"] == "a_red_barn_at_dusk"
    # The run after it takes the same picture, which another model run might not paint again to the bit.
    run(files, tmp_path / "a", prompt="A red barn, at dusk", seed=7, **chosen)
    assert len(asked) == 1
    again = settings(files, tmp_path / "a", prompt="A red barn, at dusk", seed=7, **chosen)
    picture = read_source("prompt", again, ClipSizes(VideoSize(9, 64, 96)), torch.device("cpu")).rgb
    assert torch.equal(picture, torch.full((1, 3, 128, 192), 90, dtype=torch.uint8))
    run(files, tmp_path / "a", prompt="A red barn, at dusk", seed=8, **chosen)
    assert asked[1:] == [("some/model", "A red barn, at dusk", 128, 192, 8)]
    # Nothing is gained by painting large clips larger than they are.
    large = settings(files, tmp_path / "b", input=None, prompt="A red barn", height=384, width=640)
    read_source("prompt", large, ClipSizes(VideoSize(9, 384, 640)), torch.device("cpu"))
    assert asked[-1][2:4] == (384, 640)


def test_every_setting_stands_in_one_group_of_the_help():
    shown = [name for names in GROUPS.values() for name in names]
    assert sorted(shown) == sorted(field.name for field in fields(GenerateSettings))


def test_the_folder_is_named_after_the_input(tmp_path):
    (tmp_path / "scenes.d").mkdir()
    assert default_output(Path("pictures/photo.of.me.jpg")) == Path("photo.of.me")
    assert default_output(tmp_path / "scenes.d") == Path("scenes.d_scene")
    assert default_output(Path("no_ending")) == Path("no_ending_scene")
    assert default_output(None) == Path("scene")


def test_the_help_of_generate_shows_groups_and_every_text(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ns-lyra", "generate", "--help"])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main.main()
    shown = capsys.readouterr().out
    boxes = [f"{title.replace('_', '-')} options" for title in GROUPS]
    places = [shown.index(box) for box in boxes]
    assert places == sorted(places)
    assert "named after the input" in " ".join(shown.split())
    assert "Share of Gaussians, the least opaque ones" in shown


def test_the_command_line_is_the_same_call(files, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(run_module, "generate", calls.append)
    line = "generate photo.png -o out --trajectory left --trajectory up --depth plane --units fitted --fov 60"
    monkeypatch.setattr(sys, "argv", ["ns-lyra", *line.split()])
    main.main()
    (called,) = calls
    assert type(called) is GenerateSettings
    assert (called.input, called.output) == (Path("photo.png"), Path("out"))
    assert (called.trajectory, called.depth, called.units, called.fov) == (
        ("left", "up"),
        "plane",
        "fitted",
        60,
    )
    monkeypatch.undo()
    monkeypatch.setattr(
        sys, "argv", ["ns-lyra", "generate", str(tmp_path / "no.png"), "-o", str(tmp_path / "o")]
    )
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().err.startswith("ns-lyra: input ")
