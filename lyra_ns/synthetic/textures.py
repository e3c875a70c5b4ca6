"""The pictures that scenes are papered with: photographs, and patterns that are drawn.

By default the photographs are those of the scikit-image wheel, which every machine has. Scenes that train the
weights that ship take a pack instead (`textures_from_pack`), because photographs of scikit-image are what
those weights are judged by. Some photographs and kinds of pattern are kept for held-out scenes, so that a
decoder is tested on surfaces that it never saw. The stereo pair of scikit-image is left out: it is the
real-photograph evaluation. Patterns are drawn at twice their size and averaged down, so that no edge is a
staircase.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
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

from lyra_ns.data.picture_pack import Pack
from lyra_ns.draws import Draws, generator_for

Pattern = Callable[[Draws, Tensor, Tensor], Tensor]


def fractal_noise(
    draws: Draws, size: int, coarsest: int = 4, octaves: int = 5, persistence: float = 0.55
) -> Float[Tensor, "size size"]:
    """Value noise from 0 to 1 whose octaves halve in size, from `coarsest` cells a side."""
    total = torch.zeros(1, 1, coarsest, coarsest)
    for octave in range(octaves):
        cells = coarsest * 2**octave
        total = functional.interpolate(total, (cells, cells), mode="bilinear", align_corners=False)
        total += persistence**octave * torch.rand(1, 1, cells, cells, generator=draws.generator)
    total = functional.interpolate(total, (size, size), mode="bilinear", align_corners=False)
    low, high = total.min(), total.max()
    return ((total - low) / (high - low))[0, 0]


def draw_pattern(seed: int, index: int, size: int, held_out: bool) -> Float[Tensor, "3 size size"]:
    """Pattern number `index` of a split; the held-out split has kinds of its own and other draws."""
    kinds = HELD_OUT_PATTERNS if held_out else TRAINING_PATTERNS
    draws = Draws(generator_for("pattern", seed, index, "held-out" if held_out else "training"))
    fine = torch.arange(2 * size) / (2 * size)
    v, u = torch.meshgrid(fine, fine, indexing="ij")
    image = kinds[index % len(kinds)](draws, u, v)
    grain = 0.12 * (fractal_noise(draws, 2 * size, coarsest=8) - 0.5)
    return functional.avg_pool2d((image + grain).clamp(0, 1)[None], 2)[0]


def _colour(draws: Draws) -> Tensor:
    """A colour [3, 1, 1], seldom garish."""
    grey, spread = draws.uniform(0.15, 0.9), draws.choice([0.08, 0.18, 0.35])
    return torch.tensor([grey + draws.uniform(-spread, spread) for _ in range(3)]).clamp(0, 1)[:, None, None]


def _blend(draws: Draws, mask: Tensor) -> Tensor:
    """Two colours mixed by a mask from 0 to 1."""
    return _colour(draws) * mask + _colour(draws) * (1 - mask)


def _stripes(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Stripes in any direction, of unequal widths."""
    angle, frequency = draws.uniform(0.0, math.pi), draws.uniform(3.0, 9.0)
    along = frequency * (u * math.cos(angle) + v * math.sin(angle)) % 1
    return _blend(draws, (along < draws.uniform(0.25, 0.7)).float())


