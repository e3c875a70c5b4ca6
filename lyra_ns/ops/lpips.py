"""Perceptual distance: LPIPS v0.1 of the `lpips` package, with trunks that also work offline.

AlexNet's trunk ships with this package, VGG-16's is torchvision's; either may come from a file. Weights are
keyed as torchvision keys them (`features.0.weight`, ...), float32 when handed out.

Shape letters: N images, H W image.
"""

from __future__ import annotations

import importlib.util
import logging
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lyra_ns.device import free_bytes

logger = logging.getLogger(__name__)

SHIPPED_ALEXNET = "lpips_alexnet.safetensors"
TITLES = {"vgg": "VGG16", "alex": "AlexNet"}
"""Names of the trunks."""
CONVOLUTION = re.compile(r"(?:^|\.)(?:features|slice\d)\.(\d+)\.(weight|bias)$")
"""Key of a convolution: `features.10.weight` of torchvision, `slice3.10.weight` of lpips."""


@dataclass(frozen=True)
class LpipsTrunk:
    """Weights of a trunk and where they came from, in words."""

    weights: dict[str, Tensor]
    source: str


def find_lpips_trunk(net: str, file: Path | None = None) -> LpipsTrunk:
    """The trunk of `file`, else the one that ships (alex) or torchvision's, downloaded once (vgg).

    A file is a state dict as torchvision or lpips saves it, or safetensors with the same keys.
    FileNotFoundError if nothing has it; ValueError for an unknown `net` or a damaged file.
    """
    if net not in TITLES:
        raise ValueError(f"LPIPS trunks are {sorted(TITLES)}, found {net!r}")
    if file is not None:
        return LpipsTrunk(_convolutions(_read_state(file)), file.name)
    if net == "vgg":
        return LpipsTrunk(_convolutions(_torchvision_vgg()), "torchvision's")
    with resources.as_file(resources.files("lyra_ns.weights") / SHIPPED_ALEXNET) as shipped:
        return LpipsTrunk(_convolutions(load_file(shipped)), "shipped")


def _convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions of a state dict as torchvision keys them, float32."""
    found = ((CONVOLUTION.search(key), tensor) for key, tensor in state.items())
    return {f"features.{match[1]}.{match[2]}": tensor.float() for match, tensor in found if match}


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weights of LPIPS at {path}: check lpips_weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"weights of LPIPS {path} must be a state dict of tensors, found another file ({reason}): "
            "save torchvision's VGG-16 with torch.save(model.state_dict(), file)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(
            f"weights of LPIPS {path} must be a state dict of tensors, found {type(state).__name__}"
        )
    return state


def _torchvision_vgg() -> dict[str, Tensor]:
    """VGG-16 as lpips asks torchvision for it: from torch's hub cache, else downloaded into it (528 MB)."""
    from torchvision.models import VGG16_Weights

    weights = VGG16_Weights.IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (OSError, HTTPException) as error:  # urllib's errors are those of the system.
        raise FileNotFoundError(
            f"LPIPS needs torchvision's VGG-16, which is not in {torch.hub.get_dir()}/checkpoints and could "
            f"not be downloaded from {weights.url} ({type(error).__name__}): copy that file there, name it "
            "by lpips_weights, take lpips_net alex, or switch the term off (lpips weight 0)"
        ) from error


LPIPS_EPSILON = 1e-10
"""Added to a feature's length before dividing by it, as in the `lpips` package."""
PIXELS_AT_ONCE = 2**22
"""Pixels that go through the trunk at once unless told otherwise: 4 images of 704 x 1280 fill a GPU."""
BYTES_PER_PIXEL = {"vgg": 1200, "alex": 600}
"""What a pixel needs at most as training on a card runs the trunk (in bfloat16), gradient included.

VGG has 270 numbers of a predicted pixel behind its ReLUs, all kept for the way back, and 122 of a target's
pixel in its five features: 784 bytes. The rest is left to cuDNN.
"""
AUTOGRAD_BYTES_PER_PIXEL = {"vgg": 2500, "alex": 600}
"""The same where autograd runs the trunk; float32 takes twice that."""
SHARE_OF_FREE_MEMORY = 0.5
"""Part of a card's free memory that one part of the images may take."""
SMALLEST_SIDE = 32
"""Images smaller than this vanish inside the trunks."""


