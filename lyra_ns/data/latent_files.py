"""Latent files: the official pickle of torch.save, read without running anything in it, and safetensors."""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import threading
import zipfile
import zlib
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.serialization import safe_globals

from lyra_ns.data.atomic import Source, write_whole

LatentFormat = Literal["pkl", "safetensors"]
SAFETENSORS_KEY = "z"
OLDER_FORM = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
"""Start of a file of torch.save before its zip format: a number, pickled."""
FLOAT_KINDS = {"f2", "f4", "f8"}
"""numpy's names of the kinds of numbers that latents may have."""
DAMAGES = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError),
    *(ValueError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error, SafetensorError),
)
"""What reading a damaged file may raise; RecursionError and NotImplementedError are RuntimeErrors."""


class CodeInPickleError(ValueError):
    """A pickle asks for something other than a tensor or an array, so it was not read."""


class _StoredKind:
    """Stands for numpy's dtype in a pickle."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name, self.byte_order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes the byte order, as numpy's would."""
        self.byte_order = state[1]

    def dtype(self) -> np.dtype[Any]:
        """The kind of numbers; ValueError for any but floats."""
        if self.name not in FLOAT_KINDS:
            raise ValueError(f"an array of {self.name!r}, not of floats")
        return np.dtype(self.byte_order + self.name)


class _StoredArray:
    """Stands for numpy's array in a pickle, whose own would allocate what the file declares."""

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes the content, as numpy's would; ValueError if shape and kind promise another length."""
        _, shape, kind, is_fortran, content = state
        dtype = kind.dtype()
        if math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
        self.values = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


STAND_INS: list[Any] = [
    (_StoredArray, "numpy.core.multiarray._reconstruct"),
    (_StoredArray, "numpy._core.multiarray._reconstruct"),
    (_StoredArray, "numpy.ndarray"),
    (_StoredKind, "numpy.dtype"),
]
"""What torch's unpickler may make beside tensors, by the name in the file; numpy 2 renamed its package."""
ONE_LOAD = threading.Lock()
"""Held while the stand-ins are allowed: torch keeps one list for the process."""


def read_latents(path: Source) -> Float[Tensor, "C T h w"]:
    """Latents in diffusion space as float32, a leading axis of size 1 removed.

    FileNotFoundError when missing; ValueError when damaged, of another shape, not finite, or when a pickle
    has code inside (which is never run).
    """
    if not path.is_file():
        raise FileNotFoundError(f"latent {path} does not exist: write it, or leave the clip out")
    content = path.read_bytes()
    try:
        values = _read_safetensors(content) if path.suffix == ".safetensors" else _read_pickle(content)
    except CodeInPickleError as error:
        raise ValueError(
            f"latent {path} must hold only an array, found a pickle that calls {error}; it was not run: "
            "do not trust this file, get the latents from their source again"
        ) from error
    except DAMAGES as error:
        raise _damaged(path, error) from error
    return _checked(values, path)


def latent_bytes(z: Float[Tensor, "C T h w"], file_format: LatentFormat) -> bytes:
    """A latent file: `pkl` is torch.save of a float32 ndarray [1, C, T, h, w], as official."""
    z = z.detach().cpu()
    if file_format == "safetensors":
        return save({SAFETENSORS_KEY: z.contiguous()})
    buffer = io.BytesIO()
    torch.save(z[None].float().numpy(), buffer)
    return buffer.getvalue()


def write_latents(path: Path, z: Float[Tensor, "C T h w"]) -> None:
    """Writes latents whole; the suffix (.pkl or .safetensors) chooses the format."""
    if path.suffix not in (".pkl", ".safetensors"):
        raise ValueError(f"latent {path} must end in .pkl or .safetensors, found {path.suffix!r}: rename it")
    write_whole(path, latent_bytes(z, "pkl" if path.suffix == ".pkl" else "safetensors"))


def _read_safetensors(content: bytes) -> Any:
    return load(content)[SAFETENSORS_KEY]


def _read_pickle(content: bytes) -> Any:
    if zipfile.is_zipfile(io.BytesIO(content)):
        _check_archive(content)
    elif not content.startswith(OLDER_FORM):
        raise ValueError("neither form of torch.save")
    try:
        with ONE_LOAD, safe_globals(STAND_INS):
            values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise CodeInPickleError(foreign[1]) from error
        # Before the reason stands torch's advice to trust the file.
        raise ValueError([line for line in str(error).splitlines() if line][:2][-1]) from error
    if isinstance(values, _StoredArray):
        return values.values
    if isinstance(values, Tensor) and values.numel() > len(content):
        raise ValueError(f"a tensor of shape {tuple(values.shape)} in {len(content)} bytes")
    return values


def _check_archive(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise CodeInPickleError("a TorchScript program")
        # torch.save does not compress, so that this only keeps bombs from going off.
        if sum(entry.file_size for entry in archive.infolist()) > len(content):
            raise ValueError("members that are larger than the file")


def _damaged(path: Source, error: BaseException) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(
        f"latent {path} must be a file of torch.save or safetensors, found one that is cut short or of "
        f"another kind ({reason}): copy or write it again"
    )


def _checked(values: Any, path: Source) -> Tensor:
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise ValueError(
            f"latent {path} must hold an array of floats, found {type(values).__name__}: write it again"
        )
    if values.ndim == 5 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 4:
        raise ValueError(
            f"latent {path} must have shape [C, T, h, w] or [1, C, T, h, w], found {tuple(values.shape)}: "
            "store one clip per file"
        )
    values = values.float()
    if not values.isfinite().all():
        raise ValueError(f"latent {path} must be finite, found NaN or infinity: generate the clip again")
    return values
