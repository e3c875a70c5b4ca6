"""Which views are drawn together, and that every view is drawn once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lyra_ns.device import GIB
from lyra_ns.rendering import RenderSettings, plain, render, renderer
from lyra_ns.rendering.gsplat_cuda import _depth
from lyra_ns.rendering.renderer import RenderPlan, RenderSize, plan_render
from tests.helpers.rendering_scenes import cameras, random_scene

AUTO = RenderSettings()
PIXELS = 704 * 1280
PRUNED, WHOLE = RenderSize(2_044_415, 54, PIXELS), RenderSize(10_222_080, 54, PIXELS)


def test_pruned_scenes_are_drawn_together_and_once() -> None:
    """All 54 target views of the last stage beside the rest of a training step on 80 GB."""
    assert plan_render(AUTO, PRUNED, True, 60 * GIB) == RenderPlan(54, redraws=False)


def test_with_less_memory_groups_are_kept_and_then_drawn_again() -> None:
    """The three ways come one after the other, and groups only shrink."""
    plans = [plan_render(AUTO, WHOLE, True, free * GIB) for free in (400, 200, 120, 90, 60, 20, 4, 1)]
    assert plans[0] == RenderPlan(54, redraws=False)
    assert [plan.redraws for plan in plans] == sorted(plan.redraws for plan in plans)
    assert plans[2].views_at_once < 54
    assert not plans[2].redraws
    redrawn = [plan.views_at_once for plan in plans if plan.redraws]
    assert redrawn == sorted(redrawn, reverse=True)
    assert redrawn[-1] == 1


@pytest.mark.parametrize("free", [100, 30, 8, 2])
def test_a_plan_fits_what_is_free(free: int) -> None:
    """What it keeps and what it needs for a while stay within the share that renders have."""
    plan = plan_render(AUTO, WHOLE, True, free * GIB)
    kept_views = plan.views_at_once if plan.redraws else WHOLE.num_views
    need = kept_views * WHOLE.kept_bytes(True) + plan.views_at_once * WHOLE.passing_bytes(True)
    assert need <= 0.6 * free * GIB or plan.views_at_once == 1


def test_without_gradient_nothing_is_kept() -> None:
    """So more views fit together, and nothing is ever drawn again."""
    training, showing = (plan_render(AUTO, WHOLE, needs, 120 * GIB) for needs in (True, False))
    assert showing.views_at_once > training.views_at_once
    assert not plan_render(AUTO, WHOLE, False, GIB).redraws


def test_numbers_and_none_mean_what_they_say() -> None:
    """A number bounds memory by drawing again, None and main memory draw all at once."""
    assert plan_render(RenderSettings(views_at_once=4), PRUNED, True, GIB) == RenderPlan(4, redraws=True)
    assert plan_render(RenderSettings(views_at_once=4), PRUNED, False, GIB) == RenderPlan(4, redraws=False)
    assert plan_render(RenderSettings(views_at_once=60), PRUNED, True, GIB) == RenderPlan(54, redraws=False)
    assert plan_render(RenderSettings(views_at_once=None), WHOLE, True, GIB) == RenderPlan(54, redraws=False)
    assert plan_render(AUTO, WHOLE, True, None) == RenderPlan(54, redraws=False)


@pytest.mark.parametrize(("views_at_once", "times"), [(None, 1), ("auto", 1), (2, 2)])
def test_each_view_is_drawn_once_unless_memory_is_bounded(
    views_at_once: Any, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted over forward and backward pass (the official code draws five times)."""
    drawn, rasterize = [], plain.rasterize
    monkeypatch.setattr(plain, "rasterize", lambda *given: (drawn.append(1), rasterize(*given))[1])
    scene = random_scene(40)
    leaf = scene.means.requires_grad_()
    rendered = render(scene, cameras(5), RenderSettings(backend="torch", views_at_once=views_at_once))
    rendered.rgb.sum().backward()
    assert len(drawn) == 5 * times
    assert leaf.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 40_000_000])
def test_auto_changes_memory_only(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that memory dictates give the images and gradients of all views at once."""
    results = []
    for known in (None, free):
        monkeypatch.setattr(renderer, "free_bytes", lambda device, known=known: known)
        scene = random_scene(60)
        scene.means.requires_grad_()
        rendered = render(scene, cameras(5), RenderSettings(backend="torch"))
        (rendered.rgb.square().sum() + rendered.depth.sum()).backward()
        results.append((rendered.rgb.detach(), rendered.depth.detach(), scene.means.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_depth_of_every_gaussian_in_every_view() -> None:
    """As the third row of the whole transformation."""
    generator = torch.Generator().manual_seed(0)
    means, poses = torch.randn(2, 7, 3, generator=generator), torch.randn(2, 4, 4, 4, generator=generator)
    homogeneous = torch.cat([means, torch.ones(2, 7, 1)], -1)
    expected = torch.einsum("bmij,bgj->bmgi", poses, homogeneous)[..., 2]
    torch.testing.assert_close(_depth(means, poses), expected)
