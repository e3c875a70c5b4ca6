"""The benchmark at the paper's size: what of it runs at a size that a CPU can compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.full_size import forward, rendering
from benchmarks.full_size.__main__ import file_name, main
from benchmarks.full_size.forward import Way, decoder_of, forward_rows, reconstruct
from benchmarks.full_size.inputs import Size, cameras, conditioning, gaussians, latents
from benchmarks.full_size.measure import Measured
from benchmarks.kernels import cosmos_encoder
from lyra_ns.camera_paths import TRAJECTORIES
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.decoder.config import DecoderConfig

TINY = Size(num_frames=9, height=32, width=48)
SMALL = DecoderConfig(width=32, depth=2, pattern="1M1T", num_heads=2, state_size=8, head_dim=16)
NUM_CELLS = 9 * 4 * 6
"""Cells, and Gaussians, of a trajectory."""
NUM_KEPT = NUM_CELLS // 5
"""Those that stay of one trajectory."""


def measured_once(work: Callable[[], Any], *_: int) -> Measured:
    """Does the work, and says that it took two milliseconds."""
    work()
    return Measured(2.0, 1.5, 0.25)


def test_the_default_size_is_the_papers() -> None:
    """16 latent frames of 88 x 160 for each trajectory."""
    assert Size().latent_shape == (16, 88, 160)
    assert TINY.latent_shape == (2, 4, 6)


def test_cameras_are_the_official_paths_in_the_order_asked_for() -> None:
    """They start together, move apart, and keep what they are under any order and number."""
    every = cameras(6, TINY, "cpu")
    assert every.shape == (1, 6, 9)
    start = every.camera_to_world[0, :, 0]
    torch.testing.assert_close(start, torch.eye(4).expand(6, 4, 4))
    ends = every.camera_to_world[0, :, -1, :3, 3]
    assert torch.cdist(ends, ends)[~torch.eye(6, dtype=torch.bool)].min() > 0.01
    by_number = cameras(6, TINY, "cpu", order=range(len(TRAJECTORIES)))
    assert torch.equal(by_number.camera_to_world[:, READING_ORDER], every.camera_to_world)
    assert torch.equal(cameras(2, TINY, "cpu").camera_to_world, every.camera_to_world[:, :2])


def test_inputs_fit_the_decoder_and_are_the_same_every_time() -> None:
    """Latents differ from ray latents; each call draws the same."""
    z, given = latents(2, TINY, "cpu"), conditioning(2, TINY, "cpu")
    assert z.shape == (1, 2, 16, 2, 4, 6)
    assert given.plucker.shape == (1, 2, 32, 2, 4, 6)
    assert not torch.equal(z, given.plucker[:, :, :16])
    assert torch.equal(z, latents(2, TINY, "cpu"))
    assert decoder_of(SMALL, "cpu")(z, given).num == 2 * NUM_CELLS


def test_gaussians_lie_on_a_wall_in_front_of_all_cameras() -> None:
    """One for each cell, as wide as a part of it."""
    scene = gaussians(2, TINY, "cpu")
    assert scene.num == 2 * NUM_CELLS
    footprint = 8 / (0.8 * TINY.width)
    assert 0.5 < scene.means[:, 2].min() < scene.means[:, 2].max() < 2.0
    assert 0.05 * footprint < scene.scales.min() < scene.scales.max() < 1.5 * footprint
    assert 0.4 < scene.opacities.mean() < 0.6


def test_both_heads_keep_the_same_gaussians() -> None:
    """Those of the largest opacities, whether all are computed or only the kept ones."""
    z, given = latents(1, TINY, "cpu"), conditioning(1, TINY, "cpu")
    decoder = decoder_of(SMALL, "cpu")
    with torch.no_grad():
        whole, kept = (
            reconstruct(Way("any", SMALL, head_of_kept), decoder, z, given) for head_of_kept in (False, True)
        )
    assert whole.num == kept.num == NUM_KEPT
    assert whole.opacities.min() >= decoder(z, given).opacities.median()
    torch.testing.assert_close(kept.opacities, whole.opacities)
    torch.testing.assert_close(kept.means.sort(1).values, whole.means.sort(1).values)


def test_forward_rows_name_way_and_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way runs for each number of trajectories."""
    monkeypatch.setattr(forward, "measure", measured_once)
    chosen = [Way("all", SMALL, False), Way("kept", SMALL, True)]
    rows = forward_rows((1, 2), TINY, "cpu", chosen, repetitions=1)
    assert [(row["way"], row["num_views"]) for row in rows] == [
        ("all", 1), ("all", 2), ("kept", 1), ("kept", 2)
    ]  # fmt: skip
    assert all((row["ms"], row["peak_gib"], row["growth_gib"]) == (2.0, 1.5, 0.25) for row in rows)


def test_the_ways_differ_in_what_their_names_say() -> None:
    """Only the first is in the official regime, and only the fast ones leave the dropped Gaussians alone."""
    ways = {way.name: way for way in forward.ways()}
    assert [way.config.parity for way in ways.values()] == [True, False, False, False]
    assert [way.head_of_kept for way in ways.values()] == [False, False, True, True]
    assert ways["fast, low-precision attention"].config.attention == "fp8"
    assert {way.config.pattern for way in forward.ablations()} == {"T"}


def test_rendering_rows_hold_both_scenes_and_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All Gaussians and a fifth of them, each drawn in both ways from the path's middle."""
    drawn = []

    def render(scene: Any, paths: Any, settings: Any) -> None:
        drawn.append((scene.num, settings.response, paths.shape))

    monkeypatch.setattr(rendering, "render", render)
    monkeypatch.setattr(rendering, "measure", measured_once)
    rows = rendering.rendering_rows(1, TINY, "cpu")
    assert [(row["num_gaussians"], row["response"]) for row in rows] == [case[:2] for case in drawn]
    assert {case[2] for case in drawn} == {(1,)}
    assert {row["response"] for row in rows} == {"ewa", "ray3d"}
    assert {row["num_gaussians"] for row in rows} == {NUM_CELLS, NUM_KEPT}


def test_writing_rows_time_the_kept_gaussians() -> None:
    """A file is really written."""
    (row,) = rendering.writing_rows(1, TINY, "cpu")
    assert row["num_gaussians"] == NUM_KEPT
    assert 0 < row["seconds"] < 10


def test_costs_of_the_encoder_are_in_units_of_a_billion_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other than those of the rest, as its result files say."""
    monkeypatch.setattr(cosmos_encoder, "measure", measured_once)
    assert cosmos_encoder.cost(lambda: None, 1) == {"ms": 2.0, "peak_gb": 1.61, "growth_gb": 0.27}


def test_result_files_are_named_after_the_device() -> None:
    """Without the maker's name."""
    assert file_name("NVIDIA H200") == "full_size_h200.json"
    assert file_name("NVIDIA A100-SXM4-80GB") == "full_size_a100_sxm4_80gb.json"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_nothing_is_measured() -> None:
    """The program says so in one sentence."""
    with pytest.raises(SystemExit, match="CUDA device"):
        main()
