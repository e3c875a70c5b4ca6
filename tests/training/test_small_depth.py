"""The small depth network: its contract, the scenes it learns from, its training, and what ships."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lyra_ns.cameras import CameraPath
from lyra_ns.depth.small import (
    SmallDepth,
    SmallDepthConfig,
    SmallDepthNetwork,
    load_small_depth,
    save_small_depth,
    upsample_by_colour,
    working_size,
)
from lyra_ns.synthetic.render import SceneRenderer
from lyra_ns.synthetic.scenes import Lighting, ProceduralScene
from lyra_ns.synthetic.solids import Material, Solid
from lyra_ns.synthetic.textures import save_texture_atlas
from training.small_depth import data
from training.small_depth.data import FARTHEST, ScenePool, SceneSource, capped_log_depth
from training.small_depth.groups import THINGS, build_groups
from training.small_depth.rendering import SHAPES, render_scenes
from training.small_depth.scenes import NUM_SURFACES, ROOM, SKY
from training.small_depth.train import Training, TrainingOptions, depth_distance, rate_at, train
from training.small_depth.validate import (
    DepthErrors,
    depth_errors,
    errors_on_drawn_scenes,
    errors_on_photograph,
    errors_on_sample_scenes,
)

SMALL = SmallDepthConfig(
    (8, 8, 16, 16, 24), (1, 1, 1, 1), num_heads=2, use_trunk=False, working_pixels=64 * 96
)


@pytest.fixture
def estimator() -> SmallDepth:
    torch.manual_seed(0)
    return SmallDepth(SmallDepthNetwork(SMALL).eval())


@pytest.fixture(scope="module")
def source() -> SceneSource:
    return SceneSource("cpu", 5, held_out=False, num_groups=2 * len(THINGS))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "BATCH_SHAPES", ((32, 64), (64, 32)))


def picture(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    coarse = torch.rand(1, 3, 5, 7, generator=generator)
    return functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def options(output: Path, **changes: Any) -> TrainingOptions:
    settings: dict[str, Any] = {
        "seconds": 0.4, "device": "cpu", "batch_size": 2, "pool_size": 4, "image_size": 64,
        "rendered_at_once": 2, "num_validation": 1, "use_trunk": False,
    }  # fmt: skip
    return TrainingOptions(output, **(settings | changes))


def test_the_network_is_small_enough_to_ship(tmp_path: Path) -> None:
    network = SmallDepthNetwork()
    save_small_depth(network, tmp_path / "weights.safetensors")
    assert sum(parameter.numel() for parameter in network.parameters()) <= 2_500_000
    assert (tmp_path / "weights.safetensors").stat().st_size <= 5_000_000


@pytest.mark.parametrize(("height", "width"), [(50, 120), (90, 40), (64, 96)])
def test_depth_is_relative_with_median_one_at_any_size(
    estimator: SmallDepth, height: int, width: int
) -> None:
    intrinsics = torch.tensor([60.0, 60.0, width / 2, height / 2])
    found = estimator.predict(picture(height, width), intrinsics)
    assert found.depth.shape == (height, width)
    assert bool(found.known.all())
    assert float(found.depth.median()) == pytest.approx(1)
    assert found.intrinsics is intrinsics
    assert not found.is_metric
    assert not found.has_training_units
    assert estimator.predict(picture(height, width)).intrinsics is None


def test_a_mirrored_picture_has_mirrored_depth(estimator: SmallDepth) -> None:
    image = picture(64, 96)
    straight, mirrored = (estimator.predict(x).depth for x in (image, image.flip(-1)))
    torch.testing.assert_close(mirrored.flip(-1), straight, rtol=1e-3, atol=1e-3)
    assert float(straight.std()) > 1e-3


def test_contrast_is_a_power_of_depth(estimator: SmallDepth) -> None:
    image = picture(64, 96)
    whole, half = (replace(estimator, contrast=power).predict(image).depth for power in (1.0, 0.5))
    torch.testing.assert_close(half, whole.sqrt())


def test_working_sizes_keep_aspect_and_area() -> None:
    assert working_size(704, 1280, 256 * 192) == (160, 288)
    assert working_size(1000, 500, 256 * 192) == (320, 160)
    assert working_size(10, 5000, 256 * 192)[0] == 32


def test_weights_come_back_from_their_file(estimator: SmallDepth, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_small_depth(estimator.network, path)
    again = load_small_depth("cpu", path)
    assert again.network.config == SMALL
    image = picture(64, 96)
    torch.testing.assert_close(
        again.predict(image).depth, estimator.predict(image).depth, rtol=0.01, atol=0.01
    )


def test_missing_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train them with"):
        load_small_depth("cpu", tmp_path / "nothing.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(Path(str(files("lyra_ns.weights").joinpath("linear_codec.safetensors"))).read_bytes())
    with pytest.raises(ValueError, match="no small depth network"):
        load_small_depth("cpu", foreign)
    foreign.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no small depth network"):
        load_small_depth("cpu", foreign)


def test_upsampled_edges_follow_the_photograph() -> None:
    """A map whose edge was smeared over two cells gets back the sharp edge of the image."""
    edge = 37
    image = torch.full((3, 48, 80), 0.2)
    image[:, :, edge:] = 0.8
    small = functional.interpolate(image[None], (12, 20), mode="bilinear", antialias=True)[0]
    values = torch.where(torch.arange(20) < 9, 1.0, 3.0)
    values[8:10] = torch.tensor([1.2, 2.0])
    found = upsample_by_colour(values.expand(12, 20), small, image)
    assert float(found[:, : edge - 3].max()) < 1.3
    assert float(found[:, edge + 3 :].min()) > 2.7
    assert float((found[:, edge] - found[:, edge - 1]).min()) > 1.0


@pytest.mark.slow
def test_depth_of_scenes_is_that_of_the_other_renderer(source: SceneSource) -> None:
    generator = torch.Generator().manual_seed(1)
    scenes = source.drawer.draw(6, generator)
    rendered = render_scenes(scenes, source.atlas, 48)
    assert bool((scenes.is_room.sum() > 0) & (scenes.is_room.sum() < 6))
    for k in range(6):
        pose = torch.eye(4)
        pose[:3, :3] = scenes.world_from_camera[k]
        focal = float(scenes.focal[k]) * 48
        intrinsics = torch.tensor([[focal, focal, 24.0, 24.0]])
        camera = CameraPath(pose[None], intrinsics, torch.zeros(1), 48, 48)
        depth = SceneRenderer(as_procedural(scenes, k)).render(camera, supersampling=1).depth[0]
        agree = (rendered.depth[k] / depth - 1).abs() < 1e-3
        # Rays that graze an edge may be decided otherwise by rounding.
        assert float(agree.float().mean()) > 0.995


def as_procedural(scenes: Any, k: int) -> ProceduralScene:
    """Scene k of a batch as the sample data's renderer takes it."""
    solids = []
    for number in scenes.solids.is_there[k].nonzero().flatten().tolist():
        row = {key: value[k, number] for key, value in vars(scenes.solids).items()}
        x, y, z = row["centre"].tolist()
        solids.append(
            Solid(
                SHAPES[number], (x, y, z), tuple(row["half_extents"].tolist()), Material((0,)),
                yaw=float(row["turn"][0]), tilt=float(row["turn"][1]), taper=float(row["taper"]),
                encloses=number in (ROOM, SKY),
            )
        )  # fmt: skip
    light = Lighting((0.0, -1.0, 0.0), 0.5, 0.0, (0.5, 0.5, 0.5))
    return ProceduralScene("scene", 4.0, float(scenes.floor[k]), solids, torch.rand(1, 3, 16, 16), light)


