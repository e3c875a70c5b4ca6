"""Rendering: every backend and response against the dense float64 truth, and what must hold at the edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lyra_ns.cameras import CameraPath
from lyra_ns.gaussians import Gaussians, concatenate
from lyra_ns.rendering import RenderSettings, describe_backend, plain, render
from lyra_ns.rendering.cpu import find_compiler
from lyra_ns.rendering.reference import render_reference
from tests.helpers.rendering_scenes import (
    FIELDS,
    assert_same,
    cameras,
    cast,
    random_scene,
    relative_errors,
    value_and_gradients,
    weighted_sum,
)

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
BACKENDS = [pytest.param("cpu", marks=needs_compiler), "torch"]
RESPONSES = ["ray3d", "ewa"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_response = pytest.mark.parametrize("response", RESPONSES)


def straight_camera(height: int = 9, width: int = 9) -> CameraPath:
    """One camera at the origin along +z, whose middle pixel looks along the axis."""
    intrinsics = torch.tensor([[10.0, 10.0, width / 2, height / 2]], dtype=torch.float64)
    return CameraPath(torch.eye(4, dtype=torch.float64)[None], intrinsics, torch.zeros(1), height, width)


def ball(z: float, colour: tuple[float, float, float], opacity: float = 0.9, scale: float = 1.0) -> Gaussians:
    """One round Gaussian on the optical axis."""
    double = {"dtype": torch.float64}
    return Gaussians(
        means=torch.tensor([[0.0, 0.0, z]], **double),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]], **double),
        scales=torch.full((1, 3), scale, **double),
        opacities=torch.tensor([opacity], **double),
        rgb=torch.tensor([colour], **double),
    )


SCENES = {
    "small splats": {"num": 200, "size_in_pixels": 0.7},
    "middling splats": {"num": 150, "size_in_pixels": 3.0},
    "splats wider than a tile, some around the camera": {"num": 80, "size_in_pixels": 14.0},
}


@pytest.mark.slow
@every_backend
@every_response
@pytest.mark.parametrize("scene", SCENES)
def test_values_and_gradients_are_those_of_the_truth(backend, response, scene):
    gaussians, path = random_scene(**SCENES[scene]), cameras()
    settings = RenderSettings(response=response, backend=backend)
    truth, true_gradients = value_and_gradients(lambda g: render_reference(g, path, settings), gaussians)
    for dtype, pixel_tolerance, gradient_tolerance in (
        (torch.float64, 1e-10, 1e-9),
        (torch.float32, 1e-4, 1e-4),
    ):
        images, gradients = value_and_gradients(lambda g: render(g, path, settings), cast(gaussians, dtype))
        assert images.rgb.dtype == dtype
        assert_same(images, truth, pixel_tolerance)
        errors = relative_errors(gradients, true_gradients)
        assert max(errors.values()) < gradient_tolerance, errors


@pytest.mark.slow
@every_backend
@every_response
def test_gradients_are_finite_differences(backend, response):
    gaussians, path = random_scene(12, 4.0, seed=3), cameras(1, 20, 24)
    settings = RenderSettings(response=response, backend=backend)

    def loss(scene: Gaussians) -> torch.Tensor:
        return weighted_sum(render(scene, path, settings))

    _, gradients = value_and_gradients(lambda g: render(g, path, settings), gaussians)
    step, wrong, num_checked = 1e-7, [], 0
    for name, gradient in zip(FIELDS, gradients, strict=True):
        for index in range(0, gradient.numel(), 5):
            sides = []
            for sign in (1, -1):
                moved = getattr(gaussians, name).clone()
                moved.view(-1)[index] += sign * step
                sides.append(loss(replace(gaussians, **{name: moved})))
            expected = float(sides[0] - sides[1]) / (2 * step)
            if abs(expected - float(gradient.flatten()[index])) > 1e-4 * max(1.0, abs(expected)):
                wrong.append((name, index))
            num_checked += 1
    # A pixel that crosses alpha = 1/255 within the step makes a jump, which no gradient knows.
    assert len(wrong) <= 0.05 * num_checked, wrong


@every_backend
@every_response
@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 16), (17, 15), (5, 49)])
def test_any_image_size(backend, response, height, width):
    gaussians, path = random_scene(60, 3.0), cameras(1, height, width)
    settings = RenderSettings(response=response, backend=backend)
    assert_same(render(gaussians, path, settings), render_reference(gaussians, path, settings), 1e-10)


@pytest.mark.slow
@every_backend
@every_response
def test_opaque_layers_and_saturated_opacities(backend, response):
    gaussians = replace(random_scene(300, 6.0), opacities=torch.ones(300, dtype=torch.float64))
    settings, path = RenderSettings(response=response, backend=backend), cameras(1)
    truth, true_gradients = value_and_gradients(lambda g: render_reference(g, path, settings), gaussians)
    images, gradients = value_and_gradients(lambda g: render(g, path, settings), gaussians)
    assert truth.alpha.min() > 0.9
    assert_same(images, truth, 1e-9)
    errors = relative_errors(gradients, true_gradients)
    assert max(errors.values()) < 1e-8, errors


@every_backend
@every_response
def test_needles_and_discs_in_float32(backend, response):
    scales = torch.tensor([[0.3, 1e-4, 1e-4], [0.2, 0.2, 1e-4]], dtype=torch.float64).repeat(40, 1)
    gaussians = replace(
        random_scene(80), scales=scales, opacities=torch.full((80,), 0.9, dtype=torch.float64)
    )
    settings, path = RenderSettings(response=response, backend=backend), cameras(1)
    truth = render_reference(gaussians, path, settings)
    images = render(cast(gaussians, torch.float32), path, settings)
    # A needle of 1/50 pixel moves by its own width when a coordinate is rounded: compare the picture.
    assert (images.rgb - truth.rgb).abs().mean() < 1e-3
    assert torch.isfinite(images.depth).all()


@every_backend
def test_nearer_hides_farther_whatever_the_order(backend):
    red, blue = ball(3.0, (1.0, 0.0, 0.0)), ball(5.0, (0.0, 0.0, 1.0))
    settings = RenderSettings(backend=backend, background=(0.0, 0.0, 0.0))
    for order in ([red, blue], [blue, red]):
        images = render(concatenate(order), straight_camera(), settings)
        middle = images.rgb[0, 4, 4]
        torch.testing.assert_close(middle, middle.new_tensor([0.9, 0.0, 0.09]))
        torch.testing.assert_close(images.depth[0, 4, 4], middle.new_tensor((0.9 * 3 + 0.09 * 5) / 0.99))


@every_backend
@every_response
def test_expected_values_by_hand(backend, response):
    # One ball of radius 0.5 at depth 4, seen 10 px per unit tangent: at 2 px from the centre the ray passes
    # at 4 sin(atan(0.2)) from its centre (ray3d); the flat splat has the variance 1.25^2 + 0.3 (ewa).
    settings = RenderSettings(response=response, backend=backend)
    alpha = render(ball(4.0, (0.5, 0.5, 0.5), 0.8, 0.5), straight_camera(), settings).alpha[0, 4]
    distance = 4 * torch.tensor(0.2, dtype=torch.float64).atan().sin() / 0.5
    squared = {"ray3d": distance**2, "ewa": torch.tensor(4 / (1.25**2 + 0.3), dtype=torch.float64)}[response]
    torch.testing.assert_close(alpha[4], alpha.new_tensor(0.8))
    torch.testing.assert_close(alpha[6], 0.8 * torch.exp(-0.5 * squared))


@every_backend
@every_response
def test_what_cannot_be_seen_changes_nothing(backend, response):
    settings = RenderSettings(response=response, backend=backend, near=0.5, far=50.0)
    visible, path = random_scene(40), straight_camera()
    hidden = [
        ball(-3.0, (1.0, 0.0, 0.0)),
        ball(0.4, (1.0, 0.0, 0.0)),
        ball(51.0, (1.0, 0.0, 0.0)),
        ball(3.0, (1.0, 0.0, 0.0), opacity=0.003),
        replace(ball(3.0, (1.0, 0.0, 0.0), scale=0.1), means=torch.tensor([[40.0, 0.0, 3.0]]).double()),
    ]
    expected = render(visible, path, settings)
    leaves = [getattr(concatenate([visible, *hidden]), name).requires_grad_() for name in FIELDS]
    found = render(Gaussians(*leaves), path, settings)
    for name in ("rgb", "depth", "alpha"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for gradient in torch.autograd.grad(weighted_sum(found), leaves):
        assert torch.isfinite(gradient).all()
        assert (gradient[40:] == 0).all()


@every_backend
@every_response
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spoiled_gaussians_are_culled(backend, response, dtype):
    good = cast(random_scene(60), dtype)
    settings, path = RenderSettings(response=response, backend=backend), cameras()
    expected = render(good, path, settings)
    spoils = [(name, value) for name in FIELDS for value in (float("nan"), float("inf"), -float("inf"))]
    spoils += [("scales", 0.0), ("scales", -1.0), ("quats", 0.0), ("means", 1e30), ("means", -1e30)]
    bad = [
        replace(good.select(torch.tensor([5])), **{n: torch.full_like(getattr(good, n)[:1], v)})
        for n, v in spoils
    ]
    leaves = [getattr(concatenate([good, *bad]), name).requires_grad_() for name in FIELDS]
    found = render(Gaussians(*leaves), path, settings)
    assert torch.equal(found.rgb, expected.rgb)
    for gradient in torch.autograd.grad(weighted_sum(found), leaves):
        assert torch.isfinite(gradient).all()


@every_backend
@every_response
def test_extreme_sizes_stay_finite(backend, response):
    scales = 10.0 ** torch.linspace(-30, 30, 61)[:, None].expand(61, 3)
    mixed = torch.stack([scales[:, 0], scales[:, 0].flip(0), torch.ones(61)], -1)
    for sizes in (scales, mixed):
        gaussians = replace(cast(random_scene(61), torch.float32), scales=sizes)
        settings = RenderSettings(response=response, backend=backend)
        images, gradients = value_and_gradients(
            lambda g, settings=settings: render(g, cameras(), settings), gaussians
        )
        assert torch.isfinite(images.rgb).all()
        assert torch.isfinite(images.depth).all()
        for name, gradient in zip(FIELDS, gradients, strict=True):
            assert torch.isfinite(gradient).all(), name


@every_backend
@every_response
@pytest.mark.parametrize("num", [0, 3])
def test_nothing_in_sight_is_background(backend, response, num):
    behind = replace(random_scene(num), means=-random_scene(num).means)
    settings = RenderSettings(response=response, backend=backend, background=(0.1, 0.2, 0.3))
    images, gradients = value_and_gradients(lambda g: render(g, cameras(), settings), behind)
    assert torch.equal(images.rgb, images.rgb.new_tensor([0.1, 0.2, 0.3]).expand_as(images.rgb))
    assert (images.depth == 0).all()
    assert (images.alpha == 0).all()
    assert all((gradient == 0).all() for gradient in gradients)


@every_backend
def test_background_fills_what_alpha_leaves(backend):
    gaussians = random_scene(50)
    black, white = (
        render(gaussians, cameras(), RenderSettings(backend=backend, background=(level,) * 3))
        for level in (0.0, 1.0)
    )
    torch.testing.assert_close(white.rgb - black.rgb, (1 - black.alpha)[..., None].expand_as(black.rgb))
    assert torch.equal(white.depth, black.depth)


@pytest.mark.slow
@every_backend
@every_response
def test_batch_is_the_loop_over_scenes_and_views(backend, response):
    scenes = [random_scene(50, seed=seed) for seed in (1, 2, 3)]
    path = cameras(6)
    settings = RenderSettings(response=response, backend=backend)
    batch = Gaussians(*(torch.stack([getattr(scene, name) for scene in scenes]) for name in FIELDS))
    images = render(batch, path.reshape(3, 2), settings)
    assert images.rgb.shape == (3, 2, 37, 45, 3)
    for scene in range(3):
        for view in range(2):
            alone = render(scenes[scene], path[2 * scene + view : 2 * scene + view + 1], settings)
            assert torch.equal(images.rgb[scene, view], alone.rgb[0])
            assert torch.equal(images.depth[scene, view], alone.depth[0])


@pytest.mark.slow
@every_backend
@every_response
def test_same_bits_twice(backend, response):
    gaussians, path = cast(random_scene(300, 3.0), torch.float32), cameras()
    settings = RenderSettings(response=response, backend=backend)
    threads = torch.get_num_threads()
    runs = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        runs.append(value_and_gradients(lambda g: render(g, path, settings), gaussians))
    torch.set_num_threads(threads)
    assert torch.equal(runs[0][0].rgb, runs[1][0].rgb)
    for left, right in zip(runs[0][1], runs[1][1], strict=True):
        assert torch.equal(left, right)


@pytest.mark.slow
@every_backend
def test_views_at_once_changes_memory_only(backend):
    gaussians, path = random_scene(60), cameras(5)
    whole, gradients = value_and_gradients(
        lambda g: render(g, path, RenderSettings(backend=backend)), gaussians
    )
    parts, part_gradients = value_and_gradients(
        lambda g: render(g, path, RenderSettings(backend=backend, views_at_once=2)), gaussians
    )
    assert torch.equal(whole.rgb, parts.rgb)
    assert max(relative_errors(part_gradients, gradients).values()) < 1e-12


@every_backend
@every_response
def test_depth_without_gradient_is_the_official_one(backend, response):
    gaussians, path = random_scene(60), cameras(1)
    settings = RenderSettings(response=response, backend=backend, depth_gradient=False)
    _, true_gradients = value_and_gradients(lambda g: render_reference(g, path, settings), gaussians)
    _, gradients = value_and_gradients(lambda g: render(g, path, settings), gaussians)
    assert max(relative_errors(gradients, true_gradients).values()) < 1e-9
    with_depth = replace(settings, depth_gradient=True)
    _, other = value_and_gradients(lambda g: render(g, path, with_depth), gaussians)
    assert relative_errors(other, true_gradients)["means"] > 1e-3


def test_depth_alone_moves_a_gaussian_along_the_axis():
    leaf = ball(4.0, (0.0, 0.0, 0.0)).means.requires_grad_()
    images = render(replace(ball(4.0, (0.0, 0.0, 0.0)), means=leaf), straight_camera())
    (gradient,) = torch.autograd.grad(images.depth[0, 4, 4], leaf)
    torch.testing.assert_close(gradient, gradient.new_tensor([[0.0, 0.0, 1.0]]))


def test_plain_bands_give_the_same_image(monkeypatch):
    gaussians, path = random_scene(80, 4.0), cameras(1)
    settings = RenderSettings(backend="torch")
    whole, gradients = value_and_gradients(lambda g: render(g, path, settings), gaussians)
    monkeypatch.setattr(plain, "MAX_PAIRS", 2000)
    bands, band_gradients = value_and_gradients(lambda g: render(g, path, settings), gaussians)
    assert_same(bands, whole, 1e-10)
    assert max(relative_errors(band_gradients, gradients).values()) < 1e-10


@every_backend
def test_autocast_and_half_precision_are_drawn_in_float32(backend):
    gaussians, path = cast(random_scene(60), torch.bfloat16), cameras(1)
    settings = RenderSettings(backend=backend)
    expected = render(cast(gaussians, torch.float32), path, settings)
    with torch.autocast("cpu", torch.bfloat16):
        found = render(gaussians, path, settings)
    assert torch.equal(found.rgb, expected.rgb)


def test_wrong_input_is_named():
    gaussians, path = random_scene(5), cameras(2)
    with pytest.raises(ValueError, match=r"expected Gaussians \[G\] with cameras \[M\]"):
        render(gaussians, path.reshape(1, 2))
    with pytest.raises(ValueError, match="'gsplat' draws Gaussians on cuda, found them on cpu"):
        render(gaussians, path, RenderSettings(backend="gsplat"))
    with pytest.raises(ValueError, match="0 < near < far"):
        RenderSettings(near=2.0, far=1.0)
    with pytest.raises(ValueError, match="views_at_once"):
        RenderSettings(views_at_once=0)


@every_backend
@every_response
def test_the_log_says_what_draws(backend, response):
    sentence = describe_backend(RenderSettings(response=response, backend=backend), "cpu")
    assert {"cpu": "compiled CPU kernel", "torch": "plain PyTorch"}[backend] in sentence
    assert {"ray3d": "3DGUT", "ewa": "EWA"}[response] in sentence
