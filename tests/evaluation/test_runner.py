"""The evaluation protocol: which views are measured by which method, and against what."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lyra_ns.cameras import relative_to
from lyra_ns.codec import load_codec
from lyra_ns.data.scenes import StoredScene
from lyra_ns.data.store import LyraStore
from lyra_ns.data.types import NOVEL_FIRST_ID
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.environment import environment
from lyra_ns.evaluation.runner import (
    METRICS,
    ProtocolConfig,
    SceneResult,
    TeacherFrames,
    as_table,
    evaluate_scene,
    evaluate_scenes,
    summary_rows,
)
from lyra_ns.ops.lpips import PerceptualDistance, load_lpips
from lyra_ns.reconstruction import Reconstructor
from tests.helpers.wall_scenes import WALL_DISTANCE, wall_gaussians, write_wall_scenes

SEED = 3
"""Number of the wall that is held out."""


class KnownWall(Reconstructor):
    """A reconstruction that is the true wall, so that every score is known to be good."""

    def __call__(self, z, cameras, target_time=None):
        """The wall, whose Gaussians lie in the frame of any path's first camera: all start at the origin."""
        return wall_gaussians(SEED)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wall_scenes(tmp_path_factory.mktemp("walls"))


@pytest.fixture(scope="module")
def scene(root: Path) -> StoredScene:
    store = LyraStore(root)
    name = f"wall_{SEED}"
    return StoredScene(store.scene(name), store.novel_clips(name), spec=store.spec)


def tiny_decoder(**changes) -> LatentGaussianDecoder:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 2, "pattern": "1M1T", "num_heads": 2, "state_size": 8, "head_dim": 16}
    return LatentGaussianDecoder(DecoderConfig(**sizes, **changes)).eval()


@pytest.fixture(scope="module")
def known() -> KnownWall:
    return KnownWall(tiny_decoder(), load_codec("linear"))


@pytest.fixture(scope="module")
def perceptual() -> PerceptualDistance:
    return load_lpips("alex")


@pytest.fixture(scope="module")
def results(known: KnownWall, scene: StoredScene, perceptual: PerceptualDistance) -> list[SceneResult]:
    config = ProtocolConfig(num_trajectories=(3, 1))
    return list(evaluate_scenes(known, [scene], perceptual, config))


@pytest.fixture(scope="module")
def rows(results: list[SceneResult]) -> dict[tuple[str, int, str], dict]:
    rows = summary_rows([score for result in results for score in result.scores])
    return {(row["group"], row["num_trajectories"], row["method"]): row for row in rows}


@pytest.mark.slow
def test_the_true_scene_scores_well_everywhere(rows):
    for group in ("trajectories", "novel"):
        for number in (1, 3):
            row = rows[group, number, "lyra"]
            assert row["psnr"] > 30
            assert row["lpips"] < 0.1
            assert row["depth_error"] < 0.02
            assert row["psnr"] > rows[group, 3, "mean colour"]["psnr"] + 10


def test_baselines_are_measured_once_and_only_where_they_say_something(rows):
    methods = {
        group: {(method, number) for other, number, method in rows if other == group and method != "lyra"}
        for group in ("trajectories", "novel")
    }
    assert methods["trajectories"] == {("mean colour", 3), ("teacher", 3)}
    moved = "frame moved by true depth"
    assert methods["novel"] == {("mean colour", 3), ("nearest frame", 3), (moved, 3)}
    assert rows["novel", 3, moved]["psnr"] > rows["novel", 3, "nearest frame"]["psnr"] + 2


def test_views_are_two_frames_of_every_path(results):
    found = {(score.trajectory, score.frame) for score in results[0].scores if score.method == "lyra"}
    assert found == {(trajectory, frame) for trajectory in (0, 1, 5, NOVEL_FIRST_ID) for frame in (5, 8)}
    assert len(results) == 2
    assert [result.batch.latents.shape[1] for result in results] == [3, 1]


def test_images_are_compared_with_the_truth_of_their_own_view(results, scene):
    """The nearest frame's score can be computed by hand from its images and the rows it claims."""
    result = results[0]
    nearest = result.views["nearest frame"]
    ids = [result.batch.target_ids[0][row] for row in nearest.rows]
    assert ids == [(NOVEL_FIRST_ID, 5), (NOVEL_FIRST_ID, 8)]
    truth = scene.rgb(NOVEL_FIRST_ID, [5, 8]).float().movedim(1, -1) / 255
    error = (nearest.rgb - truth).square().mean((1, 2, 3))
    scores = [score for score in result.scores if score.method == "nearest frame"]
    assert [score.values["psnr"] for score in scores] == pytest.approx(
        (-10 * error.log10()).tolist(), abs=1e-3
    )