def test_scenes_are_varied_and_free_of_flaws(source: SceneSource) -> None:
    scenes = source.drawer.draw(64, torch.Generator().manual_seed(2))
    rendered = render_scenes(scenes, source.atlas, 24)
    assert bool(rendered.rgb.isfinite().all())
    assert float(rendered.rgb.std((1, 2, 3)).mean()) > 0.08
    assert 0.3 < float(scenes.is_room.float().mean()) < 0.8
    assert float(scenes.focal.min()) < 0.7 < 1.4 < float(scenes.focal.max())
    seen = rendered.depth[~rendered.is_sky]
    assert float(seen.min()) > 0.05
    assert not bool(rendered.is_sky[scenes.is_room].any())
    assert 0.05 < float(rendered.is_sky[~scenes.is_room].float().mean()) < 0.6
    assert int(scenes.solids.surface.max()) < NUM_SURFACES
    assert float((rendered.depth.flatten(1).amax(1) / rendered.depth.flatten(1).amin(1)).min()) > 1.05


def test_groups_are_of_all_kinds_and_within_their_extent() -> None:
    groups = build_groups(len(THINGS), 0)
    again = build_groups(len(THINGS), 0)
    assert torch.equal(groups.centre, again.centre)
    assert int(groups.is_there.sum(1).min()) >= 1
    assert len(groups.shape[groups.is_there].unique()) == 3
    reach = groups.centre[..., [0, 2]].norm(dim=-1) * groups.is_there
    assert bool((reach.amax(1) <= groups.radius).all())
    lowest = (groups.centre[..., 1] + groups.half_extents[..., 1])[
        groups.is_there & (groups.turn[..., 1] == 0)
    ]
    assert float(lowest.max()) < 0.2


