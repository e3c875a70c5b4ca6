"""The training step on a GPU: what is kept, recomputed and read ahead, against plain ways and estimates."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
from torch import Tensor

from benchmarks.training_step import StepSettings, StepSize, training_rows
from lyra_ns.cameras import CameraPath, look_at
from lyra_ns.decoder.blocks import kept_bytes
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.device import GIB, free_bytes
from lyra_ns.gaussians import Gaussians
from lyra_ns.ops.lpips import BYTES_PER_PIXEL, LPIPS_EPSILON, PerceptualDistance, compare_features
from lyra_ns.rendering import RenderSettings, render, renderer
from lyra_ns.rendering.renderer import RenderSize

pytestmark = pytest.mark.gpu

FOUR_MAMBA_TWO_ATTENTION = {"depth": 6, "pattern": "2M1T"}
POLICIES = ("none", "states", "scans", "all")
NUM_TOKENS = 16_384
DEVICE = torch.device("cuda")


def growth_and_peak(work: Callable[[], Any]) -> tuple[Any, int, int]:
    """The result of `work`, the bytes it left in use, and the most it had in use."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    torch.cuda.synchronize()
    return result, torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before


def full_width_decoder(recompute: str) -> LatentGaussianDecoder:
    """Blocks of the official width with the same random weights each time."""
    torch.manual_seed(0)
    return LatentGaussianDecoder(DecoderConfig(recompute=recompute, **FOUR_MAMBA_TWO_ATTENTION)).cuda()


def trunk(decoder: LatentGaussianDecoder, tokens: Tensor) -> Tensor:
    """The blocks under the autocast that the decoder opens for them."""
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        return decoder.trunk(tokens)


def test_policies_give_equal_gradients_and_keep_what_is_estimated() -> None:
    """In bfloat16; each policy keeps less than the one before, and the estimate bounds all but the last."""
    tokens = torch.randn(1, NUM_TOKENS, 512, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    gradients, kept = [], []
    for recompute in POLICIES:
        decoder = full_width_decoder(recompute)
        trunk(decoder, tokens).mean().backward()  # kernels are built and tuned here
        decoder.zero_grad()
        after, growth, _ = growth_and_peak(lambda decoder=decoder: trunk(decoder, tokens))
        after.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in decoder.enc_blocks.parameters()]))
        kept.append(growth)
        del after
    assert all((other - gradients[0]).norm() < 2e-2 * gradients[0].norm() for other in gradients[1:])
    assert kept == sorted(kept, reverse=True), kept
    assert kept[0] > 1.5 * kept[1] > 1.5 * kept[2] > kept[3], kept
    config, scan = decoder.config, decoder.scan.form_on(DEVICE)
    for policy, found in zip(POLICIES[:-1], kept, strict=False):
        estimate = kept_bytes(config, NUM_TOKENS, policy, scan)
        assert found < 1.1 * estimate < 4 * found, (policy, found / GIB, estimate / GIB)


@pytest.mark.parametrize(("recompute", "num_scans"), [("none", 4), ("states", 4), ("scans", 8)])
def test_states_are_scanned_once_where_they_are_kept(
    monkeypatch: pytest.MonkeyPatch, recompute: str, num_scans: int
) -> None:
    """Of four Mamba blocks, whose other parts run twice."""
    from lyra_ns.ops import ssd_triton_backward

    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("our state scan has kernels for Hopper cards alone")
    calls, scan = [], ssd_triton_backward.ssd_forward
    monkeypatch.setattr(ssd_triton_backward, "ssd_forward", lambda *inputs: calls.append(1) or scan(*inputs))
    decoder = full_width_decoder(recompute)
    trunk(decoder, torch.randn(1, 2048, 512, device=DEVICE)).mean().backward()
    assert len(calls) == num_scans


