"""Conditioning: what is encoded, in which order, and how often."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.cameras import CameraPath, cell_centres, plucker_map, ray_grid
from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.decoder import conditioning as conditioning_room
from lyra_ns.decoder.conditioning import Conditioning, ConditioningBuilder, time_video


class AveragingCodec:
    """Latents are means over 8 x 8 pixels and 8 frames (the first frame alone); counts what it encodes."""

    spec = VideoLatentSpec("averaging", num_channels=3)

    def __init__(self) -> None:
        self.batches: list[int] = []

    def to(self, device: Any) -> AveragingCodec:
        """The same codec."""
        return self

    def encode(self, video: Tensor) -> Tensor:
        """Means of [N, 3, L, H, W]."""
        self.batches.append(video.shape[0])
        cells = video.unflatten(4, (-1, 8)).unflatten(3, (-1, 8)).mean((4, 6))
        return torch.cat([cells[:, :, :1], cells[:, :, 1:].unflatten(2, (-1, 8)).mean(3)], 2)

    def decode(self, raw: Tensor) -> Tensor:
        """Not part of conditioning."""
        raise NotImplementedError

    to_diffusion = from_diffusion = decode


class NetworkCodecForTests(AveragingCodec):
    """The same with all that tells a costly encoder."""

    def __init__(self, digest: str = "d", encoding: str = "fast", video_dtype: Any = torch.bfloat16) -> None:
        super().__init__()
        self.spec = VideoLatentSpec("network", num_channels=3, digest=digest)
        self.encoding, self.video_dtype = encoding, video_dtype
        self.asked: list[tuple[int, int, int]] = []
        self.dtypes: set[torch.dtype] = set()

    def clips_at_once(self, num_frames: int, height: int, width: int) -> int:
        """Two views and a half."""
        self.asked.append((num_frames, height, width))
        return 5

    def encode(self, video: Tensor) -> Tensor:
        """Means, and a note of the type."""
        self.dtypes.add(video.dtype)
        return super().encode(video.float())


def make_cameras(scenes: int = 2, views: int = 3, frames: int = 9, seed: int = 0) -> CameraPath:
    """Cameras [scenes, views, frames] with small random motions."""
    generator = torch.Generator().manual_seed(seed)
    shape = (scenes, views, frames)
    angle = 0.1 * torch.randn(shape, generator=generator)
    pose = torch.eye(4).repeat(*shape, 1, 1)
    pose[..., 0, 0] = pose[..., 2, 2] = angle.cos()
    pose[..., 0, 2], pose[..., 2, 0] = angle.sin(), -angle.sin()
    pose[..., :3, 3] = 0.2 * torch.randn(*shape, 3, generator=generator)
    intrinsics = torch.tensor([30.0, 30.0, 16.0, 12.0]).expand(*shape, 4)
    return CameraPath(pose, intrinsics, torch.linspace(0, 1, frames).expand(shape), 24, 32)


def test_plucker_is_moment_then_direction() -> None:
    """Two raw three-channel videos per view through the encoder, moment first, view by view."""
    cameras = make_cameras()
    conditioning = ConditioningBuilder(AveragingCodec(), 8).build(cameras)
    assert conditioning.plucker.shape == (2, 3, 6, 2, 3, 4)
    maps = plucker_map(ray_grid(cameras[1, 2], 24, 32))
    first_cell = maps[0, :8, :8].mean((0, 1))
    torch.testing.assert_close(conditioning.plucker[1, 2, :, 0, 0, 0], first_cell)
    last_cell = maps[1:, 16:, 24:].mean((0, 1, 2))
    torch.testing.assert_close(conditioning.plucker[1, 2, :, 1, 2, 3], last_cell)
    assert conditioning.time is None


@pytest.mark.parametrize(("cell_size", "grid"), [(4, (6, 8)), (8, (3, 4))])
def test_one_ray_per_cell(cell_size: int, grid: tuple[int, int]) -> None:
    """Rays go through the middle of the Gaussians' cells, in float32."""
    cameras = make_cameras()
    rays = ConditioningBuilder(AveragingCodec(), cell_size).build(cameras).rays
    assert rays.directions.shape == (2, 3, 9, *grid, 3)
    assert rays.directions.dtype == torch.float32
    torch.testing.assert_close(rays.directions, ray_grid(cameras, *grid).directions)
    torch.testing.assert_close(rays.origins[1, 2, 4, 0, 0], cameras.camera_to_world[1, 2, 4, :3, 3])


def test_views_are_encoded_once() -> None:
    """The same paths in another order or batch are found again; others are not."""
    codec = AveragingCodec()
    builder = ConditioningBuilder(codec, 8)
    cameras = make_cameras()
    first = builder.build(cameras)
    assert sum(codec.batches) == 2 * 6  # moment and direction of six views
    codec.batches.clear()
    swapped = builder.build(cameras[:, [2, 0, 1]])
    assert codec.batches == []
    assert torch.equal(swapped.plucker, first.plucker[:, [2, 0, 1]])
    moved = cameras.camera_to_world.clone()
    moved[0, 1, 4, 0, 3] += 1e-4
    builder.build(replace(cameras, camera_to_world=moved))
    assert codec.batches == [2]
    codec.batches.clear()
    builder.build(replace(cameras, intrinsics=cameras.intrinsics * 1.1))
    builder.build(cameras.resized(48, 64))
    assert sum(codec.batches) == 2 * 12