@pytest.mark.slow
def test_training_never_sees_held_out_pictures(source: SceneSource) -> None:
    held_out = SceneSource("cpu", 6, held_out=True, num_groups=len(THINGS))
    own, others = (set(s.drawer.sources.textures.tolist()) for s in (source, held_out))
    assert own
    assert others
    assert own.isdisjoint(others)


def test_sky_lies_at_the_cap_of_depth() -> None:
    depth = torch.full((2, 8, 8), 2.0)
    depth[0, 0, 1] = 5000.0
    sky = torch.zeros(2, 8, 8, dtype=torch.bool)
    sky[0, :3] = True
    sky[1] = True
    found = capped_log_depth(depth, sky).exp()
    assert float(found[0, 5, 5]) == pytest.approx(2)
    assert float(found[0, 0, 0]) == pytest.approx(2 * FARTHEST)
    assert bool(found[1].isfinite().all())


def test_batches_pair_pictures_with_their_depth(source: SceneSource) -> None:
    """Where depth jumps, colours mostly jump too, in crops and mirror images alike."""
    pool = ScenePool(source, 8, 96, 4)
    batch = pool.batch(8, (64, 96))
    assert batch.rgb.shape == (8, 3, 64, 96)
    assert batch.log_depth.shape == (8, 64, 96)
    assert 0 <= float(batch.rgb.min()) < float(batch.rgb.max()) <= 1
    change = (batch.rgb[:, :, :, 1:] - batch.rgb[:, :, :, :-1]).abs().mean(1)
    jumps = (batch.log_depth[:, :, 1:] - batch.log_depth[:, :, :-1]).abs() > 0.2
    assert int(jumps.sum()) > 20
    assert float(change[jumps].mean()) > 1.5 * float(change[~jumps].mean())


def test_the_pool_replaces_its_oldest_images(source: SceneSource) -> None:
    pool = ScenePool(source, 4, 32, 2)
    before = pool._rgb.clone()
    pool.renew()
    changed = (pool._rgb != before).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="multiple of 3"):
        ScenePool(source, 4, 32, 3)