def test_the_teacher_is_what_the_codec_decodes(known, scene, results):
    codec = known.codec
    video = codec.decode(codec.from_diffusion(scene.latents(1)[None]))[0]
    views = TeacherFrames(scene, known).views([(NOVEL_FIRST_ID, 8), (1, 5), (0, 8)])
    assert views.rows == [1, 2]
    torch.testing.assert_close(views.rgb[0], ((video[:, 5] + 1) / 2).clamp(0, 1).movedim(0, -1))
    rendered, taught = results[0].views["lyra"].rgb, results[0].views["teacher"]
    error = (rendered[taught.rows] - taught.rgb).square().mean((1, 2, 3))
    scores = [s for s in results[0].scores if s.method == "lyra" and s.group == "trajectories"]
    expected = (-10 * error.log10()).tolist()
    assert [score.values["psnr_teacher"] for score in scores] == pytest.approx(expected, abs=1e-3)


def test_the_teacher_is_decoded_once(known, scene, monkeypatch):
    calls = []
    decode = type(known.codec).decode
    monkeypatch.setattr(type(known.codec), "decode", lambda self, raw: calls.append(1) or decode(self, raw))
    teacher = TeacherFrames(scene, known)
    for _ in range(2):
        teacher.views([(0, 5), (0, 8), (1, 8)])
    assert len(calls) == 2


def test_what_has_no_meaning_is_left_empty(rows):
    assert rows["novel", 3, "lyra"]["psnr_teacher"] is None
    assert rows["trajectories", 3, "mean colour"]["depth_error"] is None
    assert all(rows["trajectories", 1, "lyra"][name] is not None for name in METRICS)


def test_table_groups_views_and_orders_inputs(rows):
    lines = as_table(summary_rows_in_order(rows)).splitlines()
    assert lines[0].split()[:3] == ["views", "inputs", "method"]
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["trajectories", "1", "lyra"],
        ["trajectories", "3", "lyra"],
    ]
    assert lines[-1].split()[0] == "novel"
    assert lines[-1].split()[-1] == "-"


def summary_rows_in_order(rows: dict) -> list[dict]:
    return list(rows.values())


def test_mean_and_spread_over_scenes(results):
    scores = [score for score in results[1].scores if score.method == "lyra" and score.group == "novel"]
    assert len(scores) == 2
    changed = [
        replace(score, values=score.values | {"psnr": value})
        for score, value in zip(scores, (10.0, 20.0), strict=True)
    ]
    (row,) = summary_rows(changed)
    assert (row["psnr"], row["psnr_std"], row["num_views"]) == (15.0, 5.0, 2)


def test_without_depth_nothing_needs_it(tmp_path, known, perceptual):
    store = LyraStore(write_wall_scenes(tmp_path, num_scenes=1, with_depth=False))
    scene = StoredScene(store.scene("wall_0"), store.novel_clips("wall_0"), spec=store.spec)
    with pytest.raises(FileNotFoundError, match="depth"):
        evaluate_scene(known, scene, perceptual, 1, ProtocolConfig())
    result = evaluate_scene(known, scene, perceptual, 1, ProtocolConfig(depth=False))
    assert set(result.views) == {"lyra", "mean colour", "teacher"}
    assert all(math.isnan(score.values["depth_error"]) for score in result.scores)


def test_dynamic_scenes_are_decoded_at_the_moment_of_their_views(tmp_path, perceptual):
    store = LyraStore(write_wall_scenes(tmp_path, num_scenes=1, is_dynamic=True))
    scene = StoredScene(store.scene("wall_0"), store.novel_clips("wall_0"), spec=store.spec)
    asked = []

    class Listening(KnownWall):
        def __call__(self, z, cameras, target_time=None):
            asked.append(target_time)
            return wall_gaussians(0)

    reconstruct = Listening(tiny_decoder(use_time=True), load_codec("linear"))
    config = ProtocolConfig(frames=(4,), baselines=False)
    result = evaluate_scene(reconstruct, scene, perceptual, 2, config)
    assert asked == [pytest.approx(0.5)]
    assert {score.frame for score in result.scores} == {4}


def test_the_inputs_come_in_the_frame_of_their_first_camera(known, scene, results):
    cameras = results[0].batch.cameras[0]
    again = relative_to(cameras, cameras.camera_to_world[0, 0])
    torch.testing.assert_close(again.camera_to_world, cameras.camera_to_world)
    assert results[0].views["lyra"].depth.median() == pytest.approx(WALL_DISTANCE, abs=0.6)


def test_environment_names_device_versions_and_commit():
    found = environment(torch.device("cpu"))
    assert "threads" in found["device"]
    assert found["versions"]["torch"] == torch.__version__
    assert {"python", "lyra_ns", "gsplat"} <= set(found["versions"])
    assert found["commit"] is None or len(found["commit"].removesuffix("+changes")) == 40