def test_equal_views_of_one_batch_are_encoded_once() -> None:
    """A path that occurs twice costs once, and keeps its place."""
    codec = AveragingCodec()
    cameras = make_cameras()
    twice = cameras[:, [0, 1, 0]]
    plucker = ConditioningBuilder(codec, 8).build(twice).plucker
    assert codec.batches == [8]
    assert torch.equal(plucker[:, 0], plucker[:, 2])
    assert torch.equal(plucker, ConditioningBuilder(codec, 8).build(cameras).plucker[:, [0, 1, 0]])


def test_large_encoders_get_few_views_at_once() -> None:
    """The size of the groups bounds memory and changes no number."""
    one_by_one, together = AveragingCodec(), AveragingCodec()
    streamed = ConditioningBuilder(one_by_one, 8, views_at_once=1).build(make_cameras())
    batched = ConditioningBuilder(together, 8, views_at_once=4).build(make_cameras())
    assert one_by_one.batches == [2] * 6  # each time a moment and a direction video
    assert together.batches == [8, 4]
    torch.testing.assert_close(streamed.plucker, batched.plucker)


def test_maps_are_built_a_few_frames_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rays of one frame, or of some, exist at a time; the encoder sees the same videos."""
    cameras = make_cameras()
    expected = ConditioningBuilder(AveragingCodec(), 8).build(cameras).plucker
    sizes: list[int] = []
    whole = conditioning_room.ray_grid

    def counted(cameras: CameraPath, height: int, width: int) -> Any:
        sizes.append(cameras.shape.numel() * height * width)
        return whole(cameras, height, width)

    monkeypatch.setattr(conditioning_room, "ray_grid", counted)
    for limit, largest in ((4 * 2 * 24 * 32, 4 * 2 * 24 * 32), (1, 4 * 24 * 32)):
        monkeypatch.setattr(conditioning_room, "RAYS_AT_ONCE", limit)
        sizes.clear()
        found = ConditioningBuilder(AveragingCodec(), 8, views_at_once=4).build(cameras).plucker
        assert max(sizes) == largest
        assert torch.equal(found, expected)


def test_networks_say_how_many_views_and_in_which_type() -> None:
    """A network is asked what its memory allows and gets its videos in its own type."""
    codec = NetworkCodecForTests()
    ConditioningBuilder(codec, 8, cache_folder=None).build(make_cameras(1, 5))
    assert codec.batches == [4, 4, 2]  # five clips at once are two views
    assert codec.asked == [(9, 24, 32)]
    assert codec.dtypes == {torch.bfloat16}


def test_folder_is_for_networks_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is dear to encode goes to the user's cache folder by itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    builder = ConditioningBuilder(NetworkCodecForTests(), 8)
    assert builder.folder is not None
    assert builder.folder.folder == tmp_path / "lyra_ns" / "ray_maps"
    assert ConditioningBuilder(AveragingCodec(), 8).folder is None
    assert ConditioningBuilder(NetworkCodecForTests(), 8, cache_folder=None).folder is None
    without_digest = NetworkCodecForTests(digest="")
    assert ConditioningBuilder(without_digest, 8).folder is None
    with pytest.raises(ValueError, match="needs a digest of its weights, found network without"):
        ConditioningBuilder(without_digest, 8, cache_folder=tmp_path)


@pytest.mark.parametrize("max_cache_bytes", [2**30, 0])
def test_another_run_finds_what_was_encoded(tmp_path: Path, max_cache_bytes: int) -> None:
    """Same numbers, nothing encoded, times included; other weights, types or rays share nothing."""
    cameras, target = make_cameras(), torch.tensor([0.25, 0.5])

    def run(**settings: Any) -> tuple[Conditioning, list[int]]:
        codec = NetworkCodecForTests(**{"digest": "d", **settings.pop("codec", {})})
        builder = ConditioningBuilder(
            codec, 8, max_cache_bytes=max_cache_bytes, cache_folder=tmp_path, **settings
        )
        return builder.build(cameras, target), codec.batches

    first, batches = run()
    assert sum(batches) == 2 * 6 + 1 + 2
    assert len(list(tmp_path.iterdir())) == 6 + 1 + 2
    again, batches = run(ray_dtype="bfloat16")  # rays of cells are not encoded
    assert batches == []
    assert torch.equal(again.plucker, first.plucker)
    assert again.time is not None
    assert first.time is not None
    assert torch.equal(again.time, first.time)
    others: list[dict[str, Any]] = [
        {"plucker_dtype": "bfloat16"},
        {"codec": {"digest": "e"}},
        {"codec": {"encoding": "plain"}},
    ]
    for other in others:
        assert sum(run(**other)[1]) == 15


def test_builder_without_cache_still_builds() -> None:
    """A limit of zero bytes means encoding every time."""
    codec = AveragingCodec()
    builder = ConditioningBuilder(codec, 8, max_cache_bytes=0)
    first, second = builder.build(make_cameras()), builder.build(make_cameras())
    assert sum(codec.batches) == 2 * 12
    assert torch.equal(first.plucker, second.plucker)


@pytest.mark.parametrize(
    ("moment", "colour"),
    [(0.0, (0, 1, 0)), (0.5, (0.5, 0.8776, 0.4794)), (1.0, (1, 0.5403, 0.8415))],
)
def test_time_colours(moment: float, colour: tuple[float, ...]) -> None:
    """The values of docs/reference/decoder.md, "Time embedding", mapped from 0..1 to -1..1."""
    video = time_video(torch.tensor([[moment]]), 2, 3)
    assert video.shape == (1, 3, 1, 2, 3)
    expected = torch.tensor([2.0 * channel - 1 for channel in colour]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(video, expected.expand_as(video), atol=1e-4, rtol=0)


def test_source_and_target_times() -> None:
    """Frames' times as one video, the target alone as one frame; encoded once for scenes that share them."""
    codec = AveragingCodec()
    builder = ConditioningBuilder(codec, 8)
    cameras = make_cameras()
    builder.build(cameras)
    codec.batches.clear()
    conditioning = builder.build(cameras, target_time=torch.tensor([0.25, 1.0]))
    assert codec.batches == [1, 2]
    assert conditioning.time_source is not None
    assert conditioning.time_target is not None
    assert conditioning.time_source.shape == (2, 3, 2, 3, 4)
    assert conditioning.time_target.shape == (2, 3, 1, 3, 4)
    mean_time = 2 * torch.linspace(0, 1, 9)[1:].mean() - 1
    torch.testing.assert_close(conditioning.time_source[0, 0, 1, 0, 0], mean_time)
    torch.testing.assert_close(
        conditioning.time_target[:, 2, 0, 1, 1], 2 * torch.tensor([math.sin(0.25), math.sin(1.0)]) - 1
    )
    assert conditioning.time is not None
    assert torch.equal(conditioning.time[:, :, -1:], conditioning.time_target)


