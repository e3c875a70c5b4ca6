"""Losses, LPIPS and metrics on CUDA: equal to the CPU, never waiting for the device, fit for CUDA graphs."""

from __future__ import annotations

import lpips
import pytest
import torch

from lyra_ns.cameras import CameraPath, look_at, ray_grid
from lyra_ns.gaussians import Gaussians
from lyra_ns.losses import LossConfig, depth_loss, reconstruction_losses, warm_start_loss
from lyra_ns.metrics import psnr, relative_depth_error, ssim
from lyra_ns.ops.lpips import BYTES_PER_PIXEL, PerceptualDistance, load_lpips
from lyra_ns.rendering.types import Rendered

pytestmark = pytest.mark.gpu


@pytest.fixture
def images() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shape = (2, 3, 64, 96)
    target_depth = 1 + 9 * torch.rand(shape, generator=random)
    target_depth[0, 1, :20] = 0
    target_depth[1, 2] = torch.nan
    return {
        "rgb": torch.rand(*shape, 3, generator=random),
        "depth": 1 + 9 * torch.rand(shape, generator=random),
        "opacities": torch.rand(2, 500, generator=random),
        "target_rgb": torch.rand(*shape, 3, generator=random),
        "target_depth": target_depth,
    }


def losses_and_gradients(images: dict[str, torch.Tensor], device: str, parity: bool):
    moved = {name: tensor.to(device, copy=True) for name, tensor in images.items()}
    leaves = [moved[name].requires_grad_() for name in ("rgb", "depth", "opacities")]
    rendered = Rendered(moved["rgb"], moved["depth"], torch.ones_like(moved["depth"]))
    perceptual = load_lpips("alex", images_at_once=4).to(device)
    config = LossConfig(parity=parity)
    terms = reconstruction_losses(
        rendered, moved["target_rgb"], moved["target_depth"], moved["opacities"], config, perceptual
    )
    gradients = torch.autograd.grad(sum(terms.values()), leaves)
    return [value.cpu() for value in (*terms.values(), *gradients)]


