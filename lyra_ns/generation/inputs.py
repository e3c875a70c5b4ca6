"""What a scene is made from, read and brought to one size: an image, a video, ViPE's output or a prompt.

All of a picture is in its clips: they get its aspect, and about the usual number of pixels.

Shape letters: S frames that were read, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from lyra_ns.cameras import crop_and_resize_intrinsics
from lyra_ns.data import images
from lyra_ns.data.images import check_size, finer_size, read_image
from lyra_ns.data.resize import resize_rgb
from lyra_ns.data.video import SUFFIXES as VIDEO_SUFFIXES
from lyra_ns.data.video import VideoSize, read_frames
from lyra_ns.depth.base import intrinsics_of_focal, intrinsics_of_fov
from lyra_ns.depth.vipe import ViPEClip, read_vipe, vipe_clips
from lyra_ns.generation.settings import GenerateSettings

MULTIPLE = 16
"""Pixels of a latent cell times those that decoders join: sides of clips are multiples of this."""
AREA_TOLERANCE = 1 / 8
"""Share by which the pixels of a clip may be more or fewer than usual: so much memory and time."""
LONGEST_ASPECT = 2.4
"""Clips are at most so many times as long as their other side (cinema): decoders know no longer ones."""


def size_of_aspect(aspect: float, area: float, multiple: int = MULTIPLE) -> tuple[int, int]:
    """(height, width) in multiples of `multiple` whose width is about `aspect` times its height.

    Of all sizes with `area` pixels, give or take AREA_TOLERANCE, the one closest in aspect, and of several
    the one closest in area; where none is so close in area, the closest in area. ValueError unless both are
    above 0.
    """
    if not (0 < aspect < math.inf and 0 < area < math.inf):
        raise ValueError(f"expected an aspect and an area above 0, found {aspect:g} and {area:g}")
    num_cells = area / multiple**2

    def off(rows: int, columns: int) -> tuple[float, float, float]:
        in_area = abs(rows * columns / num_cells - 1)
        in_aspect = abs(math.log(columns / rows / aspect))
        beyond = max(in_area - AREA_TOLERANCE, 0.0)
        # Rounded, or the same aspect of two sizes would differ in its last digits.
        return round(beyond, 9), round(in_aspect, 9), in_area

    longest = math.ceil(num_cells * (1 + AREA_TOLERANCE))
    sizes = ((rows, columns) for rows in range(1, longest + 1) for columns in _widths(rows, num_cells))
    rows, columns = min(sizes, key=lambda size: off(*size))
    return rows * multiple, columns * multiple


def _widths(rows: int, num_cells: float) -> range:
    """Numbers of columns that bring so many rows into the tolerated area, and the closest ones beside it."""
    fewest = math.floor(num_cells * (1 - AREA_TOLERANCE) / rows)
    return range(max(1, fewest), math.ceil(num_cells * (1 + AREA_TOLERANCE) / rows) + 1)


@dataclass(frozen=True)
class ClipSizes:
    """The sizes that clips may have, before it is known of what picture they are made."""

    usual: VideoSize
    """Size for which a decoder was trained, or that was asked for."""
    keeps_aspect: bool = False
    """Whether clips take the aspect of their picture, or all have the usual size."""

    def of_picture(self, height: int, width: int) -> VideoSize:
        """The size of the clips of a picture."""
        if not self.keeps_aspect:
            return self.usual
        aspect = min(max(width / height, 1 / LONGEST_ASPECT), LONGEST_ASPECT)
        rows, columns = size_of_aspect(aspect, self.usual.height * self.usual.width)
        return replace(self.usual, height=rows, width=columns)


InputKind = Literal["image", "video", "vipe", "latents", "prompt"]
MUCH_LOST = 0.25
"""Share of a picture that is cut away from which on it is said how to keep it."""


@dataclass(frozen=True)
class SourceFrames:
    """The pictures of a scene, cropped to the aspect of the clips and resized."""

    name: str
    """Name of the scene."""
    kind: InputKind
    """What it was read from."""
    rgb: UInt8[Tensor, "S 3 H W"]
    """One picture, or the frames of a video; at the size of the clips or a multiple of it."""
    intrinsics: Float[Tensor, " 4"] | None
    """fx, fy, cx, cy in pixels of `rgb`; None where nothing says them."""
    intrinsics_origin: str
    """Where they come from, in words; empty for None."""
    given_size: tuple[int, int]
    """Height and width before the crop."""
    clip_size: VideoSize
    """Frames, height and width of the clips that are made of them."""
    notes: tuple[str, ...] = ()
    """What was done to the input, in words for the user."""
    vipe: ViPEClip | None = None
    """Cameras, depth and moving things of the frames, if ViPE found them."""

    @property
    def is_video(self) -> bool:
        """Whether there is one frame for each frame of a clip, things moving."""
        return self.kind in ("video", "vipe") and len(self.rgb) > 1

    @property
    def first(self) -> Float[Tensor, "3 H W"]:
        """The first picture, colours 0 to 1."""
        return self.rgb[0].float() / 255


def kind_of(path: Path) -> InputKind:
    """What an input is, by its ending or what its folder holds; FileNotFoundError, ValueError if nothing."""
    if not path.exists():
        raise FileNotFoundError(
            f"input {path} does not exist: give an image, a video, ViPE's output or a folder of latents"
        )
    suffix = path.suffix.lower()
    if path.is_dir():
        is_vipe = any((path / "pose").glob("*.npz")) and not (path / "latent").is_dir()
        return "vipe" if is_vipe else "latents"
    if suffix in images.SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix == ".tar":
        return "latents"
    raise ValueError(
        f"input {path} must be an image ({', '.join(images.SUFFIXES)}), a video "
        f"({', '.join(VIDEO_SUFFIXES)}), ViPE's output folder or latents in the official layout, found "
        f"{suffix or 'no ending'}: convert it"
    )


def read_image_input(path: Path, settings: GenerateSettings, sizes: ClipSizes) -> SourceFrames:
    """The picture of a file."""
    image = read_image(path)
    return image_input(path.stem, "image", image.rgb, settings, sizes, image.notes, image.focal_share)


def image_input(
    name: str,
    kind: InputKind,
    rgb: UInt8[Tensor, "3 H W"],
    settings: GenerateSettings,
    sizes: ClipSizes,
    notes: Sequence[str] = (),
    focal_share: float | None = None,
) -> SourceFrames:
    """A picture that is in memory; `focal_share` is its focal length over its width, where that is known."""
    given = (rgb.shape[-2], rgb.shape[-1])
    return _fitted(name, kind, rgb[None], given, settings, sizes, notes, focal_share)


def read_video_input(path: Path, settings: GenerateSettings, sizes: ClipSizes) -> SourceFrames:
    """The frames of a video that a clip needs, or the first of them alone with --first-frame-only."""
    wanted = 1 if settings.first_frame_only else sizes.usual.num_frames

    def resized(rgb: Tensor) -> Tensor:
        height, width = rgb.shape[-2:]
        check_size(height, width, f"video {path}")
        return resize_rgb(rgb, *finer_size((height, width), sizes.of_picture(height, width)))

    frames = read_frames(path, wanted, settings.frames_from, settings.fps, resized)
    return _fitted(path.stem, "video", frames.rgb, frames.given_size, settings, sizes, frames.notes, None)


def read_vipe_input(root: Path, settings: GenerateSettings, sizes: ClipSizes) -> SourceFrames:
    """Frames, cameras and depth of a clip of ViPE's output, or of its first frame alone."""
    if settings.fps is not None:
        raise ValueError("--fps is for videos; ViPE's frames have poses of their own: leave it out")
    name = settings.clip or vipe_clips(root)[0]
    wanted = 1 if settings.first_frame_only else sizes.usual.num_frames
    clip = read_vipe(root, name, start=settings.frames_from, num_frames=wanted)
    given = (clip.cameras.height, clip.cameras.width)
    check_size(*given, f"ViPE's video {name}")
    size = sizes.of_picture(*given)
    target = finer_size(given, size)
    clip = clip.resized(*target)
    notes = (fitting_note(given, target, sizes),)
    intrinsics = clip.cameras.intrinsics[0]
    return SourceFrames(name, "vipe", clip.rgb, intrinsics, "ViPE", given, size, notes, clip)