def scattered(num: int) -> Gaussians:
    """Gaussians of a few pixels all over the view of `cameras_ahead`."""
    generator = torch.Generator().manual_seed(0)
    uniform, normal = torch.rand(num, 6, generator=generator), torch.randn(num, 8, generator=generator)
    depth = 1 + 4 * uniform[:, 0]
    return Gaussians(
        means=torch.stack([(1.2 * uniform[:, 1] - 0.6) * depth, (uniform[:, 2] - 0.5) * depth, depth], -1),
        quats=torch.nn.functional.normalize(normal[:, :4], dim=-1),
        scales=0.002 * depth[:, None] * torch.exp(0.5 * normal[:, 4:7]),
        opacities=torch.sigmoid(normal[:, 7]),
        rgb=uniform[:, 3:],
    )


def cameras_ahead(num: int, height: int, width: int) -> CameraPath:
    """Cameras side by side that look at one point."""
    centre = torch.stack([0.02 * torch.arange(num), torch.zeros(num), torch.zeros(num)], -1)
    pose = look_at(centre, torch.tensor([0.0, 0.0, 4.0]).expand_as(centre))
    intrinsics = torch.tensor([0.8 * width, 0.8 * width, width / 2, height / 2]).expand(num, 4)
    return CameraPath(pose, intrinsics, torch.zeros(num), height, width)


def drawn(gaussians: Gaussians, cameras: CameraPath) -> tuple[Tensor, list[Tensor]]:
    """Colours and the gradients of all fields."""
    leaves = [field.cuda().requires_grad_() for field in vars(gaussians).values()]
    images = render(Gaussians(*leaves), cameras.to("cuda"), RenderSettings())
    loss = images.rgb.square().mean() + images.depth.mean()
    return images.rgb.detach(), list(torch.autograd.grad(loss, leaves))


