"""Pictures, videos and depth as users have them: what is read, what is done to it, and what is refused."""

from __future__ import annotations

import io
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lyra_ns.cameras import CameraPath
from lyra_ns.data.depth_files import write_exr
from lyra_ns.data.images import finer_size, read_image
from lyra_ns.data.resize import resize_rgb
from lyra_ns.data.video import VideoSize, read_frames, video_bytes
from lyra_ns.depth import registry
from lyra_ns.depth.base import ASSUMED_FOV, PlaneDepth, read_depth_file
from lyra_ns.depth.moge import MoGeDepth
from lyra_ns.depth.registry import load_depth
from lyra_ns.depth.vipe import ViPEClip
from lyra_ns.generation import inputs, run
from lyra_ns.generation.inputs import (
    ClipSizes,
    SourceFrames,
    image_input,
    kind_of,
    read_image_input,
    read_video_input,
)
from lyra_ns.generation.plan import depth_of_frames
from lyra_ns.generation.run import generate
from lyra_ns.generation.settings import GenerateSettings

SIZE = VideoSize(9, 64, 96)
SIZES, WHOLE = ClipSizes(SIZE), ClipSizes(SIZE, keeps_aspect=True)
HEIGHT, WIDTH = 80, 120


def colours(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A picture whose red grows to the right, green downwards."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width).round()
    picture[..., 1] = np.linspace(0, 255, height).round()[:, None]
    picture[..., 2] = 60
    return picture


def settings(**changes) -> GenerateSettings:
    return GenerateSettings(**{"input": Path("x.png"), "output": Path("out")} | changes)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def test_a_plain_picture_is_read_as_it_is(tmp_path):
    read = read_image(saved(tmp_path / "a.png", Image.fromarray(colours())))
    assert np.array_equal(read.rgb.permute(1, 2, 0).numpy(), colours())
    assert (read.notes, read.focal_share) == ((), None)


def test_exif_turns_the_picture_and_tells_the_focal_length(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 26
    turned = Image.fromarray(colours()).transpose(Image.Transpose.ROTATE_90)
    read = read_image(saved(tmp_path / "a.png", turned, exif=exif))
    assert np.array_equal(read.rgb.permute(1, 2, 0).numpy(), colours())
    assert any("upright" in note for note in read.notes)
    assert read.focal_share == pytest.approx(26 / math.hypot(36, 24) * math.hypot(80, 120) / 120)


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.dstack([colours(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    pixels[:, :40, 3] = 0
    pixels[:, 40:80, 3] = 51
    read = read_image(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    rgb = read.rgb.permute(1, 2, 0).float()
    assert bool((rgb[:, :40] == 255).all())
    expected = 0.2 * torch.from_numpy(colours()).float()[:, 40:80] + 0.8 * 255
    assert float((rgb[:, 40:80] - expected).abs().max()) <= 1.5
    assert np.array_equal(rgb[:, 80:].byte().numpy(), colours()[:, 80:])
    assert any("white" in note for note in read.notes)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA", "I;16"])
def test_other_kinds_of_pixels_become_colours(tmp_path, mode):
    picture = Image.fromarray(colours())
    if mode == "I;16":
        grey = np.array(picture.convert("L")).astype(np.uint16) * 257
        path = saved(tmp_path / "a.png", Image.fromarray(grey))
    else:
        path = saved(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), picture.convert(mode))
    grey_mode = "L" if mode in ("LA", "I;16") else mode
    expected = np.array(picture.convert(grey_mode).convert("RGB"))
    found = read_image(path)
    assert np.array_equal(found.rgb.permute(1, 2, 0).numpy(), expected)
    assert bool(found.notes) == (mode not in ("P", "LA"))


def bad_images(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = saved(
        folder / "whole.jpg", Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), "uint8"))
    )
    cut = folder / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:900])
    text = folder / "text.png"
    text.write_text("no picture")
    clear = saved(folder / "clear.png", Image.new("RGBA", (99, 99)))
    floats = saved(folder / "floats.tif", Image.fromarray(np.zeros((99, 99), np.float32)))
    return {
        "missing": (folder / "missing.png", "does not exist"),
        "cut": (cut, "must be whole, found damage"),
        "text": (text, "found none of them"),
        "clear": (clear, "wholly transparent"),
        "floats": (floats, "floating-point"),
        "tiny": (saved(folder / "tiny.png", Image.new("RGB", (200, 63))), "at least 64 pixels .* 200 x 63"),
        "long": (
            saved(folder / "long.png", Image.new("RGB", (301, 100))),
            "longer than 3 times .* 301 x 100",
        ),
    }


@pytest.mark.parametrize("name", ["missing", "cut", "text", "clear", "floats", "tiny", "long"])
def test_bad_images_are_refused_in_one_sentence(tmp_path, name):
    path, message = bad_images(tmp_path)[name]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_picture_is_cropped_in_the_middle_and_its_lens_with_it():
    picture = torch.from_numpy(colours(160, 300)).permute(2, 0, 1)
    given = settings(intrinsics=(200.0, 200.0, 150.0, 80.0))
    frames = image_input("a", "image", picture, given, SIZES)
    # 300 x 160 loses 60 columns and is kept at twice 96 x 64.
    assert frames.rgb.shape == (1, 3, 128, 192)
    torch.testing.assert_close(frames.intrinsics, torch.tensor([160.0, 160.0, 96.0, 64.0]))
    assert float(frames.rgb[0, 0, 0, 0]) == pytest.approx(255 * 30.5 / 299, abs=2)
    assert "cropped in the middle to 240 x 160 (20% cut away)" in frames.notes[-1]


@pytest.mark.parametrize("bad", [(200.0, float("nan"), 150.0, 80.0), (0.0, 200.0, 150.0, 80.0)])
def test_a_lens_that_no_camera_has_is_refused(bad):
    picture = torch.zeros(3, 160, 300, dtype=torch.uint8)
    with pytest.raises(ValueError, match="--intrinsics"):
        image_input("a", "image", picture, settings(intrinsics=bad), SIZES)


def test_a_crop_that_takes_much_says_how_to_avoid_it():
    picture = torch.zeros(3, 400, 300, dtype=torch.uint8)
    (note,) = image_input("a", "image", picture, settings(), SIZES).notes
    assert "50% cut away" in note
    assert "--height 96 --width 64 would keep it" in note
    wide = torch.zeros(3, 100, 160, dtype=torch.uint8)
    assert "would keep" not in image_input("a", "image", wide, settings(), SIZES).notes[0]


def test_all_of_a_picture_is_kept_whatever_its_aspect():
    """Its pixels, and a lens that is given, go through no crop; upright, lying or square."""
    for height, width, size in ((240, 160, (96, 64)), (160, 240, (64, 96)), (170, 170, (80, 80))):
        picture = torch.from_numpy(colours(height, width)).permute(2, 0, 1)
        lens = (200.0, 200.0, width / 2, height / 2)
        frames = image_input("a", "image", picture, settings(intrinsics=lens), WHOLE)
        assert (frames.clip_size.height, frames.clip_size.width) == size
        assert frames.rgb.shape[-2:] == (2 * size[0], 2 * size[1])
        corners = frames.rgb[0, :2, (0, -1), (0, -1)]
        assert float((corners - torch.tensor([0.0, 255.0])).abs().max()) < 4
        share = 2 * size[1] / width
        torch.testing.assert_close(frames.intrinsics, torch.tensor(lens) * share, rtol=1e-6, atol=1e-4)
        assert "not cropped" in frames.notes[-1]


def test_a_very_long_picture_is_cropped_to_the_longest_clips_and_the_user_is_told():
    picture = torch.zeros(3, 100, 300, dtype=torch.uint8)
    frames = image_input("a", "image", picture, settings(), WHOLE)
    assert (frames.clip_size.height, frames.clip_size.width) == (48, 112)
    assert "22% cut away), for clips of 112 x 48; clips get no longer than 2.4:1" in frames.notes[-1]


def test_an_unknown_lens_is_as_wide_whichever_way_the_camera_was_held():
    focal = {}
    for height, width in ((240, 160), (160, 240)):
        picture = torch.from_numpy(colours(height, width)).permute(2, 0, 1)
        frames = image_input("a", "image", picture, settings(), WHOLE)
        found = depth_of_frames(frames, "plane")
        focal[height] = float(found.intrinsics[0])
        assert ("58 degrees high" in found.intrinsics_origin) == (height > width)
    assert focal[240] == pytest.approx(focal[160]) == pytest.approx(96 / math.tan(math.radians(58 / 2)))


def test_small_clips_are_warped_from_a_finer_picture_where_there_is_one():
    assert finer_size((128, 192), SIZE) == (128, 192)
    assert finer_size((127, 300), SIZE) == (64, 96)
    assert finer_size((3000, 4000), VideoSize(121, 704, 1280)) == (704, 1280)
    assert finer_size((4000, 3000), VideoSize(9, 704, 448)) == (704, 448)


def test_a_lens_is_taken_from_the_user_then_from_exif_and_then_assumed():
    picture = torch.from_numpy(colours()).permute(2, 0, 1)
    by_fov = image_input("a", "image", picture, settings(fov=90.0), SIZES, focal_share=2.0)
    assert float(by_fov.intrinsics[0]) == pytest.approx(60 * 96 / 120)
    assert "--fov 90" in by_fov.intrinsics_origin
    by_exif = image_input("a", "image", picture, settings(), SIZES, focal_share=2.0)
    assert float(by_exif.intrinsics[0]) == pytest.approx(2.0 * 96)
    assert "EXIF" in by_exif.intrinsics_origin
    nothing = image_input("a", "image", picture, settings(), SIZES)
    assert nothing.intrinsics is None
    found = depth_of_frames(nothing, "plane")
    assert float(found.intrinsics[0]) == pytest.approx(48 / math.tan(math.radians(ASSUMED_FOV / 2)))
    assert "assumed" in found.intrinsics_origin


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"intrinsics": (0.0, 10.0, 5.0, 5.0)}, "focal lengths above 0"),
        ({"intrinsics": (10.0, 10.0, 500.0, 5.0)}, "a centre inside"),
        ({"fov": 180.0}, "between 0 and 180"),
    ],
)
def test_impossible_lenses_are_refused(given, message):
    picture = torch.from_numpy(colours()).permute(2, 0, 1)
    with pytest.raises(ValueError, match=message):
        image_input("a", "image", picture, settings(**given), SIZES)


