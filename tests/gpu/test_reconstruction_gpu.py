"""Reconstruction at full size on a GPU: the head of kept cells, pruning, and the memory estimate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.cameras import CameraPath, ray_grid
from lyra_ns.codec import load_codec
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.decoder.pruned_head import pruned_gaussians
from lyra_ns.gaussians import Gaussians, most_opaque, num_kept, prune
from lyra_ns.memory import DoesNotFit, MemoryEstimate
from lyra_ns.progress import StageMeter
from lyra_ns.reconstruction import Reconstructor

pytestmark = pytest.mark.gpu

FULL = (121, 704, 1280)
SMALL = (9, 128, 192)


@pytest.fixture(autouse=True)
def all_memory() -> Iterator[None]:
    """Each test starts with an empty cache and leaves no limit behind."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def decoder_with(**changes: Any) -> LatentGaussianDecoder:
    """The official network with random weights, whose opacities differ from cell to cell."""
    torch.manual_seed(0)
    decoder = LatentGaussianDecoder(DecoderConfig(**changes))
    torch.nn.init.normal_(decoder.deconv.weight, std=0.1)
    return decoder.cuda().eval()


def scene(num_views: int, size: tuple[int, int, int]) -> tuple[Tensor, CameraPath]:
    """Latents of noise and a path of its own for each view."""
    num_frames, height, width = size
    codec = load_codec("linear")
    poses = torch.eye(4).repeat(num_views, num_frames, 1, 1)
    poses[..., 0, 3] = torch.linspace(0, 1, num_frames)
    poses[..., 1, 3] = torch.arange(num_views)[:, None]
    intrinsics = torch.tensor([width, width, width / 2, height / 2]).repeat(num_views, num_frames, 1)
    times = torch.linspace(0, 1, num_frames).repeat(num_views, 1)
    z = torch.randn(num_views, *codec.spec.latent_shape(*size), generator=torch.Generator().manual_seed(0))
    return z, CameraPath(poses, intrinsics, times, height, width)


@pytest.mark.parametrize("levels", [3, 1000, 2**30])
def test_most_opaque_is_the_stable_sort_at_full_size(levels: int) -> None:
    """10 million opacities with many ties, few and hardly any."""
    opacities = torch.randint(levels, (10_222_080,), device="cuda") / levels
    expected = opacities.argsort(descending=True, stable=True)[:2_044_415]
    assert torch.equal(most_opaque(opacities, 2_044_415), expected)
    both = torch.stack([opacities, opacities.flip(0)])
    assert torch.equal(most_opaque(both, 2_044_415)[0], expected)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("at_once", [None, 16, 3])
@torch.no_grad()
def test_head_of_kept_cells_equals_pruning(parity: bool, at_once: int | None) -> None:
    """The same Gaussians as all of them, sorted and cut; neighbours in opacity may have changed places."""
    decoder = decoder_with(parity=parity, depth=1, pattern="T")
    latent_shape = torch.Size((1, 2, 16, 16, 44, 80))
    num_tokens = decoder.config.num_tokens(2, 16, 44, 80)
    tokens = torch.randn(1, num_tokens, 512, device="cuda", dtype=decoder.deconv.weight.dtype)
    reconstruct = Reconstructor(decoder, load_codec("linear", "cuda"))
    _, cameras = scene(2, (121, 352, 640))
    given = reconstruct.conditioning.build(cameras[None].to("cuda"))
    plain = prune(decoder.gaussians(decoder.head(tokens, latent_shape), given), 0.8)
    found = pruned_gaussians(decoder, tokens, latent_shape, given.rays, 0.8, at_once)
    torch.testing.assert_close(found.opacities, plain.opacities, rtol=1e-2 if parity else 1e-4, atol=1e-5)
    assert (found.opacities.diff() <= 0).all()
    for values, expected in zip(_in_one_order(found), _in_one_order(plain), strict=True):
        far = (values - expected).abs() > 1e-3 * expected.abs() + (0.05 if parity else 1e-3)
        assert far.float().mean() < (1e-2 if parity else 1e-3)


def _in_one_order(gaussians: Gaussians) -> list[Tensor]:
    """Means and colours sorted by themselves, whatever the order of the Gaussians."""
    return [
        channel.sort().values for values in (gaussians.means[0], gaussians.rgb[0]) for channel in values.T
    ]


def measured(
    reconstruct: Reconstructor, z: Tensor, cameras: CameraPath
) -> tuple[MemoryEstimate, dict[str, int], StageMeter]:
    """Estimate, peak bytes beyond the weights of each stage, and the meter."""
    before, meter, told = torch.cuda.memory_allocated(), StageMeter(torch.device("cuda")), []
    reconstruct(z, cameras, meter=meter, announce=lambda plan, estimate: told.append(estimate))
    found = {stage.name: (stage.peak_bytes or 0) - before for stage in meter.stages}
    return told[0], found, meter


@pytest.mark.parametrize(
    ("num_views", "size", "memory"),
    [(1, SMALL, "whole"), (1, FULL, "whole"), (6, FULL, "chunked")],
    ids=["small", "one", "six"],
)
def test_estimate_bounds_the_measured_peak(num_views: int, size: tuple[int, int, int], memory: Any) -> None:
    """No stage takes more than estimated, and the largest one not much less."""
    reconstruct = Reconstructor(decoder_with(), load_codec("linear", "cuda"), 0.8, memory=memory)
    reconstruct(*scene(1, SMALL))  # work spaces of the libraries stay, and kernels are compiled
    estimate, found, meter = measured(reconstruct, *scene(num_views, size))
    print(f"\nestimate {estimate}\n{meter}")
    expected = {
        "conditioning": estimate.conditioning,
        "trunk": estimate.trunk,
        "head": max(estimate.head, estimate.gaussians),
    }
    ratios = {stage: expected[stage] / peak for stage, peak in found.items()}
    print({stage: round(ratio, 3) for stage, ratio in ratios.items()})
    assert all(ratio >= 1 for ratio in ratios.values()), ratios
    if size == FULL:
        assert ratios["trunk"] <= 1.25, ratios
        assert estimate.peak <= 1.25 * max(found.values())


def test_head_is_a_small_part_at_full_size() -> None:
    """Opacity first takes milliseconds where all cells, sorted and cut, take more memory by a multiple."""
    decoder = decoder_with(depth=1, pattern="T")
    latent_shape = torch.Size((1, 6, 16, 16, 88, 160))
    tokens = torch.randn(1, decoder.config.num_tokens(6, 16, 88, 160), 512, device="cuda")
    _, cameras = scene(6, FULL)
    rays = ray_grid(cameras[None].to("cuda"), 88, 160)
    with torch.no_grad():
        for at_once in (None, 16, 2):
            pruned_gaussians(decoder, tokens, latent_shape, rays, 0.8, at_once)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            start.record()
            found = pruned_gaussians(decoder, tokens, latent_shape, rays, 0.8, at_once)
            end.record()
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
            print(
                f"\nlatent frames at once {at_once}: {start.elapsed_time(end):.2f} ms, {peak / 2**20:.0f} MiB"
            )
            assert found.num == num_kept(10_222_080, 0.8)
            del found


def test_running_out_of_memory_is_one_sentence() -> None:
    """An allocation that truly fails, below what the estimate could know."""
    reconstruct = Reconstructor(decoder_with(), load_codec("linear", "cuda"), 0.8)
    z, cameras = scene(1, (57, 352, 640))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    with pytest.raises(
        DoesNotFit, match=r"^cuda:0 ran out of memory; the estimate was .* were free at the start"
    ):
        reconstruct(z, cameras)
