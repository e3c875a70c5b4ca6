"""Data parser, data set and the cameras that cross the border to nerfstudio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lyra_ns.cameras import look_at, relative_to
from lyra_ns.dataparsers.lyra import LyraDataParserConfig
from lyra_ns.plugin.datamanager import ClipDataset
from lyra_ns.plugin.errors import DataError
from lyra_ns.plugin.scenes import open_scenes
from lyra_ns.plugin.views import camera_path_of, nerfstudio_cameras
from tests.helpers.wall_scenes import NOVEL_PATH, NUM_FRAMES, PATHS, WALL_DISTANCE, wall, write_wall_scenes

ORDER = (5, 0, 1, 2, 3, 4)


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small scenes on disk."""
    return write_wall_scenes(tmp_path_factory.mktemp("walls"))


def test_cameras_survive_the_way_to_nerfstudio_and_back() -> None:
    """Pose, intrinsics, size and moment are the same; only the convention in between differs."""
    centres = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    path = replace(PATHS[5][:5], camera_to_world=look_at(centres, torch.zeros(5, 3)))
    back = camera_path_of(nerfstudio_cameras(path, with_times=True))
    torch.testing.assert_close(back.camera_to_world, path.camera_to_world)
    torch.testing.assert_close(back.intrinsics, path.intrinsics)
    torch.testing.assert_close(back.times, path.times)
    assert (back.height, back.width) == (path.height, path.width)


def test_a_camera_that_looks_forward_has_z_up_in_nerfstudio() -> None:
    """Nerfstudio's viewer orbits around +z, and its cameras look along their -z."""
    camera = nerfstudio_cameras(PATHS[0][:1], with_times=False)
    up, backward = camera.camera_to_worlds[0, :, 1], camera.camera_to_worlds[0, :, 2]
    assert up.tolist() == [0.0, 0.0, 1.0]
    assert backward.tolist() == [0.0, -1.0, 0.0]
    assert camera.times is None


def test_train_split_shows_the_inputs_in_reading_order(walls: Path) -> None:
    """Trajectory 5 comes first although its number is the highest; absent ones are left out."""
    parser = LyraDataParserConfig(data=walls).setup()
    outputs = parser.get_dataparser_outputs("train")
    assert parser.scenes.active == "wall_3"
    assert [view.path for view in parser.views("train").views[::NUM_FRAMES]] == [
        "trajectory_5",
        "trajectory_0",
        "trajectory_1",
    ]
    assert len(outputs.cameras) == len(outputs.image_filenames) == 3 * NUM_FRAMES
    assert len(set(outputs.image_filenames)) == 3 * NUM_FRAMES
    assert outputs.metadata["latents"].codec == "linear"
    assert not parser.includes_time


def test_poses_are_relative_to_the_first_listed_trajectory(walls: Path) -> None:
    """Held-out paths too."""
    scenes = open_scenes(walls, order=(0, 5))
    views = scenes.true_views("wall_3", every=4)
    expected = relative_to(NOVEL_PATH[::4], PATHS[0].camera_to_world[0])
    torch.testing.assert_close(views.cameras.camera_to_world, expected.camera_to_world)
    assert [view.frame for view in views.views] == [0, 4, 8]


def test_test_split_falls_back_to_the_inputs(tmp_path: Path) -> None:
    """Without held-out paths the input frames are what truth there is."""
    write_wall_scenes(tmp_path, num_scenes=2, with_novel=False)
    parser = LyraDataParserConfig(data=tmp_path).setup()
    assert {view.path for view in parser.views("test").views} == {
        "trajectory_5",
        "trajectory_0",
        "trajectory_1",
    }


def test_data_set_reads_frames_and_depth_out_of_the_clips(walls: Path) -> None:
    """The frame and the depth of the view asked for, up to what the video codec loses."""
    parser = LyraDataParserConfig(data=walls, scene="wall_1").setup()
    views = parser.views("test")
    dataset = ClipDataset(parser.outputs_of(views), views.views)
    item = dataset[2]
    frames, _ = wall(NOVEL_PATH, seed=1)
    truth = frames[8].permute(1, 2, 0).float() / 255
    assert (item["image"] - truth).abs().mean() < 0.02
    torch.testing.assert_close(
        item["depth_image"], torch.full((48, 64, 1), WALL_DISTANCE), rtol=1e-3, atol=0.0
    )


@pytest.mark.parametrize(("wanted", "found"), [("", "wall_3"), ("wall_2", "wall_2"), ("1", "wall_0")])
def test_scenes_are_chosen_by_name_or_position(walls: Path, wanted: str, found: str) -> None:
    """Held-out scenes come first."""
    assert open_scenes(walls, ORDER, wanted).active == found


def test_other_first_trajectories_are_placed_in_the_usual_frame(walls: Path) -> None:
    """Switching trajectories off in the viewer must not move the scene under the cameras."""
    scenes = open_scenes(walls, order=(5, 0))
    inputs = scenes.inputs("wall_0", (0,))
    expected = torch.linalg.inv(PATHS[5].camera_to_world[0]) @ PATHS[0].camera_to_world[0]
    torch.testing.assert_close(inputs.reference_from_first, expected)
    assert inputs.z.shape[:2] == (1, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": None}, "ns-lyra sample-data --output data/lyra-sample"),
        ({"data": Path("/nowhere")}, "/nowhere"),
        ({"active": "sofa"}, "there is no scene 'sofa'"),
        ({"active": "17"}, "a position from 0 to 3"),
    ],
)
def test_bad_input_is_one_data_error(walls: Path, arguments: dict, message: str) -> None:
    """It names what was found and what to do."""
    with pytest.raises(DataError, match=message):
        open_scenes(**({"data": walls, "order": ORDER} | arguments))


def test_no_listed_trajectory_is_a_data_error(walls: Path) -> None:
    """It names those that are there."""
    scenes = open_scenes(walls, order=(3, 4))
    with pytest.raises(DataError, match=r"only \[0, 1, 5\]"):
        scenes.trajectories("wall_0")
