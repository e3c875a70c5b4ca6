"""The viewer's panel, and the viewer itself with everything but a browser."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.utils import CameraState
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer

from lyra_ns.cameras import CameraPath, invert_rigid
from lyra_ns.gaussians import Gaussians
from lyra_ns.plugin.pipeline import LyraPipeline
from lyra_ns.plugin.viewer_panel import NO_SCALE_LIMIT, PanelState, ViewerPanel
from lyra_ns.reconstruction import Reconstructor
from tests.helpers.wall_scenes import PATHS, tiny_pipeline_config, wall_gaussians, write_wall_scenes


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> LyraPipeline:
    """Opened as ns-viewer does it."""
    walls = write_wall_scenes(tmp_path_factory.mktemp("walls"))
    torch.manual_seed(0)
    return tiny_pipeline_config(walls, prune_ratio=0.5).setup(device="cpu", test_mode="test")


@pytest.fixture(scope="module")
def viewer(pipeline: LyraPipeline, tmp_path_factory: pytest.TempPathFactory) -> Viewer:
    """A real viewer with its server."""
    folder = tmp_path_factory.mktemp("viewer")
    viewer = Viewer(
        ViewerConfig(websocket_host="127.0.0.1"),
        folder / "log",
        folder,
        pipeline,
        train_lock=threading.Lock(),
    )
    yield viewer
    viewer.viser_server.stop()


def test_panel_asks_for_everything_at_first() -> None:
    """All trajectories in reading order, the configured share, no other filter."""
    panel = ViewerPanel(["a", "b"], "b", [5, 0, 1], keep_ratio=0.2)
    assert panel.state() == PanelState("b", (5, 0, 1), keep_ratio=0.2)


def test_panel_follows_its_controls_and_resets() -> None:
    """At least one trajectory stays on, since the decoder needs an input."""
    panel = ViewerPanel(["a", "b"], "b", [5, 0], keep_ratio=1.0)
    panel.trajectory_5.value = False
    assert panel.state().trajectories == (0,)
    panel.trajectory_0.value = False
    assert panel.state().trajectories == (5,)


def test_filters_hide_what_they_name() -> None:
    """Keep ratio by opacity, then the thresholds; something always stays."""
    gaussians = wall_gaussians(seed=0)
    gaussians.opacities[:] = torch.linspace(0.0, 1.0, gaussians.num)
    gaussians.scales[: gaussians.num // 2] = 2.0
    half = PanelState("a", (0,), keep_ratio=0.5).filter(gaussians)
    assert half.num == int(gaussians.num * 0.5)
    assert float(half.opacities.min()) >= 0.49
    assert float(PanelState("a", (0,), opacity_threshold=0.9).filter(gaussians).opacities.min()) >= 0.9
    assert float(PanelState("a", (0,), max_scale=1.0).filter(gaussians).scales.max()) <= 1.0
    assert PanelState("a", (0,), max_scale=NO_SCALE_LIMIT).filter(gaussians).num == gaussians.num
    assert (
        PanelState("a", (0,), keep_ratio=1e-9, opacity_threshold=1.0, max_scale=0.01).filter(gaussians).num
        == 1
    )


@pytest.mark.slow
def test_viewer_finds_the_controls(viewer: Viewer) -> None:
    """In one folder, and it starts although it reads every attribute of every object."""
    names = {path.rpartition("/")[2] for path, _ in viewer.viewer_elements}
    assert {
        "scene",
        "trajectory_5",
        "keep_ratio",
        "opacity_threshold",
        "max_scale",
        "stats",
        "reset",
    } <= names
    assert {path.rpartition("/")[0] for path, _ in viewer.viewer_elements} == {"Custom Elements/model/lyra"}
    assert not viewer.include_time


def rendered(viewer: Viewer) -> dict[str, torch.Tensor]:
    """A frame by the viewer's own render thread."""
    machine = RenderStateMachine(viewer, VISER_NERFSTUDIO_SCALE_RATIO, client=None)
    # Otherwise it chooses by how fast the machine happens to be.
    machine._calculate_image_res = lambda aspect: (48, 64)
    pose = viewer.pipeline.datamanager.train_dataset.cameras.camera_to_worlds[0]
    return machine._render_img(CameraState(1.0, 64 / 48, pose, CameraType.PERSPECTIVE))