def _checks(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Chequered tiles with joints."""
    count = draws.integer(3, 7)
    parity = ((u * count).floor() + (v * count).floor()) % 2
    joint = ((u * count % 1 < 0.04) | (v * count % 1 < 0.04)).float()
    return _blend(draws, parity) * (1 - joint) + _colour(draws) * joint


def _bricks(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Bricks in running bond, each of its own shade."""
    rows = draws.integer(5, 10)
    columns = max(2, rows // 2)
    row = (v * rows).floor()
    along = u * columns + 0.5 * (row % 2)
    shade = torch.rand(rows, columns + 1, generator=draws.generator)[
        row.long(), along.floor().long() % columns
    ]
    joint = ((along % 1 < 0.05) | (v * rows % 1 < 0.1)).float()
    return (_colour(draws) * (0.7 + 0.5 * shade)) * (1 - joint) + _colour(draws) * joint


def _planks(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Boards with grain along u."""
    count = draws.integer(4, 9)
    board = (v * count).floor().long()
    shade = torch.rand(count, generator=draws.generator)[board]
    fibres = fractal_noise(draws, len(u), coarsest=8)[:, :: draws.choice([6, 12])]
    grain = functional.interpolate(fibres[None, None], u.shape, mode="bilinear", align_corners=False)[0, 0]
    joint = (v * count % 1 < 0.04).float()
    return _colour(draws) * (0.6 + 0.35 * shade + 0.35 * grain) * (1 - 0.6 * joint)


def _noise(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Soft spots of three colours, as plaster, earth or lichen."""
    first = fractal_noise(draws, len(u), coarsest=draws.integer(3, 8), persistence=draws.uniform(0.5, 0.8))
    second = fractal_noise(draws, len(u), coarsest=draws.integer(2, 6))
    return _blend(draws, first) * (0.6 + 0.4 * second) + 0.2 * _colour(draws) * second


def _gradient(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """A slow change between two colours."""
    angle = draws.uniform(0.0, 2.0 * math.pi)
    return _blend(draws, (0.5 + (u - 0.5) * math.cos(angle) + (v - 0.5) * math.sin(angle)).clamp(0, 1))


def _marble(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Veins: a sine bent by noise."""
    bent = fractal_noise(draws, len(u), coarsest=3)
    wave = torch.sin(2 * math.pi * (draws.uniform(1.0, 4.0) * u + draws.uniform(1.0, 4.0) * v + 2.5 * bent))
    return _blend(draws, wave.abs().sqrt())


def _dots(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Round dots, every other row shifted."""
    count, radius = draws.integer(4, 8), draws.uniform(0.2, 0.4)
    row = (v * count).floor()
    inside = ((u * count + 0.5 * (row % 2)) % 1 - 0.5).square() + (v * count % 1 - 0.5).square() < radius**2
    return _blend(draws, inside.float())


def _rings(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Growth rings about a point, bent by noise."""
    x, y = u - draws.uniform(0.0, 1.0), v - draws.uniform(0.0, 1.0)
    radius = (x.square() + y.square()).sqrt() + 0.08 * fractal_noise(draws, len(u), coarsest=3)
    return _blend(draws, 0.5 + 0.5 * torch.sin(2 * math.pi * draws.uniform(5.0, 12.0) * radius))


def _weave(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Cloth: bands of two directions, one over the other by turns."""
    count = draws.integer(4, 8)
    over = ((u * count).floor() + (v * count).floor()) % 2
    warp, weft = torch.sin(math.pi * (u * count % 1)), torch.sin(math.pi * (v * count % 1))
    return _colour(draws) * warp * over + _colour(draws) * weft * (1 - over) + 0.15


def _zigzags(draws: Draws, u: Tensor, v: Tensor) -> Tensor:
    """Zigzag bands with joints."""
    count = draws.uniform(3.0, 6.0)
    distances = []
    for shift in (0.0, 0.5):
        x = (u * count + shift) % 1 - 0.5
        y = (v * count / math.sqrt(3) + shift) % 1 - 0.5
        distances.append(x.square() + 3 * y.square())
    edge = (distances[0] - distances[1]).abs()
    joint = (edge < 0.05).float()
    return _blend(draws, (distances[0] < distances[1]).float()) * (1 - joint) + _colour(draws) * joint


TRAINING_PATTERNS: tuple[Pattern, ...] = (
    _stripes, _checks, _bricks, _planks, _noise, _marble, _gradient, _dots,
)  # fmt: skip
HELD_OUT_PATTERNS: tuple[Pattern, ...] = (
    _rings, _weave, _zigzags, _bricks, _noise, _planks, _marble, _stripes,
)  # fmt: skip


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