class PerceptualDistance:
    """LPIPS with frozen weights: `distance(predicted, target)` of images in [0, 1].

    A plain object, not a module, so that no model takes the trunk into its state dict. It follows the
    images from device to device.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        compute_dtype: torch.dtype | None = None,
        images_at_once: int | None = None,
    ) -> None:
        """Wrap an `lpips.LPIPS` network; `compute_dtype` (bfloat16) puts its trunk under autocast.

        More than `images_at_once` images go in parts; None: as many as make PIXELS_AT_ONCE pixels and fit the
        free memory of the card.
        """
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name = name
        self.compute_dtype = compute_dtype
        self.images_at_once = images_at_once

    def computing_in(self, dtype: torch.dtype | None) -> PerceptualDistance:
        """The same network with its trunk in another precision."""
        return PerceptualDistance(self.network, self.name, dtype, self.images_at_once)

    def to(self, device: torch.device | str) -> PerceptualDistance:
        """The same object with its weights on `device`."""
        self.network.to(device)
        return self

    def __call__(
        self, predicted: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, " N"]:
        """Distance of each pair of images, 0 for equal ones; differentiable in `predicted` only."""
        return self.forward(predicted, target)

    def forward(
        self, predicted: Float[Tensor, "N 3 H W"], target: Float[Tensor, "N 3 H W"]
    ) -> Float[Tensor, " N"]:
        """As calling the object. What does not fit at once goes in parts, none of them computed twice.

        Each image's distance depends on that image alone, so its gradient is computed along with it and kept
        in place of the activations. There is no second derivative.
        """
        if min(predicted.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"LPIPS needs images of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, "
                f"found {predicted.shape[-2]} x {predicted.shape[-1]}: set the lpips weight to 0"
            )
        if next(self.network.parameters()).device != predicted.device:
            self.to(predicted.device)
        at_once = self.images_at_once or self._images_that_fit(predicted)
        distance, distance_and_gradient = self._ways(predicted.device)
        if predicted.requires_grad and torch.is_grad_enabled():
            return _DistanceWithGradient.apply(predicted, target, distance_and_gradient, at_once)
        parts = zip(predicted.split(at_once), target.split(at_once), strict=True)
        return torch.cat([distance(*part) for part in parts])

    def _ways(
        self, device: torch.device
    ) -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]:
        """How the distance of a part is found, alone and with its gradient."""
        if not self._is_written_out(device):
            return self._distance, self._distance_and_gradient
        from lyra_ns.ops.lpips_triton import FeatureTrunk

        trunk = FeatureTrunk(self.network, self.compute_dtype or torch.float32, LPIPS_EPSILON)
        return trunk.distance, trunk.distance_and_gradient

    def _is_written_out(self, device: torch.device) -> bool:
        """Whether the trunk runs as kernels with its gradient written out, not by autograd."""
        fits = device.type == "cuda" and self.compute_dtype == torch.bfloat16 and self._kind == "vgg"
        return fits and _triton_is_installed()

    def _images_that_fit(self, images: Tensor) -> int:
        num_pixels = images.shape[-2] * images.shape[-1]
        pixels_at_once, free = PIXELS_AT_ONCE, free_bytes(images.device)
        if free is not None:
            bytes_per_pixel = self._bytes_per_pixel(images.device)
            pixels_at_once = min(pixels_at_once, int(SHARE_OF_FREE_MEMORY * free) // bytes_per_pixel)
        return max(1, pixels_at_once // num_pixels)

    def _bytes_per_pixel(self, device: torch.device) -> int:
        if self._is_written_out(device):
            return BYTES_PER_PIXEL[self._kind]
        return AUTOGRAD_BYTES_PER_PIXEL[self._kind] * (1 if self.compute_dtype == torch.bfloat16 else 2)

    @property
    def _kind(self) -> str:
        return "alex" if getattr(self.network, "pnet_type", "vgg") == "alex" else "vgg"

    def _distance_and_gradient(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        leaf = predicted.detach().requires_grad_()
        with torch.enable_grad():
            distance = self._distance(leaf, target)
            (gradient,) = torch.autograd.grad(distance.sum(), leaf)
        return distance.detach(), gradient

    def _distance(self, predicted: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self._features(target)
        total = predicted.new_zeros(len(predicted), dtype=torch.float32)
        heads = self.network.get_submodule("lins").children()
        compare = _fast_comparison() if predicted.is_cuda else compare_features
        for feature, wanted_feature, head in zip(self._features(predicted), wanted, heads, strict=True):
            # A head is a 1 x 1 convolution to one channel.
            weights = next(head.parameters()).flatten()
            total = total + compare(feature, wanted_feature, weights, LPIPS_EPSILON)
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        scaling, trunk = (self.network.get_submodule(name) for name in ("scaling_layer", "net"))
        scaled = scaling(images.float() * 2 - 1).contiguous(memory_format=torch.channels_last)
        dtype = self.compute_dtype
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            return list(trunk(scaled))


class _DistanceWithGradient(torch.autograd.Function):
    """Distances of images, part by part, with the gradient of each part computed before the next begins."""

    @staticmethod
    def forward(
        ctx: Any,
        predicted: Tensor,
        target: Tensor,
        distance_and_gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        at_once: int,
    ) -> Tensor:
        gradient = torch.empty_like(predicted)
        distances = predicted.new_empty(len(predicted), dtype=torch.float32)
        for start in range(0, len(predicted), at_once):
            here = slice(start, start + at_once)
            distances[here], gradient[here] = distance_and_gradient(predicted[here], target[here])
        ctx.save_for_backward(gradient)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * weight[:, None, None, None].to(gradient.dtype), None, None, None


def compare_features(
    predicted: Float[Tensor, "N C H W"],
    target: Float[Tensor, "N C H W"],
    weights: Float[Tensor, " C"],
    eps: float,
) -> Float[Tensor, " N"]:
    """Weighted squared difference of unit features, averaged over pixels, in float32."""
    found, wanted = (
        feature / (torch.linalg.vector_norm(feature, dim=1, keepdim=True) + eps)
        for feature in (predicted.float(), target.float())
    )
    # Averaging first gives the same as weighing first and costs less.
    return ((found - wanted).square().mean((2, 3)) * weights).sum(-1)


def _fast_comparison() -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """The same as one kernel where Triton is installed."""
    if not _triton_is_installed():
        return compare_features
    from lyra_ns.ops.lpips_triton import feature_distance

    return feature_distance


@cache
def _triton_is_installed() -> bool:
    if importlib.util.find_spec("triton") is not None:
        return True
    logger.info("LPIPS runs in plain torch: triton is not installed")
    return False


def load_lpips(
    net: Literal["vgg", "alex"] = "vgg",
    compute_dtype: torch.dtype | None = None,
    images_at_once: int | None = None,
    weights: Path | None = None,
) -> PerceptualDistance:
    """LPIPS v0.1 with the trunk `net`; its `name` (also logged) says which weights it runs on.

    The trunk is that of the file `weights`, else the shipped one (alex) or torchvision's from torch's hub
    cache, downloaded once (vgg). FileNotFoundError, with what to do, if there is none; ValueError for a file
    of another network.
    """
    trunk = find_lpips_trunk(net, weights)
    network = _network_with_trunk(net, trunk)
    perceptual = PerceptualDistance(
        network, f"LPIPS v0.1, {TITLES[net]} trunk, {trunk.source}", compute_dtype, images_at_once
    )
    logger.info("Perceptual distance: %s", perceptual.name)
    return perceptual


def _network_with_trunk(net: str, trunk: LpipsTrunk) -> nn.Module:
    """The package's network (its linear heads come with it) with every weight of the trunk copied in."""
    import lpips  # only here: nerfstudio loads our configurations, which know LossConfig, for every command

    with warnings.catch_warnings():
        # lpips calls torchvision with its old argument names.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        # With use_dropout off it would leave its heads random, without a word; evaluation mode drops nothing.
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = _convolutions(network.net.state_dict())
    expected, found = (
        {key: tuple(tensor.shape) for key, tensor in part.items()} for part in (state, trunk.weights)
    )
    if expected != found:
        raise ValueError(
            f"LPIPS needs the {len(expected)} convolution weights of {TITLES[net]}, found others in "
            f"{trunk.source}: name a state dict of that network by lpips_weights, as torchvision saves it"
        )
    for key, tensor in state.items():
        tensor.copy_(trunk.weights[key])
    return network
