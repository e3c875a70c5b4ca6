"""The memory estimate against the tensors that are really alive."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import load_codec
from lyra_ns.decoder.conditioning import Conditioning, ConditioningBuilder
from lyra_ns.decoder.config import TINY_DECODER, DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.decoder.pruned_head import pruned_gaussians
from lyra_ns.memory import (
    NUM_SEGMENTS,
    OWN_CHUNK,
    DoesNotFit,
    InferencePlan,
    MemoryEstimate,
    SceneSize,
    available_bytes,
    estimate_inference_memory,
    explaining_exhaustion,
    gib,
    inference_plan,
)
from tests.helpers.peak_memory import PeakMemory

OFFICIAL = {"depth": 1, "pattern": "M"}
SIZE = SceneSize(num_views=2, latent_frames=3, height=16, width=20)
LONG = SceneSize(num_views=5, latent_frames=4, height=12, width=18)


def small_estimate(
    config: DecoderConfig, size: SceneSize, plan: InferencePlan, prune_ratio: float
) -> MemoryEstimate:
    """The estimate for the processor and the linear codec."""
    return estimate_inference_memory(
        config,
        size,
        plan,
        prune_ratio=prune_ratio,
        codec="linear",
        scan="chunked" if config.ssd_backend == "auto" else config.ssd_backend,
        is_low_precision=config.trunk_dtype == "bfloat16",
    )


def moving_cameras(size: SceneSize) -> CameraPath:
    """A path of its own for each view, so that no encoded map serves two."""
    frames = 8 * (size.latent_frames - 1) + 1
    poses = torch.eye(4).repeat(1, size.num_views, frames, 1, 1)
    poses[..., 0, 3] = torch.linspace(0, 1, frames)
    poses[..., 1, 3] = torch.arange(size.num_views)[:, None]
    height, width = 8 * size.height, 8 * size.width
    intrinsics = torch.tensor([width, width, width / 2, height / 2]).repeat(1, size.num_views, frames, 1)
    times = torch.linspace(0, 1, frames).repeat(1, size.num_views, 1)
    return CameraPath(poses, intrinsics, times, height, width)


def given_bytes(latents: torch.Tensor, given: Conditioning) -> int:
    """What trunk and head find there."""
    kept = (latents, given.plucker, given.rays.directions, given.rays.cell_size)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


def measured(
    config: DecoderConfig, size: SceneSize, plan: InferencePlan, prune_ratio: float
) -> dict[str, int]:
    """Peak bytes of the stages; the head's with those of its Gaussians."""
    decoder = LatentGaussianDecoder(config)
    builder = ConditioningBuilder(load_codec("linear"), config.cell_size, views_at_once=plan.views_at_once)
    latents = torch.randn(1, size.num_views, 16, size.latent_frames, size.height, size.width)
    with torch.no_grad(), PeakMemory() as conditioning:
        given = builder.build(moving_cameras(size))
    known = (latents, *vars(given.rays).values(), *decoder.parameters())
    with torch.no_grad(), PeakMemory(given.plucker, *known) as trunk:
        tokens = decoder.encode(latents, given.plucker)
    with torch.no_grad(), PeakMemory(*known) as head:
        # The tokens count as seen at their first use.
        pruned_gaussians(decoder, tokens, latents.shape, given.rays, prune_ratio, plan.latent_frames_at_once)
    before = given_bytes(latents, given)
    return {"conditioning": conditioning.peak, "trunk": before + trunk.peak, "head": before + head.peak}


@pytest.mark.slow
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(
    ("config", "size", "prune_ratio"),
    [
        (DecoderConfig(**OFFICIAL), SIZE, 0.8),
        (DecoderConfig(**OFFICIAL, trunk_dtype="bfloat16"), SIZE, 0.8),
        (DecoderConfig(**OFFICIAL | {"pattern": "T"}), SIZE, 0.0),
        (replace(TINY_DECODER, depth=2, pattern="1M1T"), LONG, 0.5),
        (replace(TINY_DECODER, depth=1), LONG, 0.0),
    ],
    ids=["official", "bfloat16", "attention", "tiny", "unpruned"],
)
def test_estimate_bounds_what_is_alive(
    config: DecoderConfig, size: SceneSize, prune_ratio: float, is_chunked: bool
) -> None:
    """Never too low in any stage, and close where it decides."""
    plan = inference_plan("linear", is_chunked)
    estimate = small_estimate(config, size, plan, prune_ratio)
    found = measured(config, size, plan, prune_ratio)
    expected = {
        "conditioning": estimate.conditioning,
        "trunk": estimate.trunk,
        "head": max(estimate.head, estimate.gaussians),
    }
    for stage, peak in found.items():
        assert peak <= expected[stage] <= 1.45 * peak, stage
    assert estimate.peak <= 1.25 * max(found.values())


