"""Depth and cameras of inputs: ViPE's tree, planes, adapters of networks, and the units of a scene."""

from __future__ import annotations

import io
import math
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from lyra_ns.cameras import CameraPath, look_at, project
from lyra_ns.data.depth_files import depth_bytes
from lyra_ns.data.video import video_bytes
from lyra_ns.depth.base import DepthPrediction, PlaneDepth, checked_image, intrinsics_of_fov
from lyra_ns.depth.moge import load_moge
from lyra_ns.depth.scale import depth_of_points, scene_scale
from lyra_ns.depth.transformers import TransformersDepth, check_metric, load_transformers_depth
from lyra_ns.depth.vipe import read_vipe, vipe_clips

INTRINSICS = torch.tensor([40.0, 42.0, 24.0, 16.0])
HEIGHT, WIDTH, NUM_FRAMES = 32, 48, 6


def cameras() -> CameraPath:
    along = torch.linspace(0, 1, NUM_FRAMES)[:, None]
    poses = look_at(
        along * torch.tensor([0.5, 0.1, 0.2]), torch.tensor([0.0, 0.0, 4.0]).expand(NUM_FRAMES, 3)
    )
    return CameraPath(poses, INTRINSICS.expand(NUM_FRAMES, 4), along[:, 0], HEIGHT, WIDTH)


def depth() -> torch.Tensor:
    ramp = torch.arange(NUM_FRAMES * HEIGHT * WIDTH).view(NUM_FRAMES, HEIGHT, WIDTH) % 61
    return torch.where(ramp == 0, 0.0, 1 + ramp / 8)


def save(root: Path, kind: str, clip: str, content: bytes, ending: str) -> None:
    (root / kind).mkdir(parents=True, exist_ok=True)
    (root / kind / f"{clip}{ending}").write_bytes(content)


def indexed(data: torch.Tensor, ids: list[int]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, data=data.numpy(), inds=np.array(ids))
    return buffer.getvalue()


