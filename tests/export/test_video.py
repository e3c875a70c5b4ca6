"""Videos that play, and the loop that they are rendered along."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lyra_ns.cameras import CameraPath, look_at, project
from lyra_ns.data.video import read_video
from lyra_ns.export.video import COVERED_SHARE, save_video, turntable_path


def moving_gradient(num_frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth frames that differ from each other, 0 to 1."""
    x = torch.linspace(0, 1, width).expand(num_frames, height, width)
    y = torch.linspace(0, 1, height)[:, None].expand(num_frames, height, width)
    t = torch.linspace(0, 1, num_frames)[:, None, None].expand(num_frames, height, width)
    return torch.stack([x, y, t], -1)


@pytest.mark.parametrize("kind", ["float", "uint8", "numpy"])
def test_frames_survive_the_codec(tmp_path: Path, kind: str) -> None:
    frames = moving_gradient(9, 31, 45)
    given = {"float": frames, "uint8": (frames * 255).round().byte(), "numpy": frames.double().numpy()}[kind]
    save_video(given, tmp_path / "new" / "clip.mp4", fps=12.5)
    found = read_video(tmp_path / "new" / "clip.mp4").permute(0, 2, 3, 1) / 255
    assert found.shape == (9, 32, 46, 3), "odd sizes grow by one"
    assert (found[:, :31, :45] - frames).abs().mean() < 0.02
    with av.open(str(tmp_path / "new" / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.pix_fmt == "yuv420p", "the one format that every browser plays"
        assert float(stream.average_rate) == pytest.approx(12.5)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        save_video(torch.zeros(0, 4, 4, 3), tmp_path / "clip.mp4")
    with pytest.raises(ValueError, match="uint8 or floats"):
        save_video(np.zeros((1, 4, 4, 3), np.int64), tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def six_ways(centre_depth: float) -> CameraPath:
    """Cameras [6, 5] that move apart from one start, somewhere in the world."""
    ends = torch.tensor([[-0.3, 0, 0], [0.3, 0, 0], [0, -0.2, 0], [0, 0, -0.4], [0, 0, 0.4], [0.1, 0.1, 0]])
    offsets = ends[:, None] * torch.linspace(0, 1, 5)[:, None]
    target = torch.tensor([0.0, 0.0, centre_depth]).expand(6, 5, 3)
    start = look_at(torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, -1.0, 4.0]))
    return CameraPath(
        start @ look_at(offsets, target),
        torch.tensor([50.0, 50.0, 40.0, 25.0]).expand(6, 5, 4),
        torch.zeros(6, 5),
        height=50,
        width=80,
    )


def test_turntable_is_a_closed_loop_around_the_centre_within_what_was_seen() -> None:
    cameras = six_ways(2.0)
    loop = turntable_path(cameras, 2.0, 24)
    reference = cameras[0, 0].camera_to_world
    centre = (reference @ torch.tensor([0.0, 0.0, 2.0, 1.0]))[:3]
    pixels, depth = project(centre.expand(24, 1, 3), loop)
    torch.testing.assert_close(pixels[:, 0], torch.tensor([40.0, 25.0]).expand(24, 2), atol=1e-3, rtol=0)
    assert (depth > 1).all()
    local = (torch.linalg.inv(reference) @ loop.camera_to_world)[:, :3, 3]
    torch.testing.assert_close(local[0], torch.zeros(3), atol=1e-6, rtol=0)
    assert local[:, 0].min() == pytest.approx(-0.3 * COVERED_SHARE, rel=0.01)
    assert local[:, 0].max() == pytest.approx(0.3 * COVERED_SHARE, rel=0.01)
    assert local[:, 1].min() == pytest.approx(-0.2 * COVERED_SHARE, rel=0.01)
    assert local[:, 1].max() <= 1e-6
    steps = (local.roll(-1, 0) - local).norm(dim=-1)
    assert steps[-1] <= steps.max(), "the last frame leads back to the first"
    assert steps.max() < 0.1


def test_turntable_moves_even_if_the_cameras_did_not() -> None:
    still = six_ways(2.0)[:, :1]
    loop = turntable_path(still, 2.0, 8)
    assert loop.camera_to_world[:, :3, 3].std(0).norm() > 0.02
    with pytest.raises(ValueError, match="positive centre depth"):
        turntable_path(still, 0.0, 8)