def test_the_loss_ignores_the_factor_of_depth_alone() -> None:
    torch.manual_seed(0)
    target = torch.randn(2, 16, 24)
    shift = torch.tensor([0.7, -2.0])[:, None, None]
    assert float(depth_distance(target + shift, target, 0.5)) == pytest.approx(0, abs=1e-5)
    assert float(depth_distance(0.5 * target, target, 0.5)) > 0.3
    flat = float(depth_distance(torch.zeros_like(target), target, 0.0))
    assert float(depth_distance(torch.zeros_like(target), target, 0.5)) > flat


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(share) for share in (0.0, 0.02, 0.5, 1.0, 1.2)]
    assert rates[0] < 0.1
    assert rates[1] == pytest.approx(1, abs=0.01)
    assert rates[2] == pytest.approx(0.5)
    assert rates[3:] == [0, 0]


class _WaitsForDevice(TorchDispatchMode):
    """Remembers operations that would make the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select")):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
def test_steps_never_wait_for_the_device(source: SceneSource) -> None:
    network = SmallDepthNetwork(SMALL)
    pool = ScenePool(source, 2, 64, 2)
    with _WaitsForDevice() as waits:
        pool.renew()
        batch = pool.batch(2, (32, 64))
        depth_distance(network(batch.rgb), batch.log_depth, 0.5).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    assert waits.found == []


@pytest.mark.slow
def test_the_loss_falls(source: SceneSource, tmp_path: Path) -> None:
    batch = ScenePool(source, 4, 64, 4).batch(4, (64, 64))
    training = Training(options(tmp_path / "weights.safetensors", seconds=100.0))
    training.elapsed = 5.0
    losses = [float(training._step(batch)) for _ in range(25)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:3]) * 5 / 3


@pytest.mark.slow
def test_training_writes_weights_and_goes_on(small_batches: None, tmp_path: Path) -> None:
    output, state = tmp_path / "weights.safetensors", tmp_path / "state.pt"
    found = train(options(output, checkpoint=state))
    assert found["steps"] >= 1
    assert all(math.isfinite(value) for value in found["motorcycle_photograph"].values())
    assert load_small_depth("cpu", output).network.config.use_trunk is False
    more = Training(options(output, checkpoint=state))
    assert more.step == found["steps"]
    stored = load_small_depth("cpu", output).network.head.weight
    torch.testing.assert_close(more.average.head.weight, stored, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_training_takes_an_atlas_where_there_is_no_scikit_image(
    small_batches: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_texture_atlas(tmp_path / "atlas.safetensors")
    monkeypatch.setattr(data, "packaged_textures", lambda: pytest.fail("the atlas was not used"))
    output = tmp_path / "weights.safetensors"
    changes = {"texture_atlas": tmp_path / "atlas.safetensors", "num_validation": 0, "seconds": 0.01}
    assert train(options(output, **changes)).keys() == {"steps", "seconds"}
    assert output.is_file()


def test_errors_are_those_of_their_definition() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 20), torch.linspace(0, 1, 30), indexing="ij")
    true = 1 / (0.5 + 0.3 * x + 0.2 * y)
    perfect = depth_errors(3 * true, true)
    assert perfect.scaled == pytest.approx(0, abs=1e-5)
    assert perfect.plane == pytest.approx(0, abs=1e-5)
    assert perfect.constant == pytest.approx(float(((true.median() - true).abs() / true).mean()), rel=1e-4)
    shifted = depth_errors(1 / (1 / true + 0.4), true)
    assert shifted.fitted == pytest.approx(0, abs=1e-5)
    assert shifted.scaled > 0.01
    holes = torch.where(x > 0.5, 0.0, true)
    assert depth_errors(torch.where(x > 0.5, 9.0, true), holes).scaled == pytest.approx(0, abs=1e-5)


def assert_better(found: DepthErrors, than_constant: float, than_plane: float) -> None:
    assert found.scaled < than_constant * found.constant
    assert found.fitted < than_plane * found.plane


@pytest.mark.slow
def test_the_shipped_network_knows_depth() -> None:
    estimator = load_small_depth()
    assert_better(errors_on_drawn_scenes(estimator, 6), 0.97, 0.97)
    assert_better(errors_on_sample_scenes(estimator, 6), 0.8, 0.7)
    assert_better(errors_on_photograph(estimator), 0.7, 0.97)