def a_video(path: Path, num_frames: int = 12) -> Path:
    """A grey video whose frame k has the value 20 k."""
    rgb = torch.stack([torch.full((3, 64, 96), 20 * k, dtype=torch.uint8) for k in range(num_frames)])
    path.write_bytes(video_bytes(rgb))
    return path


def values(rgb: torch.Tensor) -> list[int]:
    return [round(float(value) / 20) for value in rgb.float().mean((1, 2, 3))]


def test_videos_give_the_frames_asked_for_and_say_which(tmp_path):
    path = a_video(tmp_path / "v.mp4")
    every = read_frames(path, 9, start=2)
    assert values(every.rgb) == list(range(2, 11))
    assert every.notes == ("frames 2 to 10",)
    thinned = read_frames(path, 5, fps=12.0)
    assert values(thinned.rgb) == [0, 2, 4, 6, 8]
    assert "taken at 12 of 24 frames/s" in thinned.notes


@pytest.mark.slow
def test_frames_are_resized_as_they_are_read(tmp_path, monkeypatch):
    """What numpy holds stays below the 38 MB of the frames; colours and lens are those of the whole."""
    coarse = torch.rand(36, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    rgb = (torch.nn.functional.interpolate(coarse, (600, 640), mode="bilinear") * 255).to(torch.uint8)
    (tmp_path / "v.mp4").write_bytes(video_bytes(rgb))
    held = []

    def counted(rgb, height, width):
        held.append(len(rgb) if tuple(rgb.shape[-2:]) != (height, width) else 0)
        return resize_rgb(rgb, height, width)

    monkeypatch.setattr(inputs, "resize_rgb", counted)
    sizes, chosen = ClipSizes(VideoSize(33, 64, 96)), settings(frames_from=3, fov=60.0)
    tracemalloc.start()
    read = read_video_input(tmp_path / "v.mp4", chosen, sizes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 33e6
    assert max(held) == 8
    assert sum(held) == 33
    whole = read_frames(tmp_path / "v.mp4", 33, start=3)
    assert whole.given_size == read.given_size == (600, 640)
    assert torch.equal(read.rgb, resize_rgb(whole.rgb, 128, 192))
    alone = image_input("v", "video", whole.rgb[0], chosen, sizes)
    torch.testing.assert_close(read.intrinsics, alone.intrinsics)
    assert read.notes[1:] == alone.notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 13}, "13 frames from frame 0 on, which reach frame 12, found 12 frames"),
        ({"num_frames": 9, "start": 5}, "reach frame 13, found 12 frames"),
        ({"num_frames": 9, "fps": 12.0}, "9 frames at 12 frames/s .* reach frame 16, found 12"),
        ({"num_frames": 2, "fps": 60.0}, "at least the 60 frames/s of --fps, found 24"),
    ],
)
def test_videos_that_are_too_short_are_refused_with_numbers(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_frames(a_video(tmp_path / "v.mp4"), **arguments)


def test_kinds_of_inputs_are_told_apart(tmp_path):
    for name in ("a.PNG", "v.MOV", "l.tar"):
        (tmp_path / name).touch()
    (tmp_path / "vipe" / "pose").mkdir(parents=True)
    (tmp_path / "vipe" / "pose" / "c.npz").touch()
    kinds = {name: kind_of(tmp_path / name) for name in ("a.PNG", "v.MOV", "l.tar", "vipe", ".")}
    assert kinds == {"a.PNG": "image", "v.MOV": "video", "l.tar": "latents", "vipe": "vipe", ".": "latents"}
    (tmp_path / "a.heic").touch()
    with pytest.raises(ValueError, match=r"\.heic"):
        kind_of(tmp_path / "a.heic")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        kind_of(tmp_path / "nothing.png")


def depth_files(folder: Path, depth: np.ndarray) -> list[Path]:
    np.save(folder / "d.npy", depth)
    np.savez(folder / "d.npz", depth=depth, other=depth * 2)
    (folder / "d.exr").write_bytes(write_exr(depth))
    Image.fromarray((depth * 1000).round().astype(np.uint16)).save(folder / "d.png")
    return [folder / f"d.{suffix}" for suffix in ("npy", "npz", "exr", "png")]


def test_depth_is_read_from_all_kinds_of_files(tmp_path):
    depth = np.linspace(0.5, 9, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    depth[:10] = 0
    for path in depth_files(tmp_path, depth):
        torch.testing.assert_close(read_depth_file(path), torch.from_numpy(depth), atol=6e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.npy", np.zeros((9, 9)), "positive somewhere"),
        ("d.npy", np.ones((9, 9, 3)), r"numbers \[height, width\]"),
        ("d.npy", np.array([{}]), "one array of depths"),
        ("d.tif", None, "must end in"),
        ("d.exr", b"nothing", "one array of depths"),
    ],
)
def test_bad_depth_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_bytes(content or b"")
    with pytest.raises(ValueError, match=message):
        read_depth_file(path)


def test_depth_of_the_whole_picture_is_cropped_with_it_and_its_gaps_filled(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(colours()))
    depth = np.ones((40, 60), np.float32) * np.arange(1, 61, dtype=np.float32)
    depth[10:14, 20:24] = np.nan
    np.save(tmp_path / "d.npy", depth)
    frames = read_image_input(path, settings(), SIZES)
    found = depth_of_frames(frames, str(tmp_path / "d.npy"))
    assert bool((found.depth > 0).all())
    assert float(found.depth[0, 0, -1]) == 60
    assert "gaps" in found.reason
    np.save(tmp_path / "square.npy", np.ones((40, 40), np.float32))
    with pytest.raises(ValueError, match=r"aspect of the picture \(120 x 80.*found 40 x 40"):
        depth_of_frames(frames, str(tmp_path / "square.npy"))


def test_depth_of_a_video_keeps_one_scale(monkeypatch):
    class Restless:
        name = "restless"
        calls = 0

        def predict(self, image, intrinsics=None):
            from lyra_ns.depth.base import DepthPrediction

            self.calls += 1
            depth = torch.full(image.shape[1:], float(self.calls))
            return DepthPrediction(depth, intrinsics, False, False, self.name)

    estimator = Restless()
    monkeypatch.setattr(
        "lyra_ns.generation.plan.load_depth", lambda *_: registry.ChosenDepth(estimator, "test")
    )
    rgb = torch.zeros(3, 3, 64, 96, dtype=torch.uint8)
    frames = SourceFrames("v", "video", rgb, None, "", (64, 96), SIZE)
    assert depth_of_frames(frames, "restless/depth").depth.mean((1, 2)).tolist() == [1.0, 1.0, 1.0]
    cameras = CameraPath(
        torch.eye(4).expand(3, 4, 4), torch.tensor([90.0, 90, 48, 32]).expand(3, 4), torch.zeros(3), 64, 96
    )
    vipe = ViPEClip(rgb, torch.full((3, 64, 96), 7.0), cameras, None)
    matched = depth_of_frames(replace(frames, kind="vipe", vipe=vipe), "restless/depth")
    assert matched.depth.mean((1, 2)).tolist() == [7.0, 7.0, 7.0]


def test_depth_sources_are_named_and_reasons_given(monkeypatch):
    assert "nothing was estimated" in load_depth("plane").reason
    with pytest.raises(ValueError, match="auto, small, moge"):
        load_depth("shallow")
    monkeypatch.setattr(registry, "_small", lambda device: PlaneDepth(2.0))
    monkeypatch.setattr(registry, "why_no_moge", lambda: "MoGe is not installed")
    chosen = load_depth("auto")
    assert chosen.estimator == PlaneDepth(2.0)
    assert "MoGe is not installed" in chosen.reason
    monkeypatch.setattr(registry, "why_no_moge", lambda: None)
    monkeypatch.setattr(
        registry, "load_moge", lambda version, device: MoGeDepth(torch.nn.Identity(), version)
    )
    assert load_depth("auto").estimator.name == "moge-v1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune_ratio": 1.5}, "--prune-ratio from 0 to below 1, found 1.5"),
        ({"prune_ratio": float("nan")}, "--prune-ratio"),
        ({"plucker_dtype": "float16"}, "as plucker_dtype, found 'float16'"),
        ({"ray_dtype": "half"}, "as ray_dtype"),
        ({"fov": 180.0}, "--fov between 0 and 180"),
        ({"centre_quantile": 1.0}, "--centre-quantile"),
        ({"pose_scale": 0.0}, "--pose-scale above 0"),
    ],
)
def test_numbers_that_no_scene_has_are_refused_before_any_work(tmp_path, changes, message):
    saved(tmp_path / "x.png", Image.fromarray(colours()))
    given = settings(input=tmp_path / "x.png", output=tmp_path / "out", checkpoint="never read")
    for name, value in changes.items():
        setattr(given, name, value)
    with pytest.raises(ValueError, match=message):
        generate(given)
    assert not (tmp_path / "out").exists()


def test_a_renderer_that_is_not_there_is_told_before_the_clips_are_made(tmp_path, monkeypatch):
    def refuse(given, device):
        assert given.response == "ray3d"
        raise ValueError("response 'ray3d' needs a gsplat with 3DGUT")

    monkeypatch.setattr(run, "choose_renderer", refuse)
    saved(tmp_path / "x.png", Image.fromarray(colours()))
    given = settings(input=tmp_path / "x.png", output=tmp_path / "out", response="ray3d", device="cpu")
    printed = io.StringIO()
    with pytest.raises(ValueError, match="3DGUT"):
        generate(given, Console(file=printed))
    assert "[2/" not in printed.getvalue()
