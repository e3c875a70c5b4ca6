"""Refinement on a GPU: like the CPU where it does the same, with LPIPS, and with gsplat's densification."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lyra_ns.gaussians import Gaussians
from lyra_ns.ops.lpips import load_lpips
from lyra_ns.refinement.run import refine
from lyra_ns.refinement.views import RefinementViews
from lyra_ns.rendering import render
from tests.helpers.refinement_scenes import SETTINGS, config, path, pictures, spoiled, wall

pytestmark = pytest.mark.gpu


def large_pictures(truth: Gaussians) -> RefinementViews:
    """Pictures that are large enough for LPIPS; 1 and 4 judge."""
    return replace(pictures(truth, path(6, 80, 112)), held_back=(1, 4))


def test_both_devices_refine_alike():
    truth = wall()
    views, start = large_pictures(truth), spoiled(truth)
    settings = config(lpips=0.0)
    on_cpu, on_gpu = (refine(start.to(device), [views], settings) for device in ("cpu", "cuda"))
    assert on_gpu.gaussians.means.is_cuda
    assert on_gpu.held_back_psnr[0] == pytest.approx(on_cpu.held_back_psnr[0], abs=0.1)
    assert on_gpu.gain == pytest.approx(on_cpu.gain, abs=0.5)
    assert on_cpu.gain > 3
    with torch.no_grad():
        seen = [
            render(made.gaussians.to("cpu"), views.cameras[[1, 4]], SETTINGS).rgb for made in (on_cpu, on_gpu)
        ]
    assert float((seen[0] - seen[1]).abs().mean()) < 0.02


def test_the_perceptual_distance_takes_part_on_a_gpu():
    truth = wall()
    views, start = large_pictures(truth).to("cuda"), spoiled(truth).to("cuda")
    lpips = load_lpips("alex").to("cuda")
    distances = []
    for weight in (0.0, 0.5):
        made = refine(start, [views], config(lpips=weight, num_steps=60))
        with torch.no_grad():
            seen = render(made.gaussians, views.cameras[[1, 4]], SETTINGS).rgb.clamp(0, 1)
        distances.append(float(lpips(seen.movedim(-1, 1), views.images[[1, 4]].movedim(-1, 1)).mean()))
    assert distances[1] < distances[0]
    by_default = refine(start, [views], config(lpips=None, num_steps=3)).gaussians
    without = refine(start, [views], config(lpips=0.0, num_steps=3)).gaussians
    assert not torch.equal(by_default.rgb, without.rgb)


def test_gsplat_makes_gaussians_where_they_are_too_few():
    """A fine wall by a coarse one: more Gaussians show more of it."""
    views = large_pictures(wall(0.15))
    coarse = wall(0.4).to("cuda")
    settings = config(num_steps=240, check_every=40, patience=9, lpips=0.0)
    plain = refine(coarse, [views], settings)
    dense = refine(coarse, [views], replace(settings, densify=1.5))
    assert plain.gaussians.num == coarse.num
    assert 1.3 * coarse.num < dense.gaussians.num <= 1.5 * coarse.num
    assert dense.gain > plain.gain + 0.2
    again = refine(coarse, [views], replace(settings, densify=1.5, num_steps=60))
    assert again.gaussians.num < dense.gaussians.num or again.num_steps == 60


def test_gaussians_that_do_nothing_are_put_where_others_do_much():
    truth = wall()
    views = large_pictures(truth)
    start = spoiled(truth).to("cuda")
    opacities = start.opacities.clone()
    opacities[::3] = 0.004
    made = refine(
        replace(start, opacities=opacities), [views], config(densify=1.001, num_steps=120, lpips=0.0)
    )
    assert float((made.gaussians.opacities < 0.005).float().mean()) < 0.05


def test_drawn_along_rays_as_well():
    truth = wall()
    views, start = large_pictures(truth), spoiled(truth).to("cuda")
    along_rays = replace(SETTINGS, response="ray3d")
    assert refine(start, [views], config(render=along_rays, lpips=0.0)).gain > 3
