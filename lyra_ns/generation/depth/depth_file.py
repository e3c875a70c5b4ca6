"""Depth that the user has already: .npy, .npz, 16-bit PNG or OpenEXR, for the picture as it is given.

Shape letters: H W image.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lyra_ns.data.exr import read_exr

SUFFIXES = (".npy", ".npz", ".png", ".exr")
"""Kinds of files that are read."""
METRES_PER_PNG_STEP = 1e-3
"""PNG files hold whole millimetres, as depth cameras write them."""
NPZ_NAME = "depth"
"""Array that is read of an .npz with several."""


def read_depth_file(path: Path) -> Float[Tensor, "H W"]:
    """z-depth of a file, 0 where it is not positive or not finite.

    .npy and .npz hold one array of numbers (of several the one called depth), .png 16-bit millimetres, .exr
    the channel Z or the only one. FileNotFoundError; ValueError for other files, shapes, or no depth at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f"depth {path} does not exist: give a file, or choose an estimator")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"depth {path} must end in {', '.join(SUFFIXES)}, found {path.suffix!r}: convert it")
    try:
        values = _read(path)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, UnidentifiedImageError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"depth {path} must hold one array of depths, found {reason}: write it again"
        ) from error
    values = np.squeeze(values)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(
            f"depth {path} must hold numbers [height, width], found {values.dtype} {list(values.shape)}: "
            "write one depth for each pixel"
        )
    depth = torch.from_numpy(values.astype(np.float32))
    depth = torch.where(depth.isfinite() & (depth > 0), depth, 0.0)
    if not bool((depth > 0).any()):
        raise ValueError(f"depth {path} must be positive somewhere, found none: write distances in front")
    return depth


def _read(path: Path) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix == ".exr":
        return read_exr(path.read_bytes())
    if suffix == ".png":
        return _read_png(path)
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content
    with content:
        if len(content.files) != 1 and NPZ_NAME not in content.files:
            raise ValueError(f"the arrays {', '.join(content.files) or '(none)'}, none of them called depth")
        return content[NPZ_NAME if NPZ_NAME in content.files else content.files[0]]


def _read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        values = np.asarray(image)
        if not image.mode.startswith("I"):
            raise ValueError(f"a PNG of mode {image.mode} where 16-bit grey is meant")
    return values.astype(np.float32) * METRES_PER_PNG_STEP