def test_bfloat16_regime() -> None:
    """Official rays and maps carry bfloat16's rounding but come out as float32, each by its own switch."""
    cameras = make_cameras()
    plain = ConditioningBuilder(AveragingCodec(), 8).build(cameras)
    coarse_rays = ConditioningBuilder(AveragingCodec(), 8, ray_dtype="bfloat16").build(cameras)
    coarse_maps = ConditioningBuilder(AveragingCodec(), 8, plucker_dtype="bfloat16").build(cameras)
    assert coarse_rays.rays.directions.dtype == coarse_maps.plucker.dtype == torch.float32
    assert torch.equal(coarse_rays.plucker, plain.plucker)
    assert torch.equal(coarse_maps.rays.directions, plain.rays.directions)
    rounded = coarse_rays.rays.directions.bfloat16().float()
    assert torch.equal(coarse_rays.rays.directions, rounded)
    error = (coarse_rays.rays.directions - plain.rays.directions).abs().max()
    assert 1e-4 < error < 2e-2
    assert 1e-4 < (coarse_maps.plucker - plain.plucker).abs().max() < 2e-2


def test_bfloat16_columns_collapse_as_in_the_official_code() -> None:
    """145 of 160 columns, 481 of 1280 and 369 of 704 rows stay distinct.

    Source: docs/reference/decoder.md, "Precision".
    """
    for size, distinct in ((160, 145), (1280, 481), (704, 369)):
        assert cell_centres(size, torch.zeros(1, dtype=torch.bfloat16)).unique().numel() == distinct
        assert torch.equal(cell_centres(size, torch.zeros(1)), torch.arange(size) + 0.5)


def test_bad_cameras() -> None:
    """What cannot be encoded is refused before anything is computed."""
    builder = ConditioningBuilder(AveragingCodec(), 8)
    with pytest.raises(ValueError, match=r"\[B, V, L\]"):
        builder.build(make_cameras()[0])
    with pytest.raises(ValueError, match="8k \\+ 1 frames, found 5"):
        builder.build(make_cameras()[:, :, :5])
    with pytest.raises(ValueError, match="multiples of 8"):
        builder.build(make_cameras().resized(20, 32))
    with pytest.raises(ValueError, match="cell size 16"):
        ConditioningBuilder(AveragingCodec(), 16).build(make_cameras())
    with pytest.raises(ValueError, match="views_at_once"):
        ConditioningBuilder(AveragingCodec(), 8, views_at_once=0)
    shifted = make_cameras()
    times = shifted.times.clone()
    times[:, 1] = times[:, 1].flip(-1)
    with pytest.raises(ValueError, match="same times"):
        builder.build(replace(shifted, times=times), torch.tensor([0.0, 0.0]))
