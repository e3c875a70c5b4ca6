"""The benchmark on photographs: what it is made of, how it scores, and what it keeps in its file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.photograph_tables import PHOTOGRAPH_TABLES
from benchmarks.photographs import eight, five, orbits, right, warped_clips
from benchmarks.photographs.__main__ import ARGUMENTS
from benchmarks.photographs.crops import Crop
from benchmarks.photographs.held_out import EIGHT, TEN, HeldOut, load_held_out
from benchmarks.photographs.pack import packed, read_pack, unpacked, write_pack
from benchmarks.photographs.result_file import read_results, write_rows
from benchmarks.photographs.scenes import MadeScene, PhotographView, SceneMaker
from benchmarks.photographs.views import VIEW_PIXELS, on_arc, per_pixel, seen, view_size
from benchmarks.table_text import NOTHING
from lyra_ns.cameras import CameraPath, project
from lyra_ns.codec import load_codec
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.evaluation.baselines import COVERED_ALPHA
from lyra_ns.export.ply import save_ply


def drawn_picture(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    """A smooth random picture, the same on every machine."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))


def difference(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A distance of images that needs no network."""
    return (left - right).abs().mean((1, 2, 3))


@pytest.fixture
def small_clips(monkeypatch: pytest.MonkeyPatch) -> dict[str, warped_clips.WarpedClips]:
    """Clips of a drawn picture at a small size, made as all clips are."""
    monkeypatch.setattr(warped_clips, "HEIGHT", 32)
    monkeypatch.setattr(warped_clips, "WIDTH", 48)
    return warped_clips.warped_clips({"drawn": packed(drawn_picture())})


@pytest.mark.slow
def test_clips_begin_with_the_photograph_and_have_no_holes(small_clips) -> None:
    clips = small_clips["drawn"]
    assert clips.frames.shape == (6, 17, 3, 32, 48)
    assert clips.frames.dtype == torch.uint8
    torch.testing.assert_close(clips.cameras.camera_to_world[:, 0], torch.eye(4).expand(6, 4, 4))
    picture = unpacked(packed(drawn_picture()))
    photograph = Crop.of_aspect(picture, 32, 48).cut(picture, 32, 48)
    first = clips.frames[:, 0].movedim(1, -1).float() / 255
    assert eight.pooled_psnr(first, photograph.expand_as(first)) > 24
    assert (clips.frames[:, 16] != clips.frames[:, 0]).any()
    # White shows where nothing was drawn; nowhere else is this picture so bright.
    assert clips.frames.float().mean(2).max() < 250


@pytest.mark.slow
def test_the_protocol_is_what_it_was(small_clips) -> None:
    """Golden numbers of the clips: a decoder of tomorrow is judged by the frames of today."""
    clips = small_clips["drawn"]
    centres = clips.cameras.camera_to_world[:, 16, :3, 3]
    assert float(clips.cameras.intrinsics[0, 0, 0]) == pytest.approx(0.9 * 48)
    # The spiral, which is first, has come back; all others end in the middle of their official ranges.
    moves = [[0, 0, 0], [-0.25, 0, 0], [0.25, 0, 0], [0, -0.15, 0], [0, 0, -0.35], [0, 0, 0.35]]
    torch.testing.assert_close(centres, torch.tensor(moves) * 4.5 * 16 / 17, atol=1e-5, rtol=1e-5)
    means = clips.frames.float().mean((2, 3, 4))[:, [0, 8, 16]]
    torch.testing.assert_close(means, GOLDEN_MEANS, atol=0.6, rtol=0)


GOLDEN_MEANS = torch.tensor(
    [
        [132.3, 132.3, 132.3],
        [132.3, 130.6, 129.8],
        [132.3, 134.4, 136.5],
        [132.3, 132.0, 131.8],
        [132.3, 134.0, 135.7],
        [132.3, 128.9, 127.6],
    ]
)
"""Mean values of frames 0, 8 and 16 of every path."""


def test_paths_are_shorter_where_something_is_near() -> None:
    """A twentieth of the picture may be nearer; what is farther than 0.7 of the median shortens nothing."""
    depth = torch.full((40, 50), warped_clips.UNIT)
    whole = warped_clips._six_paths(depth)
    depth[:4] *= 0.35
    halved = warped_clips._six_paths(depth)
    poses, expected = (paths.camera_to_world[..., :3, 3] for paths in (halved, whole))
    torch.testing.assert_close(poses, expected / 2)
    depth[1:] = warped_clips.UNIT
    torch.testing.assert_close(warped_clips._six_paths(depth).camera_to_world, whole.camera_to_world)


SMALL_DECODER = DecoderConfig(
    width=32, depth=2, pattern="1M1T", num_heads=2, state_size=8, head_dim=16, cell_size=4
)


def test_scores_pool_errors_and_leave_the_photograph_apart() -> None:
    """A wrong photograph does not change what is said of the paths."""
    truth = torch.rand(13, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    coded, rendered = truth + 0.1, truth.clone()
    rendered[0] += 0.2
    rendered[-1] += 0.01
    found = eight.scores(eight.Judged(truth, coded, rendered), difference)
    assert found["codec_psnr"] == pytest.approx(20.0, abs=1e-3)
    assert found["codec_lpips"] == pytest.approx(0.1, abs=1e-5)
    assert found["psnr"] == pytest.approx(-10 * math.log10(0.04 / 12), abs=1e-3)
    assert found["lpips"] == pytest.approx(0.2 / 12, abs=1e-5)
    assert found["input_psnr"] == pytest.approx(40.0, abs=1e-2)


@pytest.mark.slow
def test_a_decoder_is_judged_at_two_frames_of_every_path(small_clips) -> None:
    decoder = LatentGaussianDecoder(SMALL_DECODER).eval()
    clips = small_clips["drawn"]
    judged = eight.judged_frames(decoder, load_codec("linear"), clips)
    assert judged.truth.shape == judged.coded.shape == judged.rendered.shape == (13, 32, 48, 3)
    expected = clips.frames[2, 16].movedim(0, -1).float() / 255
    torch.testing.assert_close(judged.truth[5], expected)
    torch.testing.assert_close(judged.truth[-1], clips.frames[0, 0].movedim(0, -1).float() / 255)
    rows = eight.evaluate_clips(decoder, load_codec("linear"), small_clips, difference)
    assert [row["photograph"] for row in rows] == ["drawn", "mean"]
    assert rows[0]["codec_psnr"] == pytest.approx(eight.pooled_psnr(judged.coded[:-1], judged.truth[:-1]))


def test_packed_photographs_come_back(tmp_path: Path) -> None:
    """The middle at one size, a few levels from the picture, whatever carries it."""
    photographs = {name: packed(drawn_picture(seed=seed)) for seed, name in enumerate(("one", "two"))}
    write_pack(photographs, tmp_path / "pack.safetensors")
    assert read_pack(tmp_path / "pack.safetensors") == photographs
    picture = drawn_picture()
    back = unpacked(photographs["one"])
    assert back.shape == (480, 768, 3)
    expected = np.asarray(Crop.of_aspect(picture, 480, 768).resized(picture, 480, 768))
    assert np.abs(back.astype(int) - expected).mean() < 3


def test_other_files_are_no_packs(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("nothing")
    with pytest.raises(FileNotFoundError, match="--pack-held-out"):
        read_pack(tmp_path / "none")
    with pytest.raises(ValueError, match="write it anew"):
        read_pack(tmp_path / "other")


def test_photographs_of_packages_are_found_and_cut(tmp_path: Path) -> None:
    folder = tmp_path / "package" / "usr" / "share"
    folder.mkdir(parents=True)
    Image.fromarray(drawn_picture()).save(folder / "Far.png")
    whole, part = HeldOut("whole", "some", "Far.png"), HeldOut("part", "some", "Far.png", (10, 5, 40, 85))
    found = load_held_out((whole, part), tmp_path)
    np.testing.assert_array_equal(found["whole"], drawn_picture())
    np.testing.assert_array_equal(found["part"], drawn_picture()[5:85, 10:40])


@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_a_missing_folder_is_said_in_one_sentence(tmp_path: Path, folder: str | None) -> None:
    with pytest.raises(FileNotFoundError, match=r"mate-backgrounds.*--held-out$"):
        load_held_out(EIGHT, None if folder is None else tmp_path / folder)


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    Image.fromarray(drawn_picture()).save(tmp_path / "Dune.jpg")
    with pytest.raises(FileNotFoundError, match=r"expected Garden.jpg, Wood.jpg below"):
        load_held_out(EIGHT, tmp_path)


def test_the_photographs_of_scikit_image_need_no_folder() -> None:
    found = load_held_out([held for held in TEN if held.package == "scikit-image"], None)
    assert {name: picture.shape for name, picture in found.items()} == {
        "astronaut": (512, 512, 3),
        "coffee": (400, 600, 3),
        "rocket": (427, 640, 3),
        "motorcycle": (500, 741, 3),
        "cat": (300, 451, 3),
    }


def test_crops_and_their_cameras_agree() -> None:
    """A point of the whole photograph is where its part shows it."""
    crop = Crop.of_aspect(np.zeros((100, 300, 3), np.uint8), 50, 100)
    assert (crop.top, crop.left, crop.rows, crop.columns) == (0, 50, 100, 200)
    assert crop.share_of(np.zeros((100, 300, 3))) == pytest.approx(2 / 3)
    lens = torch.tensor([120.0, 120.0, 150.0, 50.0])
    camera = crop.camera(lens, 50, 100)
    torch.testing.assert_close(crop.whole_lens(camera.intrinsics, 50, 100), lens)
    pixel, _ = project(torch.tensor([[[1.0, -0.5, 4.0]]]), camera.reshape(1))
    x, y = 150 + 120 / 4, 50 - 60 / 4
    torch.testing.assert_close(pixel[0, 0], torch.tensor([(x - 50) / 2, y / 2]))


@pytest.mark.parametrize(("height", "width"), [(160, 256), (208, 208), (256, 176)])
def test_views_keep_their_aspect_and_area(height: int, width: int) -> None:
    rows, columns = view_size(height, width)
    assert rows / columns == pytest.approx(height / width, rel=0.01)
    assert rows * columns == pytest.approx(VIEW_PIXELS, rel=0.01)


def camera_of(height: int, width: int) -> CameraPath:
    """A camera [] whose image is as wide as it is far away."""
    intrinsics = torch.tensor([float(width), float(width), width / 2, height / 2])
    return CameraPath(torch.eye(4), intrinsics, torch.tensor(0.0), height, width)


def test_a_camera_on_an_arc_looks_at_the_centre_from_as_far_away() -> None:
    camera = on_arc(camera_of(40, 60), 16, 3.0)
    centre = torch.tensor([0.0, 0.0, 3.0])
    position = camera.camera_to_world[:3, 3]
    assert float((position - centre).norm()) == pytest.approx(3.0, abs=1e-5)
    assert math.degrees(math.atan2(float(position[0]), float(3 - position[2]))) == pytest.approx(16, abs=1e-3)
    pixel, depth = project(centre[None, None], camera.reshape(1))
    torch.testing.assert_close(pixel[0, 0], torch.tensor([30.0, 20.0]))
    assert float(depth) == pytest.approx(3.0, abs=1e-5)
    torch.testing.assert_close(on_arc(camera_of(40, 60), 0, 3.0).camera_to_world, torch.eye(4))


@pytest.fixture
def view() -> PhotographView:
    """A drawn picture on a slanted plane, whose depth is known."""
    rgb = torch.from_numpy(drawn_picture(48, 64).copy()).float() / 255
    found = PhotographView(rgb, camera_of(48, 64), 2.0)
    depth = torch.linspace(1.8, 2.2, 64).expand(48, 64)
    found.__dict__["own_depth"] = depth
    return found


def test_one_gaussian_per_pixel_shows_the_photograph(view: PhotographView) -> None:
    found = five.input_scores(view.per_pixel, view, difference)
    assert found["input_psnr"] > 27
    assert found["input_lpips"] < 0.03


def test_beside_the_photograph_only_what_is_covered_counts(view: PhotographView) -> None:
    """Where one Gaussian per pixel shows nothing, a scene may show anything."""
    same = five.orbit_scores(view.per_pixel, view, 16, difference)
    assert same["lpips_16"] == 0
    assert 0.5 < same["covered_16"] < 0.99
    grey = replace(view.per_pixel, rgb=torch.full_like(view.per_pixel.rgb, 0.5))
    wrong = five.orbit_scores(grey, view, 16, difference)
    covered = seen(view.per_pixel, on_arc(view.camera, 16, 2.0)).alpha > COVERED_ALPHA
    assert wrong["lpips_16"] > 0.05
    image = torch.rand(1, 48, 64, 3)
    truth = torch.zeros(1, 48, 64, 3)
    taken = five.taken_where(covered, image, truth)
    torch.testing.assert_close(taken[covered], image[covered])
    assert float(taken[~covered].abs().max()) == 0


def test_the_right_camera_is_found_where_it_is(view: PhotographView) -> None:
    """Among the distances that are tried, that at which a scene shows what the camera took."""
    camera = right.right_camera(view, right.BASELINES[5], 3.0)
    rendered = seen(view.per_pixel, camera)
    truth = right.RightPhotograph(rendered.rgb[0], 3.0)
    found = right.best_baseline(view.per_pixel, view, truth, difference)
    assert found["baseline"] == right.BASELINES[5]


def test_holes_show_the_mean_colour_of_the_truth(view: PhotographView) -> None:
    truth = right.RightPhotograph(torch.full((48, 64, 3), 0.25), 0.0)
    nothing = replace(view.per_pixel, opacities=torch.full_like(view.per_pixel.opacities, 1e-3))
    found = right.best_baseline(nothing, view, truth, difference)
    assert found["psnr"] > 60


def test_a_scene_knows_its_part_of_the_photograph_and_its_lens() -> None:
    record = {
        "clips": {"height": 32, "width": 48},
        "lens": {"intrinsics": [100.0, 100.0, 48.0, 32.0], "height": 64, "width": 96},
        "scale": {"depth_factor": 0.5},
        "unit": {"factor": 6.0},
    }
    picture = drawn_picture(90, 120)
    pixels = per_pixel(torch.zeros(4, 4, 3), torch.ones(4, 4), camera_of(4, 4))
    scene = MadeScene(picture, pixels, record, {})
    assert scene.crop == Crop(5, 0, 80, 120)
    torch.testing.assert_close(scene.whole_lens, torch.tensor([125.0, 125.0, 60.0, 45.0]))
    assert scene.centre_depth == 3.0
    height, width = scene.view.rgb.shape[:2]
    assert (height, width) == view_size(32, 48)
    assert float(scene.view.camera.intrinsics[0]) == pytest.approx(125 * width / 120, rel=1e-3)


def test_a_sheet_has_a_row_for_each_way_and_the_overview_all_sheets(view: PhotographView) -> None:
    shown = {"pixels": view.per_pixel, "scene": view.per_pixel}
    sheet = orbits.orbit_sheet("drawn", shown, view)
    assert sheet.width > 4 * 48
    assert sheet.height > 2 * 36
    whole = orbits.overview([sheet] * 3)
    assert whole.width == 2 * orbits.OVERVIEW_WIDTH
    assert whole.height == pytest.approx(2 * sheet.height * orbits.OVERVIEW_WIDTH / sheet.width, abs=2)


def test_a_part_measured_again_replaces_its_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "photographs.json"
    write_rows(path, "eight", "before", [{"photograph": "mean", "psnr": 1.23456789}], decoder="one")
    write_rows(path, "right", "before", [{"way": "copied"}])
    write_rows(path, "eight", "now", [{"photograph": "mean", "psnr": 2.0}])
    write_rows(path, "eight", "now", [{"photograph": "mean", "psnr": 3.0}], commit="abc")
    parts = read_results(path)["parts"]
    assert list(parts) == ["eight", "right"]
    assert parts["eight"]["before"]["rows"] == [{"photograph": "mean", "psnr": 1.2346}]
    assert parts["eight"]["before"]["decoder"] == "one"
    assert parts["eight"]["now"]["rows"] == [{"photograph": "mean", "psnr": 3.0}]
    assert {"device", "versions", "commit", "threads"} <= parts["eight"]["now"]["environment"].keys()


@pytest.mark.parametrize("text", ["no json", "[]", '{"parts": []}'])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json must be a result file"):
        write_rows(path, "eight", "now", [])
    assert path.read_text() == text


ENVIRONMENT = {"device": "CPU X", "versions": {"torch": "9.9"}, "commit": "0123456789abcdef"}


def tables_of(tmp_path: Path, **parts: dict[str, list[dict]]) -> dict[str, list[list[str]]]:
    """Cells of the tables of these rows by part and label."""
    content = {
        name: {label: {"environment": ENVIRONMENT, "rows": rows} for label, rows in labels.items()}
        for name, labels in parts.items()
    }
    (tmp_path / "photographs.json").write_text(json.dumps({"parts": content}))
    cells = {}
    for name, make in PHOTOGRAPH_TABLES.items():
        lines = [line for line in make(tmp_path).splitlines() if line.startswith("|")]
        cells[name] = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line
        ]
    return cells


FAKE_GENERATE = """
import json, shutil
from pathlib import Path


def generate(settings):
    settings["output"].mkdir()
    shutil.copy(Path(__file__).parent / "scene.ply", settings["output"])
    record = {"refine_steps": settings.get("refine_steps")}
    (settings["output"] / "record.json").write_text(json.dumps(record))
"""


@pytest.mark.parametrize("module_name", ["run", "generate"])
def test_scenes_are_made_by_the_checkout_that_is_given_and_with_the_arguments(
    tmp_path: Path, module_name: str
) -> None:
    """The older of which have another name for the module that makes them."""
    picture = drawn_picture(4, 6)
    camera = Crop.of_aspect(picture, 4, 6).camera(torch.tensor([5.0, 5.0, 3.0, 2.0]), 4, 6)
    pixels = per_pixel(torch.zeros(4, 6, 3), torch.ones(4, 6), camera)
    package = tmp_path / "checkout" / "lyra_ns" / "generation"
    package.mkdir(parents=True)
    module = package / f"{module_name}.py"
    module.write_text(FAKE_GENERATE)
    (package / "settings.py").write_text("GenerateSettings = dict")
    save_ply(pixels, package / "scene.ply")
    for way, arguments in ARGUMENTS.items():
        maker = SceneMaker(tmp_path / way, arguments, tmp_path / "checkout")
        scene = maker.made("drawn", picture)
        assert scene.gaussians.num == pixels.num
        assert maker.made("drawn", picture) is scene
        assert scene.record["refine_steps"] == {"default": None, "feed-forward": 0}[way]
        assert set(scene.cost) == {"seconds", "cpu_seconds", "peak_gib"}
    module.write_text("def generate(settings): raise ValueError('no such photograph')")
    with pytest.raises(RuntimeError, match=r"no scene of white could be made(?s:.*)no such photograph"):
        maker.made("white", picture)


def test_tables_show_labels_side_by_side(tmp_path: Path) -> None:
    eight_rows = [
        {"photograph": name, **dict.fromkeys(eight.MEASURES, value)}
        for name, value in (("a", 1.0), ("mean", 2.0))
    ]
    five_rows = [
        {"photograph": name, "way": "refined", "input_psnr": decibels, "input_lpips": 0.1, "seconds": 9.6}
        for name, decibels in (("a", 30.0), ("b", 32.0))
    ]
    pixels = {"way": "one Gaussian per pixel", "psnr": 15.6, "lpips": 0.168}
    found = tables_of(
        tmp_path,
        eight={"before": eight_rows, "now": eight_rows},
        five={"now": five_rows},
        right={"before": [{"way": "feed-forward", "psnr": 16.5, "lpips": 0.251}, pixels], "now": [pixels]},
    )
    assert found["photographs_eight"][1:] == [
        [label, "2.00", "2.000", "2.00", "2.000", "2.00"] for label in ("before", "now")
    ]
    assert found["photographs_five"][1] == ["refined", "now", "31.0", "0.100", *[NOTHING] * 3, "10", NOTHING]
    assert found["photographs_right"][1:] == [
        ["feed-forward", "before", "16.5", "0.251"],
        ["one Gaussian per pixel", "before, now", "15.6", "0.168"],
    ]


def test_tables_of_missing_parts_are_empty(tmp_path: Path) -> None:
    assert {make(tmp_path) for make in PHOTOGRAPH_TABLES.values()} == {""}
    (tmp_path / "photographs.json").write_text('{"parts": {}}')
    assert {make(tmp_path) for make in PHOTOGRAPH_TABLES.values()} == {""}
