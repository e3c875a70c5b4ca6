"""Latent files: the official pickle, read without running anything in it, and our own safetensors."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lyra_ns.data.atomic import Source, write_whole

LatentFormat = Literal["pkl", "safetensors"]
SAFETENSORS_KEY = "z"
LEGACY_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""First object in a file of torch.save before its zip format."""
NUMPY_CORE = "numpy.core" if np.__version__.startswith("1.") else "numpy._core"
NUMPY_NAMES = {
    ("multiarray", "_reconstruct"),
    ("numeric", "_frombuffer"),
}
TORCH_NAMES = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"}
STORAGE_NAMES = {"FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage", "ByteStorage"}


class CodeInPickleError(ValueError):
    """A pickle asks for something other than a tensor or an array, so it was not read."""


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler that can name numpy arrays and torch tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """The object `module.name` if it is needed to rebuild a tensor; CodeInPickleError otherwise."""
        package, _, inner = module.rpartition(".")
        allowed = (
            (package in ("numpy.core", "numpy._core") and (inner, name) in NUMPY_NAMES)
            or (module == "numpy" and name in ("ndarray", "dtype"))
            or (module == "numpy.dtypes" and name.endswith("DType"))
            or (module == "torch._utils" and name in TORCH_NAMES)
            or (module in ("torch", "torch.storage") and name in STORAGE_NAMES | {"UntypedStorage"})
            or (module, name) == ("_codecs", "encode")
        )
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if not allowed:
            raise CodeInPickleError(f"{module}.{name}")
        if package in ("numpy.core", "numpy._core"):
            # numpy 2 renamed the package; a file may come from either side.
            module = f"{NUMPY_CORE}.{inner}"
        return super().find_class(module, name)


_TENSORS_ONLY = SimpleNamespace(
    __name__="tensors_only",
    Unpickler=_TensorUnpickler,
    load=lambda file, **options: _TensorUnpickler(file, **options).load(),
)
"""Stands in for the pickle module inside torch.load."""


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
    except (EOFError, KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    except (pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, OSError) as error:
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
    buffer = io.BytesIO(content)
    if zipfile.is_zipfile(buffer):
        with zipfile.ZipFile(buffer) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CodeInPickleError("a TorchScript program")
    else:
        buffer.seek(0)
        first = _TensorUnpickler(buffer).load()
        if not (isinstance(first, int) and first == LEGACY_TORCH_MAGIC):
            return first
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", pickle_module=_TENSORS_ONLY, weights_only=False)


def _damaged(path: Source, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(
        f"latent {path} must be a file of torch.save or safetensors, found one that is cut short or of "
        f"another kind ({reason}): copy or write it again"
    )


def _checked(values: Any, path: Source) -> Tensor:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        values = torch.from_numpy(np.ascontiguousarray(values))
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