def official(num_views: int, is_chunked: bool = False, **changes: Any) -> MemoryEstimate:
    """The paper's size with the kernels of a GPU."""
    settings: dict[str, Any] = {"prune_ratio": 0.8, "codec": "linear", "scan": "mamba_ssm"} | changes
    plan = inference_plan(settings["codec"], is_chunked)
    size = SceneSize(num_views, 16, 88, 160)
    return estimate_inference_memory(DecoderConfig(), size, plan, is_low_precision=True, **settings)


def test_full_size_is_near_the_reference() -> None:
    """The official forward pass of six trajectories peaks at 8.8 GB, ours at no more.

    Source: docs/reference/performance.md, "Forward pass".
    """
    assert official(6).trunk == pytest.approx(8.8e9, rel=0.15)
    assert official(6).trunk / official(1).trunk == pytest.approx(6, rel=0.02)


def test_each_choice_moves_its_stage() -> None:
    """Chunks lower maps and head; what is written in torch takes more; keeping all takes more."""
    whole, chunked = official(6), official(6, is_chunked=True)
    assert chunked.conditioning < whole.conditioning / 4
    assert chunked.head < whole.head
    assert chunked.trunk == whole.trunk
    assert official(6, scan="chunked").trunk > 2 * whole.trunk
    in_torch = official(6, scan="fused_in_torch").trunk
    fused, in_mamba_ssm = official(6, scan="fused").trunk, official(6, scan="fused_in_mamba_ssm").trunk
    assert max(fused, in_mamba_ssm) < in_torch / 4
    # Twice the chunk states in half the bytes, and the results beside them.
    assert fused == pytest.approx(in_mamba_ssm, rel=0.02)
    assert official(6, prune_ratio=0.0).gaussians > 2 * whole.gaussians
    assert official(1, codec="cosmos:folder").conditioning > 2 * official(1).conditioning


def test_sizes_of_our_own_kernels_are_those_that_run() -> None:
    pytest.importorskip("triton")
    from lyra_ns.ops.ssd_triton import HOPPER_TILES

    assert (HOPPER_TILES.chunk, HOPPER_TILES.num_segments) == (OWN_CHUNK, NUM_SEGMENTS)


PEAKS_OF_ONE_AND_THREE_BLOCKS = """
import sys, torch
from dataclasses import replace
sys.path.append(sys.argv[1])
from tests.helpers.peak_memory import PeakMemory
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.decoder.config import TINY_DECODER
for depth in (1, 3):
    decoder = LatentGaussianDecoder(replace(TINY_DECODER, depth=depth, pattern="T"))
    latents, plucker = torch.randn(1, 2, 16, 3, 16, 20), torch.randn(1, 2, 32, 3, 16, 20)
    with torch.no_grad(), PeakMemory(latents, plucker, *decoder.parameters()) as trunk:
        decoder.encode(latents, plucker)
    print(trunk.peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="callers hold arguments until the call returns")
def test_later_blocks_do_not_find_the_embedding_alive() -> None:
    """Several blocks peak where one does; in a process without the checks of shapes, which hold arguments."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        PEAKS_OF_ONE_AND_THREE_BLOCKS,
        str(Path(__file__).parents[1]),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one, three = map(int, result.stdout.split())
    assert one == three


def test_estimate_says_its_stages() -> None:
    estimate = MemoryEstimate(conditioning=2**20, trunk=3 * 2**30, head=2**30, gaussians=0)
    assert estimate.largest_stage == "trunk"
    assert str(estimate) == (
        "3.0 GiB beyond the weights (conditioning 1.0 MiB, trunk 3.0 GiB, head 1.0 GiB, gaussians 0.0 MiB)"
    )
    assert gib(3 * 2**29) == "1.5 GiB"


def test_other_errors_pass_and_devices_without_a_measure_say_so() -> None:
    with pytest.raises(RuntimeError, match="something else"), explaining_exhaustion(torch.device("cpu")):
        raise RuntimeError("something else")
    sentence = pytest.raises(DoesNotFit, match=r"^cpu ran out of memory: read fewer")
    with sentence, explaining_exhaustion(torch.device("cpu")):
        torch.empty(2**60, dtype=torch.uint8)
    assert available_bytes(torch.device("meta")) is None
    free = available_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