def masks(images: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for frame, ids in enumerate(images):
            png = io.BytesIO()
            Image.fromarray(ids).save(png, format="PNG")
            archive.writestr(f"{frame:05d}.png", png.getvalue())
    return buffer.getvalue()


def instance_ids() -> list[np.ndarray]:
    ids = np.zeros((NUM_FRAMES, HEIGHT, WIDTH), np.uint8)
    for frame in range(NUM_FRAMES):
        ids[frame, 10:20, 10 + frame : 20] = 3
    return list(ids)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What ViPE writes for the clip `street`."""
    ids = list(range(NUM_FRAMES))
    rgb = torch.arange(NUM_FRAMES, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, HEIGHT, WIDTH) * 40
    save(tmp_path, "rgb", "street", video_bytes(rgb.contiguous()), ".mp4")
    save(tmp_path, "pose", "street", indexed(cameras().camera_to_world, ids), ".npz")
    save(tmp_path, "intrinsics", "street", indexed(cameras().intrinsics, ids), ".npz")
    save(tmp_path, "intrinsics", "street", b"0: PINHOLE\n1: PINHOLE\n", "_camera.txt")
    save(tmp_path, "depth", "street", depth_bytes(depth()), ".zip")
    save(tmp_path, "mask", "street", masks(instance_ids()), ".zip")
    return tmp_path


def test_vipes_tree_is_read(tree):
    assert vipe_clips(tree) == ["street"]
    clip = read_vipe(tree, "street")
    torch.testing.assert_close(clip.depth, depth())
    torch.testing.assert_close(clip.cameras.camera_to_world, cameras().camera_to_world)
    torch.testing.assert_close(clip.cameras.intrinsics, cameras().intrinsics)
    assert (clip.cameras.height, clip.cameras.width) == (HEIGHT, WIDTH)
    assert torch.equal(clip.moving, torch.from_numpy(np.stack(instance_ids())) == 3)
    shades = clip.rgb.float().mean((1, 2, 3))
    torch.testing.assert_close(shades, 40.0 * torch.arange(NUM_FRAMES), atol=4, rtol=0)


def test_a_stretch_of_a_clip_is_read(tree):
    part, whole = read_vipe(tree, "street", start=2, num_frames=3), read_vipe(tree, "street")
    assert torch.equal(part.rgb, whole.rgb[2:5])
    assert torch.equal(part.depth, whole.depth[2:5])
    assert torch.equal(part.moving, whole.moving[2:5])
    assert torch.equal(part.cameras.camera_to_world, whole.cameras.camera_to_world[2:5])
    assert part.cameras.times.tolist() == [0, 0.5, 1]


def test_short_clips_stand_still_at_their_end_if_asked(tree):
    with pytest.raises(ValueError, match=r"frames 4 to 12, found 6 frames"):
        read_vipe(tree, "street", start=4, num_frames=9)
    clip = read_vipe(tree, "street", start=4, num_frames=9, repeat_last=True)
    whole = read_vipe(tree, "street")
    expected = [4, 5, 5, 5, 5, 5, 5, 5, 5]
    assert torch.equal(clip.depth, whole.depth[expected])
    assert torch.equal(clip.cameras.camera_to_world, whole.cameras.camera_to_world[expected])
    torch.testing.assert_close(clip.cameras.times, torch.linspace(0, 1, 9))
    with pytest.raises(ValueError, match="found 6 frames"):
        read_vipe(tree, "street", start=6, num_frames=9, repeat_last=True)


def test_clips_are_cropped_and_resized_with_their_cameras(tree):
    clip, whole = read_vipe(tree, "street").resized(16, 16), read_vipe(tree, "street")
    assert clip.rgb.shape == (NUM_FRAMES, 3, 16, 16)
    torch.testing.assert_close(clip.cameras.intrinsics[0], torch.tensor([20.0, 21.0, 8.0, 8.0]))
    # The pixel of a cell's centre: row 2 r + 1 of the middle 32 of 48 columns.
    assert torch.equal(clip.depth, whole.depth[:, 1::2, 9:40:2])
    assert torch.equal(clip.moving, whole.moving[:, 1::2, 9:40:2])


@pytest.mark.parametrize(
    ("kind", "ending", "content", "message"),
    [
        ("mask", ".zip", b"no zip", "mask .* found damage"),
        ("mask", ".zip", masks(instance_ids()[:3]), "mask .* found damage"),
        ("mask", ".zip", masks([np.zeros((8, 8), np.uint8)] * NUM_FRAMES), "as large as the video, found"),
        ("depth", ".zip", b"no zip", "zip of EXR images"),
        ("depth", ".zip", depth_bytes(torch.ones(2, HEIGHT, WIDTH)), "images up to frame 5, found 2"),
        ("depth", ".zip", depth_bytes(torch.ones(NUM_FRAMES, 8, 8)), r"as large as the video .* \[8, 8\]"),
        ("pose", ".npz", indexed(cameras().camera_to_world[:5], [0, 1, 2, 4, 5]), "none for frame 3"),
        ("pose", ".npz", indexed(cameras().camera_to_world * torch.nan, list(range(6))), "finite"),
        ("intrinsics", ".npz", indexed(torch.ones(6, 8), list(range(6))), r"\[frames, 4\]"),
        ("intrinsics", "_camera.txt", b"0: PINHOLE\n1: MEI\n", "pinhole cameras, found MEI, PINHOLE"),
        ("rgb", ".mp4", b"no video", "found damage"),
    ],
)  # fmt: skip
def test_bad_vipe_files_are_named(tree, kind, ending, content, message):
    save(tree, kind, "street", content, ending)
    with pytest.raises(ValueError, match=message):
        read_vipe(tree, "street")


def test_missing_vipe_files_are_named(tree, tmp_path):
    with pytest.raises(ValueError, match=r"one of street .* found 'road'"):
        read_vipe(tree, "road")
    (tree / "mask" / "street.zip").unlink()
    assert read_vipe(tree, "street").moving is None
    (tree / "depth" / "street.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"street\.zip does not exist"):
        read_vipe(tree, "street")
    with pytest.raises(ValueError, match="vipe infer"):
        vipe_clips(tmp_path / "empty")


def image() -> torch.Tensor:
    return torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def test_points_of_a_plane_lie_on_it():
    found = PlaneDepth(2.0, slope_x=0.3, slope_y=-0.2).predict(image(), INTRINSICS)
    v, u = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    x, y = (u - 24) / 40 * found.depth, (v - 16) / 42 * found.depth
    torch.testing.assert_close(found.depth, 2 + 0.3 * x - 0.2 * y)
    assert torch.equal(found.intrinsics, INTRINSICS)
    assert (found.is_metric, found.has_training_units) == (False, False)
    assert torch.equal(PlaneDepth().predict(image()).depth, torch.ones(HEIGHT, WIDTH))


def test_a_floor_has_a_horizon_above_which_depth_is_unknown():
    found = PlaneDepth(1.0, slope_y=-20.0).predict(image())
    # y = -1 / 20 of the focal length above the middle: between rows 13 and 14.
    assert not found.known[:14].any()
    assert found.known[14:].all()
    assert torch.equal(found.filled(100.0) == 100, ~found.known)
    with pytest.raises(ValueError, match="distance 0"):
        PlaneDepth(0.0).predict(image())


def test_intrinsics_of_a_field_of_view():
    found = intrinsics_of_fov(90.0, 32, 48)
    torch.testing.assert_close(found, torch.tensor([24.0, 24.0, 24.0, 16.0]))
    with pytest.raises(ValueError, match="found 180"):
        intrinsics_of_fov(180.0, 32, 48)


class FakeMoGe(torch.nn.Module):
    """MoGe's interface as its package documents it: infinite depth outside the mask, relative intrinsics."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.fov_x: float | None = None

    @classmethod
    def from_pretrained(cls, weights: str) -> FakeMoGe:
        model = cls()
        model.weights = weights
        return model

    def infer(self, image: torch.Tensor, fov_x: float | None = None) -> dict[str, torch.Tensor]:
        self.fov_x = fov_x
        mask = torch.ones(image.shape[1:], dtype=torch.bool)
        mask[:4] = False
        found = torch.where(mask, 1 + image[0], torch.inf)
        matrix = torch.tensor([[0.8, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]])
        return {"depth": found, "mask": mask, "intrinsics": matrix}


@pytest.mark.parametrize(("version", "metric", "weights"), [
    ("v1", False, "Ruicheng/moge-vitl"), ("v2", True, "Ruicheng/moge-2-vitl"),
])  # fmt: skip
def test_moge_gives_depth_and_camera(monkeypatch, version, metric, weights):
    module = ModuleType(f"moge.model.{version}")
    module.MoGeModel = FakeMoGe
    for name in ("moge", "moge.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    estimator = load_moge(version)
    assert estimator.model.weights == weights
    assert not estimator.model.training
    found = estimator.predict(image())
    assert estimator.model.fov_x is None
    torch.testing.assert_close(found.depth[4:], 1 + image()[0, 4:])
    assert not found.known[:4].any()
    torch.testing.assert_close(found.intrinsics, torch.tensor([0.8 * WIDTH, 1.2 * HEIGHT, 24.0, 16.0]))
    assert (found.is_metric, found.has_training_units) == (metric, not metric)
    given = estimator.predict(image(), INTRINSICS)
    assert estimator.model.fov_x == pytest.approx(math.degrees(2 * math.atan(24 / 40)))
    assert torch.equal(given.intrinsics, INTRINSICS)


def test_a_missing_moge_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "moge", None)
    with pytest.raises(ValueError, match=r"pip install 'lyra-ns\[moge\]'"):
        load_moge()


def test_the_last_digits_of_resized_pictures_are_forgiven():
    picture = torch.tensor([-1e-7, 0.5, 1 + 1e-6]).reshape(3, 1, 1).expand(3, 4, 6)
    assert checked_image(picture).aminmax() == (0, 1)
    with pytest.raises(ValueError, match="colours from 0 to 1"):
        checked_image(picture * 1.01)


def test_bad_images_and_empty_depth_are_refused():
    class Nothing(FakeMoGe):
        def infer(self, image, fov_x=None):
            return {**super().infer(image), "mask": torch.zeros(image.shape[1:])}

    from lyra_ns.depth.moge import MoGeDepth

    with pytest.raises(ValueError, match="moge-v1 found no depth"):
        MoGeDepth(Nothing(), "v1").predict(image())
    with pytest.raises(ValueError, match="colours from 0 to 1"):
        MoGeDepth(FakeMoGe(), "v1").predict(image() * 255)
    with pytest.raises(ValueError, match="colours from 0 to 1"):
        MoGeDepth(FakeMoGe(), "v1").predict(image() * torch.nan)


def small_dinov2(**changes) -> dict:
    return {
        "model_type": "dinov2", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2,
        "mlp_ratio": 2, "image_size": 16, "patch_size": 4, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def depth_pro(tmp_path_factory) -> Path:
    """A tiny random DepthPro as it lies in a folder."""
    from transformers import DepthProConfig, DepthProForDepthEstimation, DepthProImageProcessor

    torch.manual_seed(0)
    config = DepthProConfig(
        patch_size=16, fusion_hidden_size=8, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0], scaled_images_overlap_ratios=[0.0, 0.2], merge_padding_value=1,
        scaled_images_feature_dims=[16, 8], use_fov_model=True, num_fov_head_layers=0,
        image_model_config=small_dinov2(), patch_model_config=small_dinov2(), fov_model_config=small_dinov2(),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("depth_pro")
    model = DepthProForDepthEstimation(config)
    # A random head may see no angle at all; this one sees about 50 degrees.
    torch.nn.init.constant_(list(model.fov_model.head.layers.parameters())[-1], 50.0)
    model.save_pretrained(folder)
    DepthProImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def depth_anything() -> TransformersDepth:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    backbone = small_dinov2(out_indices=[1, 2], reshape_hidden_states=False, image_size=32)
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=4, reassemble_hidden_size=16, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=4,
        depth_estimation_type="metric", max_depth=20,
    )  # fmt: skip
    processor = DPTImageProcessor(size={"height": 32, "width": 48}, do_pad=False)
    return TransformersDepth(DepthAnythingForDepthEstimation(config).eval(), processor, "tiny")


def test_depth_pro_gives_metric_depth_and_a_focal_length(depth_pro):
    estimator = load_transformers_depth(str(depth_pro))
    found = estimator.predict(image())
    assert found.depth.shape == (HEIGHT, WIDTH)
    assert found.known.all()
    assert (found.is_metric, found.has_training_units) == (True, False)
    focal = float(found.intrinsics[0])
    assert 0 < 2 * math.degrees(math.atan(WIDTH / 2 / focal)) < 180
    torch.testing.assert_close(found.intrinsics, torch.tensor([focal, focal, 24.0, 16.0]))
    given = estimator.predict(image(), INTRINSICS)
    torch.testing.assert_close(given.depth, found.depth * 40 / focal)
    assert torch.equal(given.intrinsics, INTRINSICS)
    assert not torch.equal(estimator.predict(1 - image()).depth, found.depth)


def test_depth_anything_gives_metric_depth_alone(depth_anything):
    found = depth_anything.predict(image())
    assert found.depth.shape == (HEIGHT, WIDTH)
    assert found.known.any()
    assert float(found.depth.max()) <= 20 * 1.2
    assert found.intrinsics is None
    assert torch.equal(depth_anything.predict(image(), INTRINSICS).intrinsics, INTRINSICS)
    check_metric(depth_anything.model.config, "tiny")


def test_models_of_relative_depth_and_missing_weights_are_refused(depth_anything, tmp_path):
    from transformers import DepthAnythingConfig, DepthProConfig

    for config in (DepthAnythingConfig(), DepthProConfig(use_fov_model=False)):
        with pytest.raises(ValueError, match="no unit"):
            check_metric(config, "relative")
    with pytest.raises(FileNotFoundError, match=r"depth model: expected config\.json in the folder"):
        load_transformers_depth(str(tmp_path))


def prediction(depth: torch.Tensor, training_units: bool = False) -> DepthPrediction:
    return DepthPrediction(depth, None, True, training_units, "test")


def test_units_of_depth_keep_paths_in_their_range():
    found = prediction(torch.tensor([[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]))
    scale = scene_scale(found)
    assert (scale.depth_factor, scale.centre_depth) == (pytest.approx(1 / 6), 1)
    assert found.scaled(scale.depth_factor).depth[1, 0] == pytest.approx(1)
    moge = scene_scale(prediction(found.depth, training_units=True))
    assert (moge.depth_factor, moge.centre_depth) == (1, 1)
    metric = scene_scale(found, units="centre_quantile", centre_quantile=0.25)
    assert (metric.depth_factor, metric.centre_depth) == (1, 4)
    assert asdict(metric)["estimator"] == "test"
    with pytest.raises(ValueError, match="found 1"):
        scene_scale(found, units="centre_quantile", centre_quantile=1.0)


def test_pose_scale_is_given_matched_or_assumed():
    given = scene_scale(prediction(2 * depth()[0]), pose_scale=3.0)
    assert (given.pose_scale, given.pose_scale_origin) == (3, "given")
    assert given.path_factor == pytest.approx(3 * given.depth_factor)
    assumed = scene_scale(prediction(depth()[0]))
    assert (assumed.pose_scale, assumed.pose_scale_origin) == (1, "assumed")
    path_depth = depth()[0] / 2.5
    path_depth[:4, :4] = 77.0
    matched = scene_scale(prediction(depth()[0]), path_depth=path_depth)
    assert matched.pose_scale == pytest.approx(2.5)
    assert matched.pose_scale_origin == "matched"
    assert matched.num_points == int((depth()[0] > 0).sum())
    assert matched.spread < 1e-6
    assert scene_scale(prediction(depth()[0]), pose_scale=2.0, path_depth=path_depth).pose_scale == 2


def test_depths_that_fix_no_scale_are_refused():
    noise = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.01
    with pytest.raises(ValueError, match="scatter by"):
        scene_scale(prediction(depth()[0]), path_depth=noise)
    sparse = torch.zeros(HEIGHT, WIDTH)
    sparse[0, :5] = 1.0
    with pytest.raises(ValueError, match=r"at least 16 pixels .* found 4"):
        scene_scale(prediction(depth()[0]), path_depth=sparse)
    with pytest.raises(ValueError, match=r"\[32, 48\].* found \[8, 8\]"):
        scene_scale(prediction(depth()[0]), path_depth=torch.ones(8, 8))
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="pose scale above 0"):
            scene_scale(prediction(depth()[0]), pose_scale=wrong)


def test_points_of_a_reconstruction_give_depth_of_the_nearest():
    camera = cameras()[2:3]
    inside = torch.tensor([[0.1, 0.2, 3.0], [0.5, -0.4, 5.0]])
    centre = camera.camera_to_world[0, :3, 3]
    behind = 2 * centre - inside[0]
    farther = centre + 1.5 * (inside[0] - centre)
    found = depth_of_points(torch.stack([farther, *inside, behind, torch.tensor([90.0, 0.0, 4.0])]), camera)
    pixels, expected = project(inside[None], camera)
    for (column, row), z in zip(pixels[0].long().tolist(), expected[0], strict=True):
        torch.testing.assert_close(found[row, column], z)
    assert (found > 0).sum() == 2
