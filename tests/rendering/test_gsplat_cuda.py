"""The border with gsplat, without a GPU: its own projection formulas, and what is handed over to it."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from lyra_ns.cameras import CameraPath
from lyra_ns.gaussians import Gaussians, concatenate
from lyra_ns.rendering import RenderSettings, gsplat_cuda, render, renderer
from lyra_ns.rendering.projection import View, project
from tests.helpers.rendering_scenes import FIELDS, cameras, cast, random_scene


def test_ewa_projection_is_gsplats():
    formulas = pytest.importorskip("gsplat.cuda._torch_impl")
    gaussians, path = random_scene(300, 3.0), cameras(1)
    covariances, _ = formulas._quat_scale_to_covar_preci(
        torch.nn.functional.normalize(gaussians.quats, dim=-1), gaussians.scales, True, False, triu=False
    )
    world_to_camera = path.world_to_camera
    _, centres, depths, conics, _ = formulas._fully_fused_projection(
        gaussians.means, covariances, world_to_camera, path.intrinsic_matrix, path.width, path.height
    )
    view = View(world_to_camera[0], path.intrinsics[0], path.height, path.width)
    splats = project(gaussians, view, RenderSettings(), "ewa")
    kept = (gaussians.opacities >= 1 / 255) & (depths[0] >= 0.1)
    torch.testing.assert_close(splats.centres, centres[0, kept])
    torch.testing.assert_close(splats.depths, depths[0, kept])
    a, b, c = splats.whitenings.unbind(-1)
    torch.testing.assert_close(
        torch.stack([a * a, a * b, b * b + c * c], -1), conics[0, kept], rtol=1e-9, atol=1e-12
    )


def install_fake_gsplat(monkeypatch, takes_batches: bool, has_3dgut: bool) -> list[dict]:
    """A gsplat of the given age that draws with plain PyTorch; returns the list of calls it gets."""
    calls = []

    def draw_scene(means, quats, scales, opacities, colors, viewmats, Ks, width, height, response, options):
        settings = RenderSettings(
            backend="torch",
            response=response,
            near=options["near_plane"],
            far=options["far_plane"],
            dilation=options["eps2d"],
            background=(0.0, 0.0, 0.0),
        )
        intrinsics = torch.stack([Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]], -1)
        path = CameraPath(torch.linalg.inv(viewmats), intrinsics, torch.zeros(len(Ks)), height, width)
        # Colours differ between views (their z-depth does), so the fourth one is drawn apart.
        views = []
        for view in range(len(Ks)):
            scene = Gaussians(means, quats, scales, opacities, colors[view, :, :3])
            depth = Gaussians(means, quats, scales, opacities, colors[view, :, 3:].expand(-1, 3))
            images = [render(part, path[view : view + 1], settings) for part in (scene, depth)]
            views.append(
                (torch.cat([images[0].rgb[0], images[1].rgb[0, ..., :1]], -1), images[0].alpha[0, ..., None])
            )
        return tuple(torch.stack(part) for part in zip(*views, strict=True))

    def draw(*scenes, response, **options):
        calls.append(options)
        width, height = options.pop("width"), options.pop("height")
        assert options["packed"] is False
        assert options["render_mode"] == "RGB"
        if not takes_batches:
            assert scenes[0].ndim == 2
            return *draw_scene(*scenes, width, height, response, options), {}
        drawn = [draw_scene(*scene, width, height, response, options) for scene in zip(*scenes, strict=True)]
        return *(torch.stack(part) for part in zip(*drawn, strict=True)), {}

    if has_3dgut:

        def rasterization(*scenes, with_ut: bool = False, with_eval3d: bool = False, **options):
            assert with_ut == with_eval3d
            return draw(*scenes, response="ray3d" if with_eval3d else "ewa", **options)
    else:

        def rasterization(*scenes, **options):
            return draw(*scenes, response="ewa", **options)

    rasterization.__doc__ = "means: [..., N, 3]" if takes_batches else "means: [N, 3]"
    module = types.ModuleType("gsplat")
    module.rasterization = rasterization
    monkeypatch.setitem(sys.modules, "gsplat", module)
    return calls


@pytest.fixture(autouse=True)
def forget_probes():
    """What was found out about one gsplat says nothing about the next."""
    yield
    gsplat_cuda.has_ray3d.cache_clear()
    gsplat_cuda.takes_batches.cache_clear()


@pytest.mark.parametrize(("takes_batches", "num_calls"), [(True, 1), (False, 3)])
@pytest.mark.parametrize("has_3dgut", [True, False])
def test_old_and_new_gsplat_get_what_they_understand(monkeypatch, takes_batches, num_calls, has_3dgut):
    gsplat_cuda.has_ray3d.cache_clear()
    gsplat_cuda.takes_batches.cache_clear()
    calls = install_fake_gsplat(monkeypatch, takes_batches, has_3dgut)
    response = "ray3d" if has_3dgut else "ewa"
    assert gsplat_cuda.has_ray3d() is has_3dgut
    scenes = [cast(random_scene(30, seed=seed), torch.float32) for seed in range(3)]
    spoiled = Gaussians(*(torch.full_like(getattr(scenes[0], name)[:1], torch.nan) for name in FIELDS))
    scenes = [concatenate([scene, spoiled]) for scene in scenes]
    batch = Gaussians(*(torch.stack([getattr(scene, name) for scene in scenes]) for name in FIELDS))
    path = cameras(6).reshape(3, 2)
    settings = RenderSettings(near=0.2, far=60.0, dilation=0.2)
    image, transmittance = gsplat_cuda.rasterize(
        batch,
        path.world_to_camera.float(),
        path.intrinsic_matrix.float(),
        (path.height, path.width),
        settings,
        response,
    )
    assert len(calls) == num_calls
    assert calls[0]["near_plane"] == 0.2
    assert calls[0]["far_plane"] == 60.0
    expected = render(
        batch,
        path,
        RenderSettings(
            backend="torch", response=response, near=0.2, far=60.0, dilation=0.2, background=(0.0, 0.0, 0.0)
        ),
    )
    torch.testing.assert_close(image[..., :3], expected.rgb, atol=1e-5, rtol=0)
    torch.testing.assert_close(1 - transmittance, expected.alpha, atol=1e-5, rtol=0)
    torch.testing.assert_close(image[..., 3], expected.depth * expected.alpha, atol=1e-4, rtol=0)


def test_ignored_setting_warns(monkeypatch, caplog):
    install_fake_gsplat(monkeypatch, takes_batches=True, has_3dgut=True)
    renderer.choose_renderer(RenderSettings(backend="gsplat", max_alpha=0.98), "cuda")
    assert "0.98 is not used" in caplog.text


def test_no_gaussians_never_reach_gsplat(monkeypatch):
    calls = install_fake_gsplat(monkeypatch, takes_batches=True, has_3dgut=True)
    empty = cast(random_scene(0), torch.float32)
    leaves = [getattr(empty, name)[None].requires_grad_() for name in FIELDS]
    batch = Gaussians(*leaves)
    path = cameras(2).reshape(1, 2)
    matrices = (path.world_to_camera.float(), path.intrinsic_matrix.float())
    image, transmittance = gsplat_cuda.rasterize(batch, *matrices, (7, 5), RenderSettings(), "ray3d")
    assert calls == []
    assert torch.equal(image, torch.zeros(1, 2, 7, 5, 4))
    assert torch.equal(transmittance, torch.ones(1, 2, 7, 5))
    gradients = torch.autograd.grad((image.sum() + transmittance.sum()), leaves)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in leaves]


def test_old_gsplat_falls_back_to_ewa_and_says_so(monkeypatch):
    gsplat_cuda.has_ray3d.cache_clear()
    install_fake_gsplat(monkeypatch, takes_batches=False, has_3dgut=False)
    assert renderer.choose_renderer(RenderSettings(backend="gsplat"), "cuda") == ("gsplat", "ewa")
    assert "EWA" in renderer.describe_backend(RenderSettings(backend="gsplat"), "cuda")
    with pytest.raises(ValueError, match="'ray3d' needs a gsplat with 3DGUT"):
        renderer.choose_renderer(RenderSettings(backend="gsplat", response="ray3d"), "cuda")
