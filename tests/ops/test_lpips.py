"""LPIPS: equal to the `lpips` package, sane on photographs, its weights read without running code."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.error import URLError

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from skimage import data as photographs

from lyra_ns.device import GIB
from lyra_ns.ops.lpips import PerceptualDistance, find_lpips_trunk, load_lpips


@pytest.fixture(scope="module")
def perceptual() -> PerceptualDistance:
    return load_lpips("alex")


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """Three real photographs [3, 3, 96, 128]."""
    crops = [getattr(photographs, name)()[100:196, 100:228] for name in ("astronaut", "coffee", "chelsea")]
    return torch.from_numpy(np.stack(crops)).movedim(-1, 1).float() / 255


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    offsets = torch.arange(-12, 13)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = torch.nn.functional.pad(images, (12, 12, 12, 12), mode="reflect")
    rows = torch.nn.functional.conv2d(padded, kernel, groups=3)
    return torch.nn.functional.conv2d(rows, kernel.transpose(2, 3), groups=3)


@pytest.mark.slow
def test_shipped_trunk_is_the_one_in_use(perceptual):
    assert perceptual.name == "LPIPS v0.1, AlexNet trunk, shipped"


@pytest.mark.slow
def test_the_net_in_use_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        load_lpips("alex")
    assert "LPIPS v0.1, AlexNet trunk, shipped" in caplog.text


def test_heads_are_those_of_the_package(perceptual):
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", "cpu", weights_only=True)
    for layer, head in enumerate(perceptual.network.lins):
        torch.testing.assert_close(head.model[-1].weight, heads[f"lin{layer}.model.1.weight"], rtol=0, atol=0)


def test_trunk_is_alexnet(perceptual):
    """First numbers of torchvision's AlexNet, seen in the float32 file; float16 rounds the fourth digit."""
    weight = perceptual.network.net.slice1[0].weight
    expected = torch.tensor([0.118640, 0.094069, 0.095435, 0.105151])
    torch.testing.assert_close(weight.detach().contiguous().flatten()[:4], expected, rtol=1e-3, atol=1e-6)


def test_real_stereo_pair_has_the_published_distance(perceptual):
    """0.419 between the two photographs, found with the float32 trunk.

    Source: docs/reference/small_scale.md, "Stereo pair".
    """
    left, right, _ = photographs.stereo_motorcycle()
    left, right = (
        torch.from_numpy(image.copy()).movedim(-1, 0)[None].float() / 255 for image in (left, right)
    )
    assert perceptual(left, right).item() == pytest.approx(0.41876, abs=1e-3)


def test_equals_the_official_forward(perceptual, photos):
    noisy = photos + 0.1 * torch.randn(photos.shape, generator=torch.Generator().manual_seed(0))
    official = perceptual.network(noisy, photos, normalize=True).flatten()
    torch.testing.assert_close(perceptual(noisy, photos), official.detach(), rtol=1e-5, atol=1e-6)


def test_no_images_have_no_distances(perceptual):
    """With and without gradient."""
    nothing = torch.zeros(0, 3, 64, 64, requires_grad=True)
    assert perceptual(nothing.detach(), nothing.detach()).shape == (0,)
    (gradient,) = torch.autograd.grad(perceptual(nothing, nothing.detach()).sum(), nothing)
    assert gradient.shape == nothing.shape


def test_equal_images_have_no_distance(perceptual, photos):
    assert perceptual(photos, photos).abs().max() == 0


def test_distance_grows_with_blur(perceptual, photos):
    distances = torch.stack([perceptual(blurred(photos, sigma), photos) for sigma in (0.5, 1.0, 2.0, 4.0)])
    assert (distances.diff(dim=0) > 0.02).all()
    assert distances[0].max() < 0.1
    assert distances[-1].min() > 0.3


def test_parts_give_the_same_value_and_gradient(perceptual, photos):
    """As autograd through the whole of it, under other weights for every image."""
    whole = blurred(photos, 1.0).requires_grad_()
    in_parts = whole.detach().clone().requires_grad_()
    weights = torch.linspace(0.5, 2.0, len(photos))
    expected = perceptual._distance(whole, photos)
    found = PerceptualDistance(perceptual.network, "", images_at_once=2)(in_parts, photos)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(in_parts.grad, whole.grad)
    assert whole.grad.abs().max() > 0


def test_every_image_passes_the_trunk_once_and_its_target_without_gradient(perceptual, photos):
    """Nothing is recomputed in the backward pass."""
    images, passes = blurred(photos, 1.0).requires_grad_(), []
    hook = perceptual.network.net.register_forward_pre_hook(
        lambda module, inputs: passes.append((len(inputs[0]), inputs[0].requires_grad))
    )
    PerceptualDistance(perceptual.network, "", images_at_once=3)(images, photos).sum().backward()
    hook.remove()
    assert sum(num for num, with_gradient in passes if with_gradient) == len(photos)
    assert sum(num for num, with_gradient in passes if not with_gradient) == len(photos)
    assert max(num for num, _ in passes) == 3