@pytest.mark.parametrize("parity", [False, True])
def test_losses_and_gradients_equal_the_cpu(images, parity, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    on_cpu = losses_and_gradients(images, "cpu", parity)
    on_cuda = losses_and_gradients(images, "cuda", parity)
    for expected, found in zip(on_cpu, on_cuda, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_metrics_equal_the_cpu(images):
    pairs = [(images["rgb"].flatten(0, 1), images["target_rgb"].flatten(0, 1))] * 2
    pairs.append((images["depth"].flatten(0, 1), images["target_depth"].flatten(0, 1)))
    for metric, pair in zip((psnr, ssim, relative_depth_error), pairs, strict=True):
        expected, found = metric(*pair), metric(*(image.cuda() for image in pair))
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_bfloat16_lpips_stays_close_to_float32(images):
    perceptual = load_lpips("alex").to("cuda")
    fast = PerceptualDistance(perceptual.network, "", compute_dtype=torch.bfloat16)
    pair = [images[name].flatten(0, 1).movedim(-1, 1).cuda() for name in ("rgb", "target_rgb")]
    torch.testing.assert_close(fast(*pair), perceptual(*pair), rtol=0.03, atol=0.003)


@pytest.fixture(scope="module")
def vgg() -> PerceptualDistance:
    """LPIPS on VGG in bfloat16, whose trunk has random weights."""
    torch.manual_seed(0)
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).cuda()
    return PerceptualDistance(network, "", torch.bfloat16)


def pictures(height: int, width: int, num_images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and wanted images as training has them, the channels last in memory; flat in one corner."""
    random = torch.Generator("cuda").manual_seed(0)
    both = torch.rand(2, num_images, height, width, 3, generator=random, device="cuda")
    both[:, :, :20, :20] = 0.5
    return tuple(both.movedim(-1, 2))


def distance_and_gradient(perceptual: PerceptualDistance, predicted: torch.Tensor, target: torch.Tensor):
    leaf = predicted.clone().requires_grad_()
    distance = perceptual(leaf, target)
    weights = torch.linspace(1, 2, len(leaf), device="cuda")
    return distance.detach(), torch.autograd.grad((distance * weights).sum(), leaf)[0]


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("size", [(96, 160), (99, 150)])
def test_lpips_with_its_gradient_written_out_is_as_exact_as_autograd(vgg, size, monkeypatch):
    """Values and gradients against float32, of even and of odd sizes; also under a caller's autocast."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    exact, exact_gradient = distance_and_gradient(vgg.computing_in(None), *pictures(*size))
    found, gradient = distance_and_gradient(vgg, *pictures(*size))
    with torch.autocast("cuda", torch.float16):
        again, _ = distance_and_gradient(vgg, *pictures(*size))
    assert vgg._is_written_out(found.device)
    with monkeypatch.context() as patch:
        patch.setattr(vgg, "_is_written_out", lambda device: False)
        by_autograd, autograd_gradient = distance_and_gradient(vgg, *pictures(*size))
    assert relative_error(gradient, exact_gradient) < 1.2 * relative_error(autograd_gradient, exact_gradient)
    assert relative_error(found, exact) < max(1.2 * relative_error(by_autograd, exact), 1e-3)
    torch.testing.assert_close(vgg(*pictures(*size)), found, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-6)


def test_lpips_in_parts_of_any_size_is_the_same(vgg):
    """Within what other algorithms of cuDNN for other numbers of images round differently in bfloat16."""
    whole, gradient = distance_and_gradient(vgg, *pictures(96, 160, 5))
    for images_at_once in (1, 2, 4):
        parts = PerceptualDistance(vgg.network, "", torch.bfloat16, images_at_once)
        found, part_gradient = distance_and_gradient(parts, *pictures(96, 160, 5))
        torch.testing.assert_close(found, whole, rtol=5e-3, atol=1e-5)
        assert relative_error(part_gradient, gradient) < 0.1


@pytest.mark.parametrize("images_at_once", [2, 4])
def test_lpips_needs_less_memory_than_estimated(vgg, images_at_once):
    """At the size of training, where the images that go at once are chosen by that estimate."""
    predicted, target = pictures(704, 1280, 4)
    leaf = predicted.requires_grad_()
    perceptual = PerceptualDistance(vgg.network, "", torch.bfloat16, images_at_once)
    perceptual(leaf, target)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    perceptual(leaf, target)
    growth = torch.cuda.max_memory_allocated() - before - predicted.nbytes  # its whole gradient
    per_pixel = growth / (images_at_once * 704 * 1280)
    assert 700 < per_pixel < BYTES_PER_PIXEL["vgg"], per_pixel


def warm_start_inputs(device: str):
    centres = torch.rand(2, 1, 2, 3, generator=torch.Generator().manual_seed(1)).to(device)
    cameras = CameraPath(
        look_at(centres, centres + torch.tensor([0.1, 0.2, 1.0], device=device)),
        torch.tensor([50.0, 50.0, 32.0, 20.0], device=device).expand(2, 1, 2, 4),
        torch.zeros(2, 1, 2, device=device),
        40,
        64,
    )
    rays = ray_grid(cameras, 5, 8)
    means = (rays.origins + 2.0 * rays.directions).flatten(1, -2)
    zeros = torch.zeros(means.shape[:2], device=device)
    gaussians = Gaussians(means, zeros[..., None].expand(-1, -1, 4), means, zeros, means)
    depth = torch.full((2, 1, 2, 5, 8), 3.0, device=device)
    depth[0, 0, 0, 0] = 0
    return gaussians, rays, depth, torch.full((2, 1, 2, 5, 8, 3), 0.5, device=device), cameras


def test_warm_start_equals_the_cpu():
    expected, found = (warm_start_loss(*warm_start_inputs(device)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_losses_never_wait_for_the_device(images):
    moved = {name: tensor.cuda() for name, tensor in images.items()}
    rendered = Rendered(moved["rgb"].requires_grad_(), moved["depth"].requires_grad_(), moved["depth"])
    perceptual, warm = load_lpips("alex", images_at_once=4).to("cuda"), warm_start_inputs("cuda")
    terms = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            terms = list(
                reconstruction_losses(
                    rendered,
                    moved["target_rgb"],
                    moved["target_depth"],
                    moved["opacities"],
                    LossConfig(),
                    perceptual,
                ).values()
            )
            terms.append(warm_start_loss(*warm))
            torch.stack(terms).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(terms).isfinite().all()


def test_depth_loss_can_be_captured_in_a_graph(images):
    depth, target = images["depth"].cuda(), images["target_depth"].cuda()
    depth_loss(depth, target)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = depth_loss(depth, target)
    depth.mul_(depth)
    graph.replay()
    torch.testing.assert_close(captured, depth_loss(depth, target))