def _fitted(
    name: str,
    kind: InputKind,
    rgb: UInt8[Tensor, "S 3 H W"],
    given: tuple[int, int],
    settings: GenerateSettings,
    sizes: ClipSizes,
    notes: Sequence[str],
    focal_share: float | None,
) -> SourceFrames:
    """The frames at the size at which they are kept; `given` is the size before any crop."""
    size = sizes.of_picture(*given)
    target = finer_size(given, size)
    intrinsics, origin = _given_intrinsics(settings, given, focal_share)
    if intrinsics is not None:
        intrinsics = crop_and_resize_intrinsics(intrinsics, given, target)
    notes = (*notes, fitting_note(given, target, sizes))
    return SourceFrames(name, kind, resize_rgb(rgb, *target), intrinsics, origin, given, size, notes)


def fitting_note(given: tuple[int, int], target: tuple[int, int], sizes: ClipSizes) -> str:
    """What crop and resize did, in words; sizes are (height, width)."""
    size = sizes.of_picture(*given)
    ratio = min(given[0] / target[0], given[1] / target[1])
    kept = (int(target[0] * ratio), int(target[1] * ratio))
    lost = 1 - kept[0] * kept[1] / (given[0] * given[1])
    cut = f"cropped in the middle to {kept[1]} x {kept[0]} ({lost:.0%} cut away)" if lost else "not cropped"
    more = "; it is smaller than the clips and was enlarged" if ratio < 1 else ""
    if sizes.keeps_aspect and max(given) > LONGEST_ASPECT * min(given):
        more += f"; clips get no longer than {LONGEST_ASPECT:g}:1, beyond which no decoder was trained"
    elif lost > MUCH_LOST:
        rows, columns = size_of_aspect(given[1] / given[0], size.height * size.width)
        more += f"; --height {rows} --width {columns} would keep it, at a size that models may not know"
    clips = f"clips of {size.width} x {size.height}"
    return f"{given[1]} x {given[0]} (width x height), {cut}, for {clips}{more}"


