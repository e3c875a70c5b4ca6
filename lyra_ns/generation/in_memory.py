"""`generate` as a call from Python: a picture in memory or a path in, tensors out, files only when asked for.

>>> import lyra_ns
>>> made = lyra_ns.generate("photo.jpg", teacher="warp", seed=0)
>>> made.gaussians.save("scene.ply")

Shape letters: V trajectories, L frames, C T h w latent, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.gaussians import Gaussians
from lyra_ns.generation.outputs import Instant
from lyra_ns.generation.run import GeneratedScene
from lyra_ns.generation.run import generate as generate_files
from lyra_ns.generation.settings import GenerateSettings
from lyra_ns.scene import in_frame_of_first

Picture = str | Path | Image.Image | NDArray[Any] | Tensor
"""A path, a picture of Pillow, an array [H, W], [H, W, 3 or 4] or a tensor [3, H, W]; numbers are 8 bits, or
floats from 0 to 1."""


@dataclass(frozen=True)
class Generated:
    """A scene that was made, and what it was made from; cameras and Gaussians share one frame."""

    gaussians: Gaussians
    """The scene, at its first moment if it moves."""
    latents: Float[Tensor, "V C T h w"]
    """Latents of the clips in diffusion space, as the decoder read them."""
    cameras: CameraPath
    """Cameras [V, L] of the clips, in the frame of the first camera of the first trajectory."""
    videos: tuple[UInt8[Tensor, "L 3 H W"], ...]
    """Frames of the clips; empty where the input was latents without frames."""
    instants: tuple[Instant, ...]
    """The scene at each of its moments; one for a static scene."""
    record: dict[str, Any]
    """How it was made: every setting, and what was found or drawn on the way."""
    folder: Path | None
    """Where the files are; None if none were asked for."""


def generate(
    image: Picture | None = None, out: str | Path | None = None, *, progress: bool = False, **settings: Any
) -> Generated:
    """A scene of Gaussians from a picture, a video, ViPE's output or latents, or a `prompt` alone.

    With `out` all files of `ns-lyra generate` are written there too, whole or not at all. `settings` are
    those of `GenerateSettings` by name; strings are taken as paths where paths are meant. `progress` prints
    the stages. A picture in memory is a scene called `picture` (the seed draws by seed and name); it lies,
    with what must be kept until a run is done, in a temporary folder that is gone at the end. ValueError,
    FileNotFoundError, FileExistsError, NotADirectoryError or ModuleNotFoundError, in one sentence, for what
    no scene can be made of; TypeError for a setting that does not exist.
    """
    if settings.get("dry_run"):
        raise ValueError("a dry run makes pictures and no scene: run `ns-lyra generate --dry-run`")
    with TemporaryDirectory(prefix="lyra_ns_") as temporary:
        chosen = _settings(settings)
        chosen["input"] = None if image is None else _path_of(image, Path(temporary))
        chosen["output"] = Path(temporary) / "scene" if out is None else Path(out).expanduser()
        console = None if progress else Console(quiet=True)
        scene = generate_files(GenerateSettings(**chosen), console, writes_files=out is not None)
    return _result(scene, out is not None)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with paths for strings and tuples for lists; TypeError for what is none of them."""
    kinds = {field.name: str(field.type) for field in fields(GenerateSettings)}
    own = kinds.keys() - {"input", "output"}
    if unknown := sorted(given.keys() - own):
        raise TypeError(
            f"generate() has no setting {', '.join(unknown)}: the settings are {', '.join(sorted(own))}"
        )
    return {name: _as_kind(value, kinds[name]) for name, value in given.items()}


def _as_kind(value: Any, kind: str) -> Any:
    """A value of the type that a setting's annotation names."""
    if "tuple[" in kind and value is not None:
        return (value,) if isinstance(value, (str, int, float)) else tuple(value)
    if kind.startswith("Path") and value is not None:
        return Path(value).expanduser()
    return str(value) if isinstance(value, Path) else value


def _path_of(image: Picture, temporary: Path) -> Path:
    """Where the picture lies; one in memory is written down without loss, with the camera's notes."""
    if isinstance(image, (str, Path)):
        return Path(image).expanduser()
    path = temporary / "picture.png"
    picture = image if isinstance(image, Image.Image) else Image.fromarray(_pixels(image))
    # A TIFF's or JPEG's own modes are not all those of PNG.
    kept = picture if picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else picture.convert("RGB")
    kept.save(path, exif=picture.getexif())
    return path


def _pixels(image: NDArray[Any] | Tensor) -> UInt8[np.ndarray, "H W *colours"]:
    """The picture in 8 bits, colours last; ValueError for other shapes and numbers."""
    if isinstance(image, Tensor):
        values = image.detach().cpu().numpy()
        values = values.transpose(1, 2, 0) if values.ndim == 3 and values.shape[0] in (3, 4) else values
    else:
        values = image
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or not values.size:
        raise ValueError(
            "expected a picture as an array [H, W], [H, W, 3] or [H, W, 4] or as a tensor [3, H, W], found "
            f"shape {tuple(image.shape)}: reorder its axes"
        )
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"expected a picture of 8 bits or of floats from 0 to 1, found {values.dtype}: convert it"
        )
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"expected a picture of floats from 0 to 1, found {values.min():g} to {values.max():g}: scale "
            "it, or give 8-bit numbers"
        )
    return (values * 255).round().astype(np.uint8)


def _result(scene: GeneratedScene, has_files: bool) -> Generated:
    given = scene.given
    assert given is not None
    return Generated(
        gaussians=scene.instants[0].gaussians,
        latents=given.z,
        cameras=in_frame_of_first(given.cameras),
        videos=tuple(given.videos),
        instants=scene.instants,
        record=scene.record,
        folder=scene.folder if has_files else None,
    )