def test_renders_need_less_than_estimated_and_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of all views at once bounds the measured peak; groups give the same images."""
    gaussians, cameras = scattered(500_000), cameras_ahead(8, 352, 640)
    (whole, gradients), _, peak = growth_and_peak(lambda: drawn(gaussians, cameras))
    size = RenderSize(gaussians.num, 8, 352 * 640)
    estimate = 8 * (size.kept_bytes(True) + size.passing_bytes(True))
    assert peak < 1.1 * estimate, (peak / GIB, estimate / GIB)
    kept = 8 * size.kept_bytes(True)
    for free in (int((kept + 3 * size.passing_bytes(True)) / 0.6), int(kept / 0.6)):
        monkeypatch.setattr(renderer, "free_bytes", lambda device, free=free: free)
        parts, part_gradients = drawn(gaussians, cameras)
        assert torch.equal(parts, whole)
        for found, expected in zip(part_gradients, gradients, strict=True):
            assert (found - expected).norm() < 1e-3 * expected.norm()


def test_the_kernel_of_lpips_equals_torch() -> None:
    """Distances and gradients of features as the trunk gives them."""
    from lyra_ns.ops.lpips_triton import feature_distance

    generator = torch.Generator(DEVICE).manual_seed(0)
    shape, weights = (3, 128, 44, 80), torch.rand(128, device=DEVICE)
    found, wanted = (torch.randn(shape, device=DEVICE, generator=generator).relu() for _ in range(2))
    results = []
    for compare in (compare_features, feature_distance):
        leaf = found.bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
        distance = compare(leaf, wanted.bfloat16(), weights, LPIPS_EPSILON)
        (distance * torch.tensor([1.0, 2.0, 3.0], device=DEVICE)).sum().backward()
        results.append((distance.detach(), leaf.grad.float()))
    (expected, gradient), (value, kernel_gradient) = results
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert (kernel_gradient - gradient).norm() < 2e-2 * gradient.norm()


def test_lpips_in_bfloat16_parts_is_close_and_small() -> None:
    """Distance and gradient as in float32 at once, within the bytes per pixel that parts are chosen by."""
    torch.manual_seed(0)
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).cuda()
    images, targets = torch.rand(2, 6, 3, 352, 640, device=DEVICE)
    results = []
    for dtype, at_once in ((None, 6), (torch.bfloat16, 2)):
        perceptual = PerceptualDistance(network, "", dtype, at_once)

        def run(perceptual: PerceptualDistance = perceptual) -> tuple[Tensor, Tensor]:
            leaf = images.clone().requires_grad_()
            distance = perceptual(leaf, targets)
            return distance.detach(), torch.autograd.grad(distance.sum(), leaf)[0]

        run()
        results.append(growth_and_peak(run))
    ((exact, gradient), _, _), ((found, coarse_gradient), _, peak) = results
    torch.testing.assert_close(found, exact, rtol=0.03, atol=0.003)
    assert torch.nn.functional.cosine_similarity(coarse_gradient.flatten(), gradient.flatten(), dim=0) > 0.98
    images_bytes = 3 * images.nbytes
    assert peak - images_bytes < BYTES_PER_PIXEL["vgg"] * 2 * 352 * 640, peak / 2**20
    assert free_bytes(DEVICE) > GIB


def test_the_measured_step_learns_the_same_fast_and_plain() -> None:
    """A small step through the benchmark: losses before and after two steps, memory and times are there."""
    size = StepSize(num_views=2, num_targets=6, prune_ratio=0.5, num_frames=17, height=176, width=320)
    settings = StepSettings(decoder=DecoderConfig(depth=4, pattern="1M1T"))
    fast, plain = training_rows(size, settings, repetitions=1)
    assert "error" not in fast, fast
    assert fast["first_loss"] == pytest.approx(plain["first_loss"], rel=0.02)
    assert fast["loss"] == pytest.approx(plain["loss"], rel=0.05)
    assert fast["peak_gib"] > 0
    assert fast["step_s"] > 0


def test_batches_read_ahead_arrive_as_they_are(tmp_path: Path) -> None:
    """On the device, equal to those that are read when they are asked for, over several steps."""
    pytest.importorskip("nerfstudio")
    from lyra_ns.plugin.datamanager import PrefetchedBatches, StreamedBatches
    from lyra_ns.plugin.scenes import open_scenes
    from tests.helpers.wall_scenes import write_wall_scenes
    from tests.plugin.test_training import SAMPLING, SETTINGS

    scenes = open_scenes(write_wall_scenes(tmp_path / "walls"), (5, 0, 1))
    direct, source = (StreamedBatches(scenes.store, scenes.split.train, SETTINGS, 0) for _ in range(2))
    ahead = PrefetchedBatches(source, DEVICE)
    for index in range(4):
        found, expected = ahead.batch(index, SAMPLING), direct.batch(index, SAMPLING)
        assert found.ready["latents"].is_cuda
        assert found.ready["cameras"].camera_to_world.is_cuda
        assert found.ready["names"] == expected.ready["names"]
        assert torch.equal(found.ready["latents"].cpu(), expected.ready["latents"])
        assert torch.equal(found.ready["target_depth"].cpu(), expected.ready["target_depth"])
        # Memory of this batch goes back while the next one is being copied.
        del found


def test_a_step_that_does_not_fit_saves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A true error of the allocator, in the third step of a run of nerfstudio's trainer."""
    pytest.importorskip("nerfstudio")
    from nerfstudio.engine.trainer import Trainer

    from tests.helpers.wall_scenes import write_wall_scenes
    from tests.plugin.test_training import run_trainer

    walls, train_iteration = write_wall_scenes(tmp_path / "walls"), Trainer.train_iteration

    def fails(trainer: Trainer, step: int) -> Any:
        if step == 2:
            trainer.pipeline.get_train_loss_dict(step)
            torch.empty(
                4 * torch.cuda.get_device_properties(DEVICE).total_memory, dtype=torch.uint8, device=DEVICE
            )
        return train_iteration(trainer, step)

    monkeypatch.setattr(Trainer, "train_iteration", fails)
    with pytest.raises(SystemExit, match="GiB were free before the step") as caught:
        run_trainer(walls, tmp_path / "run", 3, device="cuda", ema_decay=0.9)
    (saved,) = (tmp_path / "run").rglob("step-*.ckpt")
    assert saved.name == "step-000000001.ckpt"
    assert str(saved) in str(caught.value)
