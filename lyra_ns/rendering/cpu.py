"""The compiled CPU backend: splats to pixels and back through splat.cpp, which is built on first use.

The kernel is kept for the next run. Why one call of the compiler and not torch's builder:
docs/reference/small_scale.md, "Rasterization on CPUs".
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.rendering.projection import Splats
from lyra_ns.rendering.types import MIN_ALPHA, MIN_TRANSMITTANCE

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("splat.cpp")

REQUIRED_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-Wno-psabi", "-Wno-unknown-pragmas")

FLAG_CHOICES = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
"""Tried in turn, since not every compiler knows every processor or has OpenMP."""


class CompilerMissing(RuntimeError):
    """There is no C++ compiler, or none that can build the kernel."""


@dataclass(frozen=True)
class Kernel:
    """The loaded kernel."""

    library: ctypes.CDLL
    """Its functions."""
    description: str
    """Compiler and flags, for the log."""


def find_compiler() -> str | None:
    """Path of a C++ compiler: $CXX if set, else the first of c++, g++ and clang++."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["c++", "g++", "clang++"])), None)


@functools.cache
def load_kernel() -> Kernel:
    """The kernel, from the cache or compiled now (about 3 s).

    Raises CompilerMissing where it cannot be built.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CompilerMissing(
            "the CPU renderer needs a C++ compiler and found none ($CXX, c++, g++, clang++): install one "
            "(e.g. apt install g++) or choose the renderer backend 'torch', which is slower"
        )
    errors = []
    for flags in FLAG_CHOICES:
        path = cache_folder() / f"splat-{_fingerprint(compiler, flags)}.so"
        error = None if path.exists() else _compile(compiler, flags, path)
        if error is None:
            return Kernel(ctypes.CDLL(str(path)), f"{Path(compiler).name} {' '.join(flags)}".strip())
        errors.append(error)
    raise CompilerMissing(f"{compiler} cannot build the CPU renderer {SOURCE}: {errors[-1]}")


def cache_folder() -> Path:
    """Where kernels are kept: $XDG_CACHE_HOME/lyra_ns/kernels, or a private folder if it is read-only."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "lyra_ns" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _private_folder()
    return folder if os.access(folder, os.W_OK) else _private_folder()


@functools.cache
def _private_folder() -> Path:
    # Freshly made and ours alone: a library at a guessable name in a shared folder could be anybody's.
    return Path(tempfile.mkdtemp(prefix="lyra_ns-kernels-"))


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    """What the binary depends on; the processor too, since homes are shared between machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [SOURCE.read_text(), version, *REQUIRED_FLAGS, *flags, platform.platform(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's model and abilities."""
    description = Path("/proc/cpuinfo")
    if not description.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "".join(sorted({line for line in description.read_text().splitlines() if line.startswith(wanted)}))


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> str | None:
    """Build the kernel at `path`; None, or what the compiler had to say.

    Workers may build at the same time: each writes a file of its own, then moves it into place at once.
    """
    logger.info("compiling the CPU renderer with %s %s (once)", compiler, " ".join(flags))
    handle, draft = tempfile.mkstemp(prefix="splat-", suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        command = [compiler, *REQUIRED_FLAGS, *flags, str(SOURCE), "-o", draft]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            os.replace(draft, path)
            return None
        return result.stderr.strip()[-500:]
    finally:
        Path(draft).unlink(missing_ok=True)


TILE = 16
NUM_CHANNELS = 4
GRADIENT_COLUMNS = (2, 3, 5, 1, 4)
"""Width of the gradients of centres, whitenings, perspectives, opacities and colours in the kernel's rows."""


class _View(ctypes.Structure):
    """The struct View of splat.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("width", "height", "num_threads", "unused")),
        *((name, ctypes.c_int64) for name in ("num_splats", "num_pairs")),
        *((name, ctypes.c_double) for name in ("max_alpha", "min_alpha", "min_transmittance")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("centres", "whitenings", "perspectives", "opacities", "colours", "depths", "boxes"),
                *("tile_starts", "pair_splats"),
                *("image", "transmittance", "last", "image_grad", "transmittance_grad"),
                *("pair_grads", "splat_grads"),
            )
        ),
    ]


def rasterize(
    splats: Splats, height: int, width: int, max_alpha: float
) -> tuple[Float[Tensor, "H W 4"], Float[Tensor, "H W"]]:
    """Blended colours with z-depth, and transmittance, of one view; repeatable bit by bit."""
    return _Rasterize.apply(
        splats.centres,
        splats.whitenings,
        splats.perspectives,
        splats.opacities,
        splats.colours,
        splats.depths,
        splats.boxes,
        (height, width, max_alpha),
    )


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, (height, width, max_alpha) = arguments
        names = ("centres", "whitenings", "perspectives", "opacities", "colours", "depths", "boxes")
        inputs = {
            name: tensor.detach().contiguous()
            for name, tensor in zip(names, tensors, strict=True)
            if tensor is not None
        }
        like = inputs["centres"]
        constants = {"height": height, "width": width, "max_alpha": max_alpha}
        num_tiles = -(-height // TILE) * -(-width // TILE)
        inputs["tile_starts"] = torch.empty(num_tiles + 1, dtype=torch.int64)
        num_pairs = _call("count_pairs", like.dtype, inputs, constants)
        inputs["pair_splats"] = torch.empty(num_pairs, dtype=torch.int32)
        _call("list_pairs", like.dtype, inputs, constants)
        image, transmittance = like.new_empty(height, width, NUM_CHANNELS), like.new_empty(height, width)
        inputs["last"] = torch.empty(height, width, dtype=torch.int32)
        outputs = {"image": image, "transmittance": transmittance}
        _call("blend", like.dtype, inputs | outputs, constants)
        ctx.names, ctx.constants = (*inputs, "transmittance"), constants
        ctx.save_for_backward(*inputs.values(), transmittance)
        return image, transmittance

    @staticmethod
    def backward(ctx: Any, image_grad: Tensor, transmittance_grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        like = tensors["centres"]
        width = sum(GRADIENT_COLUMNS)
        tensors |= {
            "image_grad": image_grad.contiguous(),
            "transmittance_grad": transmittance_grad.contiguous(),
            "pair_grads": like.new_empty(len(tensors["pair_splats"]), width),
            "splat_grads": like.new_empty(len(like), width),
        }
        _call("differentiate", like.dtype, tensors, ctx.constants)
        centres, whitenings, perspectives, opacities, colours = tensors["splat_grads"].split(
            GRADIENT_COLUMNS, 1
        )
        if "perspectives" not in tensors:
            perspectives = None
        return centres, whitenings, perspectives, opacities[:, 0], colours, None, None, None


def _call(name: str, dtype: torch.dtype, tensors: dict[str, Tensor], constants: dict[str, Any]) -> int:
    """Run one of the kernel's functions; the result of those that have one."""
    view = _View(
        num_threads=torch.get_num_threads(),
        num_splats=len(tensors["centres"]),
        num_pairs=len(tensors.get("pair_splats", ())),
        min_alpha=MIN_ALPHA,
        min_transmittance=MIN_TRANSMITTANCE,
        **constants,
        **{key: tensor.data_ptr() for key, tensor in tensors.items()},
    )
    function = load_kernel().library[f"{name}_{str(dtype).removeprefix('torch.')}"]
    function.restype = ctypes.c_int64
    return function(ctypes.byref(view))