def _given_intrinsics(
    settings: GenerateSettings, given: tuple[int, int], focal_share: float | None
) -> tuple[Tensor | None, str]:
    """fx, fy, cx, cy of the whole picture and their origin: the user's, or the camera's own note."""
    height, width = given
    if settings.intrinsics is not None:
        fx, fy, cx, cy = settings.intrinsics
        if not (0 < fx < math.inf and 0 < fy < math.inf and 0 <= cx <= width and 0 <= cy <= height):
            raise ValueError(
                f"expected --intrinsics fx fy cx cy in pixels of the picture ({width} x {height}), found "
                f"{fx:g} {fy:g} {cx:g} {cy:g}: focal lengths above 0 and a centre inside"
            )
        return torch.tensor([fx, fy, cx, cy]), "given as --intrinsics"
    if settings.fov is not None:
        return intrinsics_of_fov(settings.fov, height, width), f"given as --fov {settings.fov:g}"
    if focal_share is not None:
        intrinsics = intrinsics_of_focal(focal_share * width, height, width)
        return intrinsics, "the focal length in the picture's EXIF"
    return None, ""


def masked_out(frames: SourceFrames) -> Bool[Tensor, "S H W"] | None:
    """Pixels that may be shown at other moments: all (None) but those that move."""
    if frames.vipe is None or frames.vipe.moving is None or frames.is_video:
        return None
    return ~frames.vipe.moving