def test_viewer_renders_and_its_controls_act(viewer: Viewer, pipeline: LyraPipeline) -> None:
    """Pictures of the kinds that its menu offers; scene, trajectories and filters change them."""
    panel = pipeline.model.lyra
    first = rendered(viewer)
    assert {"rgb", "depth", "accumulation"} <= set(first)
    assert "of 1,296 Gaussians" in panel.stats.value
    assert panel.stats.value.startswith("648 ")
    panel.trajectory_0.value = False
    fewer = rendered(viewer)
    assert "of 864 Gaussians" in panel.stats.value
    assert not torch.allclose(fewer["rgb"], first["rgb"])
    panel._reset()
    panel.scene.value = "wall_0"
    assert not torch.allclose(rendered(viewer)["rgb"], first["rgb"])
    panel._reset()
    torch.testing.assert_close(rendered(viewer)["rgb"], first["rgb"])


def test_switching_the_first_trajectory_off_leaves_the_scene_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gaussians come in the frame of the first camera that goes in; what is shown stays in the usual one.

    The decoder is one that sees the wall without a fault, so that the same picture is due whatever goes in.
    """
    start = torch.eye(4)
    start[:2, :2] = torch.tensor([[0.9, -(0.19**0.5)], [0.19**0.5, 0.9]])
    start[:3, 3] = torch.tensor([0.5, -0.3, -0.4])
    elsewhere = replace(PATHS[5], camera_to_world=start @ PATHS[5].camera_to_world)
    walls = write_wall_scenes(tmp_path, num_scenes=2, paths=PATHS | {5: elsewhere})
    pipeline = tiny_pipeline_config(walls).setup(device="cpu", test_mode="test")
    panel, seed = pipeline.model.lyra, int(pipeline.model.lyra.scene.value[-1])
    firsts: list[torch.Tensor] = []

    def perfect(self: Reconstructor, z: torch.Tensor, cameras: CameraPath, time: float | None) -> Gaussians:
        firsts.append(cameras.camera_to_world[0, 0])
        return wall_gaussians(seed).transform(invert_rigid(firsts[-1]))

    monkeypatch.setattr(Reconstructor, "__call__", perfect)
    camera = pipeline.datamanager.train_dataset.cameras[4:5]
    shown = pipeline.model.get_outputs_for_camera(camera)
    panel.trajectory_5.value = False
    fewer = pipeline.model.get_outputs_for_camera(camera)
    torch.testing.assert_close(firsts, [start, torch.eye(4)])
    assert float(shown["rgb"].std()) > 0.1
    for name in ("rgb", "depth"):
        torch.testing.assert_close(fewer[name], shown[name], rtol=1e-3, atol=1e-3)


def test_browsers_start_before_the_scene(viewer: Viewer, pipeline: LyraPipeline) -> None:
    """Behind the reference camera, looking at the middle of the Gaussians, with z up."""
    camera = SimpleNamespace()
    for place in viewer.viser_server._client_connect_cb:
        if place.__module__ == "lyra_ns.plugin.viewer_panel":
            place(SimpleNamespace(camera=camera))
    depth = VISER_NERFSTUDIO_SCALE_RATIO * float(pipeline.model.means[:, 1].median())
    assert camera.position[1] < 0.0
    assert camera.look_at == pytest.approx((0.0, depth, 0.0), rel=0.2)
    assert camera.up_direction == (0.0, 0.0, 1.0)


def test_a_damaged_scene_does_not_stop_the_viewer(viewer: Viewer, pipeline: LyraPipeline) -> None:
    """The panel says what is wrong, and another scene can be chosen."""
    latent = pipeline.datamanager.scenes.store.trajectory_root / "0" / "latent" / "wall_1.pkl"
    latent.write_bytes(b"not a latent")
    panel = pipeline.model.lyra
    panel.scene.value = "wall_1"
    picture = rendered(viewer)
    assert "wall_1" in panel.stats.value
    assert float(picture["accumulation"].max()) == 0.0
    panel._reset()
    assert float(rendered(viewer)["accumulation"].max()) > 0.0
