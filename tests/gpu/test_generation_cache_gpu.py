"""The 3D cache on a GPU: what the CPU shows, at full size, too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.full_size.inputs import Size, cameras
from benchmarks.splat import scene
from lyra_ns.cache3d.cache import CacheSettings, SceneCache, Warps
from lyra_ns.cache3d.splat import SplatSettings

pytestmark = pytest.mark.gpu

SMALL = Size(num_frames=5, height=176, width=320)
FULL = Size(num_frames=121, height=704, width=1280)


def assert_same_picture(on_gpu: Warps, on_cpu: Warps) -> None:
    """But for single pixels at borders, where rounding decides."""
    assert on_gpu.rgb.is_cuda
    assert (on_gpu.mask.cpu() == on_cpu.mask).float().mean() > 0.999
    assert ((on_gpu.rgb.cpu() - on_cpu.rgb).abs() < 5e-3).float().mean() > 0.999
    assert ((on_gpu.depth.cpu() - on_cpu.depth).abs() < 5e-3 * (1 + on_cpu.depth)).float().mean() > 0.999


@pytest.mark.parametrize("occlusion", ["soft", "hard"])
@pytest.mark.parametrize("foreground_masking", [True, False], ids=["masked", "bare"])
def test_the_gpu_warps_an_image_as_the_cpu_does(occlusion, foreground_masking):
    settings = CacheSettings(foreground_masking=foreground_masking, splat=SplatSettings(occlusion))
    paths = cameras(2, SMALL, "cpu")[0]
    rgb, depth = scene(SMALL, "cpu")
    on_cpu = SceneCache.from_image(rgb, depth, paths[0, 0], settings=settings).render(paths)
    on_gpu = SceneCache.from_image(rgb.cuda(), depth.cuda(), paths[0, 0], settings=settings).render(paths)
    assert on_gpu.rgb.shape == (2, 5, 1, 3, 176, 320)
    assert_same_picture(on_gpu, on_cpu)


def test_the_gpu_warps_a_video_and_views_as_the_cpu_does():
    paths = cameras(2, SMALL, "cpu")[0]
    rgb, depth = scene(SMALL, "cpu")
    rgb = torch.stack([rgb.roll(k, -1) for k in range(5)])
    depth = torch.stack([depth * (1 + 0.05 * k) for k in range(5)])
    for make in (SceneCache.from_video, SceneCache.from_views):
        on_cpu = make(rgb, depth, paths[0]).render(paths)
        on_gpu = make(rgb.cuda(), depth.cuda(), paths[0].to("cuda")).render(paths.to("cuda"))
        assert_same_picture(on_gpu, on_cpu)


def test_a_full_clip_starts_with_the_image_itself():
    paths = cameras(1, FULL, "cuda")[0, 0]
    rgb, depth = scene(FULL, "cuda")
    settings = CacheSettings(reliability_threshold=1.0, foreground_masking=False)
    cache = SceneCache.from_image(rgb, depth, paths[0], settings=settings)
    warps = cache.render(paths)
    assert warps.rgb.shape == (121, 1, 3, 704, 1280)
    assert warps.mask[0].all()
    torch.testing.assert_close(warps.rgb[0, 0], rgb, rtol=0, atol=1e-5)
    # The last frame alone is what it is among the others.
    alone = cache.render(paths[-1:])
    assert torch.equal(alone.mask[0], warps.mask[-1])
    torch.testing.assert_close(alone.rgb[0], warps.rgb[-1], rtol=0, atol=1e-3)


def test_masks_of_a_full_clip_only_take_away():
    paths = cameras(1, FULL, "cuda")[0, 0]
    rgb, depth = scene(FULL, "cuda")
    masked = SceneCache.from_image(rgb, depth, paths[0])
    bare = replace(masked, settings=replace(masked.settings, foreground_masking=False))
    with_sheet, without = masked.render(paths).mask, bare.render(paths).mask
    assert not (with_sheet & ~without).any()
    # A third on: the path turns twice, and is back at its start in the middle and at the end.
    assert (without & ~with_sheet)[40].any()
