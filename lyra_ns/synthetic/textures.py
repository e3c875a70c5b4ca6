"""The pictures that scenes are papered with: photographs and drawn patterns.

By default the photographs are those of the scikit-image wheel, which every machine has. Scenes that train
the weights that ship take a pack instead (`textures_from_pack`), because photographs of scikit-image are what
those weights are judged by. Some photographs and kinds of pattern are kept for held-out scenes, so that a
decoder is tested on surfaces that it never saw. The stereo pair of scikit-image is left out: it is the
real-photograph evaluation.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from lyra_ns.picture_pack import Pack
from lyra_ns.synthetic.draws import Draws
from lyra_ns.synthetic.patterns import draw_pattern

SOURCE_SIZE = 256
"""Side of the pictures in a bank, in pixels."""
NUM_PATTERNS = {False: 48, True: 24}
"""Drawn patterns of the training and of the held-out split."""
MINIMUM_PHOTOGRAPHS = 4
"""Fewest photographs of a split that still give varied scenes."""
HELD_OUT_PACK_SHARE = 0.1
"""About that share of a pack's source files is kept for held-out scenes."""
TRAINING_PHOTOGRAPHS = (
    "astronaut.png", "brick.png", "camera.png", "grass.png", "hubble_deep_field.jpg", "ihc.png",
    "logo.png", "moon.png", "page.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
HELD_OUT_PHOTOGRAPHS = ("chelsea.png", "coffee.png", "coins.png", "gravel.png", "text.png")


@dataclass(frozen=True)
class TextureBank:
    """Square source pictures, each of the training or of the held-out split."""

    images: UInt8[Tensor, "S 3 size size"]
    """The pictures."""
    is_held_out: Bool[Tensor, " S"]
    """Whether a picture is kept for held-out scenes."""
    is_photograph: Bool[Tensor, " S"]
    """Whether it is a photograph, rather than a drawn pattern."""

    def indices(self, held_out: bool, photographs: bool) -> list[int]:
        """Numbers of the pictures of one split and kind."""
        chosen = (self.is_held_out == held_out) & (self.is_photograph == photographs)
        return chosen.nonzero().flatten().tolist()


@dataclass(frozen=True)
class TextureRecipe:
    """How a scene makes one of its textures out of a picture of the bank."""

    source: int
    """Number of the picture."""
    crop: tuple[float, float, float]
    """Left, top and side of the square that is cut out, as fractions of the picture."""
    colours: tuple[tuple[float, float, float], ...]
    """Rows of the 3 x 3 matrix that the colours are multiplied with."""
    lift: float = 0.0
    """What is added to the colours afterwards."""


def draw_recipe(draws: Draws, source: int, *, whole: bool = False, natural: bool = False) -> TextureRecipe:
    """A random crop (or the `whole` picture) in other colours (or tinted only, where `natural`)."""
    side = 1.0 if whole else draws.uniform(0.5, 1.0)
    crop = (draws.uniform(0.0, 1.0 - side), draws.uniform(0.0, 1.0 - side), side)
    order = list(range(3)) if natural or draws.chance(0.4) else draws.order(3)
    saturation, gain = draws.uniform(0.5, 1.1), draws.uniform(0.85, 1.25)
    tint = [gain * draws.uniform(0.88, 1.0) for _ in range(3)]
    rows = []
    for channel in range(3):
        weights = [(1 - saturation) / 3 * tint[channel]] * 3
        weights[order[channel]] += saturation * tint[channel]
        rows.append((weights[0], weights[1], weights[2]))
    return TextureRecipe(source, crop, tuple(rows))


def cook_textures(
    bank: TextureBank, recipes: list[TextureRecipe], size: int
) -> Float[Tensor, "N 3 size size"]:
    """The textures that the recipes describe, 0 to 1."""
    pictures = bank.images[[recipe.source for recipe in recipes]].float() / 255
    crops = torch.tensor([recipe.crop for recipe in recipes])
    centre = 2 * (crops[:, :2] + crops[:, 2:] / 2) - 1
    zero = torch.zeros_like(centre[:, 0])
    rows = [crops[:, 2], zero, centre[:, 0], zero, crops[:, 2], centre[:, 1]]
    grid = functional.affine_grid(
        torch.stack(rows, -1).unflatten(-1, (2, 3)), [len(recipes), 3, size, size], align_corners=False
    )
    cut = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    colours = torch.tensor([recipe.colours for recipe in recipes])
    lift = torch.tensor([recipe.lift for recipe in recipes])[:, None, None, None]
    return (torch.einsum("nij,njhw->nihw", colours, cut) + lift).clamp(0, 1)


def faded(recipe: TextureRecipe, contrast: float) -> TextureRecipe:
    """The recipe with `contrast` times the contrast, about a light grey."""
    rows = tuple((contrast * red, contrast * green, contrast * blue) for red, green, blue in recipe.colours)
    return replace(recipe, colours=rows, lift=0.55 * (1 - contrast))


@cache
def packaged_textures(seed: int = 0) -> TextureBank:
    """The default bank: photographs inside the installed scikit-image wheel, and drawn patterns.

    Never downloads. FileNotFoundError if scikit-image or too many of its pictures are missing.
    """
    folder = _photograph_folder()
    parts = [
        _read_photographs([folder / name for name in names if (folder / name).is_file()], folder)
        for names in (TRAINING_PHOTOGRAPHS, HELD_OUT_PHOTOGRAPHS)
    ]
    return _bank(parts[0], parts[1], seed)


def textures_from_folder(folder: Path, seed: int = 0, held_out_share: float = 0.3) -> TextureBank:
    """A bank of the png and jpg pictures of a folder; the last `held_out_share` by name are held out."""
    files = sorted(
        file for file in Path(folder).glob("*") if file.suffix.lower() in {".png", ".jpg", ".jpeg"}
    )
    num_training = len(files) - round(len(files) * held_out_share)
    training = _read_photographs(files[:num_training], folder)
    return _bank(training, _read_photographs(files[num_training:], folder), seed)


def textures_from_pack(pack: Pack, seed: int = 0, held_out_share: float = HELD_OUT_PACK_SHARE) -> TextureBank:
    """A bank of the textures of a pack and of two squares of each of its photographs.

    About `held_out_share` of the files that its pictures were made from are held out, all views of a file
    together; the file's hash decides, so that a pack that grows moves nothing from one split to the other.
    ValueError if a split has too few pictures.
    """
    splits: dict[bool, list[Tensor]] = {False: [], True: []}
    for name in pack.names("textures") + pack.names("photographs"):
        picture = torch.from_numpy(pack.read(name)).movedim(-1, 0)
        is_held_out = int(pack.source(name).file_sha256[:8], 16) < held_out_share * 2**32
        squares = _middle_square if name.startswith("textures/") else _squares
        splits[is_held_out].append(squares(picture))
    for split, name in ((False, "training"), (True, "held-out")):
        if len(splits[split]) < MINIMUM_PHOTOGRAPHS:
            raise ValueError(
                f"expected at least {MINIMUM_PHOTOGRAPHS} {name} pictures in {pack.path}, found "
                f"{len(splits[split])}: give a larger pack, a folder of pictures or a texture atlas"
            )
    return _bank(torch.cat(splits[False]), torch.cat(splits[True]), seed)


def load_textures(path: Path) -> TextureBank:
    """The bank of a pack (.zip), a folder of pictures or a texture atlas (.safetensors).

    FileNotFoundError or ValueError, in a sentence, for anything else.
    """
    if path.is_dir():
        return textures_from_folder(path)
    if path.suffix == ".zip":
        return textures_from_pack(Pack(path))
    if path.suffix == ".safetensors":
        return load_texture_atlas(path)
    raise ValueError(
        f"expected a pack of pictures (.zip), a folder or a texture atlas (.safetensors), found {path}"
    )


@contextmanager
def atlas_of(path: Path | None) -> Iterator[Path | None]:
    """The texture atlas of what `load_textures` takes, kept as long as the context; None stays None.

    Its pictures are decoded once, and many processes that load the atlas share its memory.
    """
    if path is None or (path.suffix == ".safetensors" and not path.is_dir()):
        yield path
        return
    bank = load_textures(path)
    with tempfile.TemporaryDirectory(prefix="lyra-textures-") as folder:
        atlas = Path(folder) / "atlas.safetensors"
        save_texture_atlas(atlas, bank)
        yield atlas


def save_texture_atlas(path: Path, bank: TextureBank | None = None) -> None:
    """Write a bank (the packaged one by default) as safetensors, for machines without scikit-image."""
    bank = bank or packaged_textures()
    tensors = {
        "images": bank.images,
        "is_held_out": bank.is_held_out.to(torch.uint8),
        "is_photograph": bank.is_photograph.to(torch.uint8),
    }
    partial = Path(f"{path}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, partial, metadata={"lyra_ns": json.dumps({"kind": "texture atlas", "version": 1})})
    partial.replace(path)


def load_texture_atlas(path: Path) -> TextureBank:
    """The bank that `save_texture_atlas` wrote."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a texture atlas at {path}: write it with save_texture_atlas")
    with safe_open(path, "pt") as file:
        if set(file.keys()) != {"images", "is_held_out", "is_photograph"}:
            raise ValueError(f"expected a texture atlas in {path}, found tensors {sorted(file.keys())}")
        images = file.get_tensor("images")
        held_out, photograph = (file.get_tensor(key).bool() for key in ("is_held_out", "is_photograph"))
    return TextureBank(images, held_out, photograph)


def _photograph_folder() -> Path:
    """Where the scikit-image wheel keeps its pictures."""
    try:
        import skimage.data
    except ImportError as error:
        raise FileNotFoundError(
            "the textures of the sample scenes come from scikit-image, which is not installed: "
            "install it, or give a texture atlas that save_texture_atlas wrote elsewhere"
        ) from error
    return Path(skimage.data.__file__).parent


def _read_photographs(files: list[Path], folder: Path) -> UInt8[Tensor, "S 3 size size"]:
    """Two square pictures of each photograph: its middle, and a closer look at one half of it."""
    if len(files) < MINIMUM_PHOTOGRAPHS:
        raise FileNotFoundError(
            f"expected at least {MINIMUM_PHOTOGRAPHS} photographs of each split in {folder}, "
            f"found {[file.name for file in files]}: give another folder or a texture atlas"
        )
    return torch.cat([_squares(_read_picture(file)) for file in files])


def _read_picture(file: Path) -> UInt8[Tensor, "3 H W"]:
    """A picture file on white."""
    try:
        with Image.open(file) as opened:
            rgba = opened.convert("RGBA")
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read as a picture ({error}): take it out of the folder"
        ) from error
    white = Image.new("RGBA", rgba.size, "white")
    return torch.from_numpy(numpy.array(Image.alpha_composite(white, rgba).convert("RGB"))).movedim(-1, 0)


def _squares(picture: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "2 3 size size"]:
    """The largest square in the middle of a photograph, and a square of 0.6 of its side at its left end."""
    height, width = picture.shape[-2:]
    close = int(0.6 * min(height, width))
    near = picture[..., (height - close) // 2 :, width // 8 :][..., :close, :close]
    return torch.cat([_middle_square(picture), _resized(near)])


def _middle_square(picture: UInt8[Tensor, "3 H W"]) -> UInt8[Tensor, "1 3 size size"]:
    """The largest square in the middle of a picture."""
    height, width = picture.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(picture[..., top : top + side, left : left + side])


def _resized(square: UInt8[Tensor, "3 side side"]) -> UInt8[Tensor, "1 3 size size"]:
    """A square at the size of the bank's pictures."""
    resized = functional.interpolate(square[None].float(), (SOURCE_SIZE, SOURCE_SIZE), mode="area")
    return resized.round().clamp(0, 255).to(torch.uint8)


def _bank(
    training: UInt8[Tensor, "S 3 size size"], held_out: UInt8[Tensor, "Q 3 size size"], seed: int
) -> TextureBank:
    """A bank of both splits' photographs, completed by drawn patterns."""
    images, is_held_out, is_photograph = [], [], []
    for photographs, split in ((training, False), (held_out, True)):
        patterns = [draw_pattern(seed, index, SOURCE_SIZE, split) for index in range(NUM_PATTERNS[split])]
        drawn = (torch.stack(patterns) * 255).round().to(torch.uint8)
        images += [photographs, drawn]
        is_held_out += [split] * (len(photographs) + len(drawn))
        is_photograph += [True] * len(photographs) + [False] * len(drawn)
    return TextureBank(torch.cat(images), torch.tensor(is_held_out), torch.tensor(is_photograph))
