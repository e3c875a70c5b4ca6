"""Refinement: pictures that no step saw get better, bounds hold, the same call gives the same result."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from lyra_ns.gaussians import Gaussians, concatenate
from lyra_ns.metrics import psnr
from lyra_ns.refinement.attributes import TrainableGaussians
from lyra_ns.refinement.config import LearningRates, RefinementConfig
from lyra_ns.refinement.run import RefinementStep, refine
from lyra_ns.refinement.views import RefinementViews, in_turn
from lyra_ns.rendering import render
from tests.helpers.checked_types import unchecked
from tests.helpers.refinement_scenes import DEPTH, SETTINGS, config, path, pictures, spoiled, wall

TRUTH = wall()
START = spoiled(TRUTH)


@pytest.fixture(scope="module")
def views() -> RefinementViews:
    return pictures(TRUTH)


@pytest.mark.slow
def test_pictures_that_no_step_saw_get_better(views):
    steps: list[RefinementStep] = []
    made = refine(START, [views], config(), steps.append)
    assert made.gain > 5.0
    assert made.held_back_psnr[made.best_step] == max(made.held_back_psnr.values())
    with torch.no_grad():
        seen = render(made.gaussians, views.cameras[[1, 4]], SETTINGS).rgb
    assert float(psnr(seen, views.images[[1, 4]]).mean()) == pytest.approx(
        made.held_back_psnr[made.best_step], abs=1e-3
    )
    assert [step.step for step in steps] == list(range(1, 41))
    assert steps[-1].psnr > steps[0].psnr + 3
    assert steps[-1].held_back_psnr == made.held_back_psnr[40]
    assert made.reason == "all steps are made"


@pytest.mark.slow
def test_every_attribute_takes_part(views):
    made = refine(START, [views], config())
    for field in fields(Gaussians):
        assert (getattr(made.gaussians, field.name) - getattr(START, field.name)).abs().max() > 1e-3, (
            field.name
        )
    assert made.gaussians.quats.norm(dim=-1).sub(1).abs().max() < 1e-5
    assert START.means.requires_grad is False
    assert not made.gaussians.means.requires_grad


@pytest.mark.slow
def test_the_same_call_gives_the_same_bits(views):
    first, again, other = (refine(START, [views], config(num_steps=12, seed=seed)) for seed in (3, 3, 4))
    for field in fields(Gaussians):
        assert torch.equal(getattr(first.gaussians, field.name), getattr(again.gaussians, field.name))
    assert first.held_back_psnr == again.held_back_psnr
    assert not torch.equal(first.gaussians.rgb, other.gaussians.rgb)


@pytest.mark.slow
def test_the_unit_of_length_changes_nothing(views):
    """Ten times as large in all lengths: the same pictures, and the same scene ten times as large."""
    poses = views.cameras.camera_to_world.clone()
    poses[:, :3, 3] *= 10
    larger = replace(views, cameras=replace(views.cameras, camera_to_world=poses))
    start = replace(START, means=10 * START.means, scales=10 * START.scales)
    small, large = refine(START, [views], config()), refine(start, [larger], config())
    assert large.gain == pytest.approx(small.gain, abs=0.3)
    moved = (small.gaussians.means - START.means).norm(dim=-1).mean()
    moved_far = (large.gaussians.means - start.means).norm(dim=-1).mean()
    assert float(moved_far / moved) == pytest.approx(10, rel=0.05)


def beside_the_wall() -> Gaussians:
    """Two Gaussians, the first of which no camera sees."""
    return replace(
        TRUTH.select(torch.arange(2)),
        means=torch.tensor([[9.0, 0.0, DEPTH], [1.9, 0.0, 0.7 * DEPTH]]),
        scales=torch.full((2, 3), 0.1),
        opacities=torch.tensor([0.8, 0.8]),
    )


@pytest.mark.slow
def test_what_nobody_sees_stays_as_it_is(views):
    made = refine(concatenate([START, beside_the_wall()]), [views], config())
    for field in fields(Gaussians):
        found, given = getattr(made.gaussians, field.name)[-2], getattr(beside_the_wall(), field.name)[0]
        torch.testing.assert_close(found, given, atol=2e-4, rtol=0)


@pytest.mark.slow
def test_nothing_grows_where_only_a_rim_is_covered(views):
    """One Gaussian could please a strip of covered pixels by growing over all that nobody knows."""
    weight = torch.zeros(views.images.shape[:3])
    weight[:, :, :8] = 1
    target = replace(views, images=torch.ones_like(views.images), weight=weight, held_back=())
    lonely = replace(
        TRUTH.select(torch.arange(1)),
        means=torch.tensor([[-1.3, 0.0, DEPTH]]),
        scales=torch.full((1, 3), 0.15),
    )
    bound = refine(lonely, [target], config(growth=1.0)).gaussians.scales.max()
    free = refine(lonely, [target], config(growth=1000.0)).gaussians.scales.max()
    assert bound <= 0.15 * (1 + 1e-5)
    assert free > 0.17  # it would have


@pytest.mark.slow
def test_small_ones_grow_to_the_size_of_a_pixel_and_no_further(views):
    tiny = replace(TRUTH, scales=0.05 * TRUTH.scales)
    made = refine(tiny, [views], config(growth=1.0)).gaussians
    pixel = (made.means - path().camera_to_world[:, :3, 3].mean(0)).norm(dim=-1) / path().intrinsics[0, 0]
    assert float((made.scales.amax(-1) / pixel).max()) < 1.1
    assert float((made.scales / tiny.scales).max()) > 1.05


def test_damping_holds_those_that_cover_next_to_nothing():
    scene = TrainableGaussians(TRUTH, torch.full((TRUTH.num,), 0.07), LearningRates(), 1.0, damping=0.1)
    before = scene.snapshot()
    colours = scene.parameters["colours"]
    colours.grad = torch.zeros_like(colours)
    colours.grad[0], colours.grad[1] = 10.0, 1e-4
    scene.step(1.0)
    moved = (scene.snapshot().rgb - before.rgb).abs().amax(-1)
    assert moved[0] > 100 * moved[1] > 0
    assert float(moved[2:].max()) == 0


@pytest.mark.slow
def test_depth_pulls_where_it_is_known(views):
    """Grey pictures say nothing of the distance; depth does."""
    grey = replace(TRUTH, rgb=torch.full_like(TRUTH.rgb, 0.5))
    true = pictures(grey, held_back=())
    with torch.no_grad():
        depth = render(grey, true.cameras, SETTINGS).depth
    start = replace(grey, means=grey.means * 1.05)
    errors = []
    for weight in (0.0, 1.0):
        made = refine(start, [replace(true, depth=depth)], config(depth=weight, num_steps=60))
        with torch.no_grad():
            seen = render(made.gaussians, true.cameras, SETTINGS).depth
        errors.append(float(((seen - depth).abs() / depth.clamp(min=1))[:, 10:30, 15:40].mean()))
    assert errors[1] < 0.75 * errors[0]


def test_it_stops_when_held_back_pictures_stop_gaining(views):
    """Pictures of another scene judge: no step can please them for long."""
    other = pictures(wall(seed=5)).images
    images = torch.where(
        torch.tensor([0, 1, 0, 0, 1, 0], dtype=torch.bool)[:, None, None, None], other, views.images
    )
    made = refine(START, [replace(views, images=images)], config(num_steps=400, check_every=5, patience=2))
    assert made.num_steps < 400
    assert "gained nothing in 2 looks" in made.reason
    assert made.best_step < made.num_steps
    assert made.held_back_psnr[made.best_step] == max(made.held_back_psnr.values())


def test_it_ends_when_the_time_is_over(views):
    made = refine(START, [views], config(num_steps=100_000, seconds=0.5, smallest_gain=-100.0))
    assert 1 <= made.num_steps < 100_000
    assert made.reason == "the time of 0.5 s is over"
    assert max(made.held_back_psnr) == made.num_steps
    assert made.seconds < 10


def test_without_judges_the_last_state_is_kept(views):
    made = refine(START, [replace(views, held_back=())], config(num_steps=7))
    assert (made.best_step, made.num_steps, made.held_back_psnr, made.gain) == (7, 7, {}, 0.0)
    assert not torch.equal(made.gaussians.rgb, START.rgb)


@pytest.mark.slow
def test_sets_of_several_sizes_share_the_steps(views):
    large = pictures(TRUTH, path(2, 80, 112), share=3.0)
    drawn = in_turn([views, large], seed=0)
    shown = [next(drawn) for _ in range(64)]
    assert sum(view.cameras.height == 80 for view in shown) == 48
    first = [view.images for view in shown if view.cameras.height == 40][:4]
    for index in views.shown:  # each once in a round, and never one that is held back
        assert sum(torch.equal(image[0], views.images[index]) for image in first) == 1
    assert refine(START, [views, large], config()).gain > 5


def test_a_moving_scene_takes_the_pictures_of_its_time(views):
    now = views.near_time(0.25, within=0.1)
    assert now is not None
    assert (now.num, now.held_back) == (1, (0,))  # of times 0, 0.2, ... only 0.2, which judges
    assert torch.equal(now.images[0], views.images[1])
    assert views.near_time(0.3, within=0.05) is None
    both = views.near_time(0.5, within=0.15)
    assert both is not None
    assert (both.num, both.held_back) == (2, ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cameras": path(5)}, "a camera for each of 6 views, found cameras"),
        ({"cameras": path(6, 20, 28)}, "40 x 56 pixels .* found 20 x 28"),
        ({"weight": torch.zeros(6, 40, 56)}, "cover nothing"),
        ({"weight": torch.ones(6, 20, 28)}, r"weight of views \[6, 40, 56\], found \[6, 20, 28\]"),
        ({"depth": torch.full((6, 40, 56), torch.nan)}, "finite depth of views, found NaN"),
        ({"images": torch.full((6, 40, 56, 3), torch.nan)}, "finite images of views, found NaN"),
        ({"held_back": (0, 1, 2, 3, 4, 5)}, "all 6 pictures .* are held back"),
        ({"held_back": (7,)}, r"views \[7\] are to be held back, and there are 6"),
        ({"share": 0.0}, "share of views above 0, found 0.0"),
    ],
)
def test_views_that_cannot_be_used_are_named(views, changes, said):
    with unchecked(), pytest.raises(ValueError, match=said):
        refine(START, [replace(views, **changes)], config())


def test_other_input_that_cannot_be_used_is_named(views):
    with pytest.raises(ValueError, match="found none"):
        refine(START, [], config())
    nothing = TRUTH.select(torch.arange(0))
    with pytest.raises(ValueError, match="none can be drawn"):
        refine(nothing, [views], config())
    with pytest.raises(ValueError, match="none can be drawn"):
        refine(replace(TRUTH, scales=0 * TRUTH.scales), [views], config())
    with pytest.raises(ValueError, match="found 0, 25 and 3"):
        RefinementConfig(num_steps=0)
    with pytest.raises(ValueError, match="seconds above 0, found 0"):
        RefinementConfig(seconds=0)
    with pytest.raises(ValueError, match="ssim from 0 to 1, found 2"):
        RefinementConfig(ssim=2)