def test_images_at_once_follow_the_free_memory(perceptual, monkeypatch):
    """Never more than fill a card, fewer where little is free, one at least; main memory is not asked."""
    images = torch.zeros(1, 3, 704, 1280)
    assert perceptual._images_that_fit(images) == 4
    for free, expected in ((80 * GIB, 4), (4 * GIB, 1), (0, 1)):
        monkeypatch.setattr("lyra_ns.ops.lpips.free_bytes", lambda device, free=free: free)
        assert perceptual._images_that_fit(images) == expected
        assert perceptual._images_that_fit(images[..., :64, :64]) >= expected


def test_the_gradient_is_written_out_for_vgg_in_bfloat16_on_cuda_alone(perceptual, monkeypatch):
    """Where it is, a pixel needs less memory; without triton it is not."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    coarse = perceptual.computing_in(torch.bfloat16)
    assert not coarse._is_written_out(cuda)
    monkeypatch.setattr(perceptual.network, "pnet_type", "vgg")
    monkeypatch.setattr("lyra_ns.ops.lpips._triton_is_installed", lambda: True)
    assert coarse._is_written_out(cuda)
    assert not coarse._is_written_out(cpu)
    assert not perceptual._is_written_out(cuda)
    assert coarse._bytes_per_pixel(cuda) < coarse._bytes_per_pixel(cpu) < perceptual._bytes_per_pixel(cuda)
    monkeypatch.setattr("lyra_ns.ops.lpips._triton_is_installed", lambda: False)
    assert not coarse._is_written_out(cuda)


def test_bfloat16_trunk_stays_close(perceptual, photos):
    fast = PerceptualDistance(perceptual.network, "", compute_dtype=torch.bfloat16)
    images = blurred(photos, 2.0)
    assert fast(images, photos).dtype == torch.float32
    torch.testing.assert_close(fast(images, photos), perceptual(images, photos), rtol=0.03, atol=0.003)


def test_holds_nothing_that_a_model_would_save(perceptual):
    model = torch.nn.Module()
    model.perceptual = perceptual
    assert model.state_dict() == {}
    assert list(model.parameters()) == []


def test_small_images_and_unknown_nets_are_errors(perceptual):
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, found 16 x 64"):
        perceptual(torch.zeros(1, 3, 16, 64), torch.zeros(1, 3, 16, 64))
    with pytest.raises(ValueError, match="squeeze"):
        find_lpips_trunk("squeeze")


def made_up_state(net: str) -> dict[str, torch.Tensor]:
    """A trunk as torchvision keys it, of random numbers, and one weight of its head."""
    trunk = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).net
    names = {f"features.{key.split('.', 1)[1]}": tensor for key, tensor in trunk.state_dict().items()}
    return {**names, "classifier.1.weight": torch.zeros(2)}


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty hub cache and no way out of this machine."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)


@pytest.mark.slow
def test_vgg_is_torchvisions_from_the_hub_cache(no_network, tmp_path):
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = made_up_state("vgg")
    torch.save(state, tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth")
    perceptual = load_lpips("vgg")
    assert perceptual.name == "LPIPS v0.1, VGG16 trunk, torchvision's"
    found = perceptual.network.net.state_dict()["slice3.12.weight"]
    assert torch.equal(found, state["features.12.weight"])


def test_without_network_the_error_says_what_to_do(no_network):
    with pytest.raises(FileNotFoundError, match=r"copy that file there.*lpips_weights.*lpips weight 0"):
        load_lpips("vgg")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchvision", "lpips", "lpips_trunk", "safetensors"])
def test_a_file_of_weights_is_read(tmp_path, form):
    state, file = made_up_state("alex"), tmp_path / "trunk.pth"
    torch.save(state, file)
    if form == "safetensors":
        file = tmp_path / "trunk.safetensors"
        save_file(state, file)
    elif form.startswith("lpips"):
        network = load_lpips("alex", weights=file).network
        torch.save((network if form == "lpips" else network.net).state_dict(), file)
    perceptual = load_lpips("alex", weights=file)
    assert perceptual.name == f"LPIPS v0.1, AlexNet trunk, {file.name}"
    assert torch.equal(perceptual.network.net.state_dict()["slice5.10.bias"], state["features.10.bias"])


class _Calls:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.slow
def test_files_of_other_things_are_refused(tmp_path):
    file = tmp_path / "trunk.pth"
    with pytest.raises(FileNotFoundError, match=r"no weights of LPIPS at .*trunk.pth"):
        load_lpips("vgg", weights=file)
    torch.save({"features.0.weight": _Calls(tmp_path / "executed")}, file)
    with pytest.raises(ValueError, match="must be a state dict of tensors"):
        load_lpips("vgg", weights=file)
    assert not (tmp_path / "executed").exists()
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="must be a state dict of tensors"):
        load_lpips("vgg", weights=file)
    torch.save(torch.zeros(3), file)
    with pytest.raises(ValueError, match="found Tensor"):
        load_lpips("vgg", weights=file)
    torch.save(load_lpips("alex").network.state_dict(), file)
    with pytest.raises(ValueError, match=r"the 26 convolution weights of VGG16, found others in trunk.pth"):
        load_lpips("vgg", weights=file)
