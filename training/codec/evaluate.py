"""Judges a learned codec by held-out photographs in motion: `python -m training.codec.evaluate`.

Each photograph becomes a clip of 17 frames that zooms in by 1.2 % and pans, 3 to 4 pixels a frame
at 256 x 160. PSNR over the clip and over its first frame, learned and linear, and what ray maps lose.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lyra_ns.codec.base import VideoCodec
from lyra_ns.codec.learned import load_learned_codec
from lyra_ns.codec.linear import load_linear_codec
from training.codec.clips import ClipShape, Draws, moving_rays

SIZES = ((160, 256), (320, 512))
"""Height and width of the clips."""
NUM_FRAMES = 17
ZOOM = 0.012
"""Share of the picture's size by which the window shrinks each frame."""
PAN = 0.8
"""Where the window lies in the room that shrinking leaves: 0 left, 1 right."""
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
SKIMAGE_PICTURES = ("astronaut", "coffee", "rocket", "stereo_motorcycle", "chelsea")
RAY_CLIPS = 8


def evaluate_codec(
    codec: VideoCodec, pictures: dict[str, Image.Image], device: torch.device
) -> dict[str, Any]:
    """PSNR of every held-out clip and of its first frame, means, errors of ray maps; linear beside it."""
    linear = load_linear_codec().to(device)
    result: dict[str, Any] = {"digest": codec.spec.digest, "linear_digest": linear.spec.digest}
    for height, width in SIZES:
        rows = {}
        for name, picture in pictures.items():
            video = moving_window(picture, height, width).to(device)
            rows[name] = {"learned": _quality(codec, video), "linear": _quality(linear, video)}
        result[f"{width}x{height}"] = {"mean": _mean_row(rows), "pictures": rows}
    result["ray_maps"] = {"learned": _ray_errors(codec, device), "linear": _ray_errors(linear, device)}
    return result


def moving_window(picture: Image.Image, height: int, width: int) -> Float[Tensor, "1 3 L H W"]:
    """The held-out clip of one photograph, colours from -1 to 1."""
    pixels = np.asarray(picture.convert("RGB"))
    ratio = min(pixels.shape[0] / height, pixels.shape[1] / width)
    rows, columns = int(height * ratio), int(width * ratio)
    top, left = (pixels.shape[0] - rows) // 2, (pixels.shape[1] - columns) // 2
    pixels = pixels[top : top + rows, left : left + columns]
    frames = []
    for frame in range(NUM_FRAMES):
        share = 1 - ZOOM * frame
        window_rows, window_columns = int(rows * share), int(columns * share)
        top, left = (rows - window_rows) // 2, int((columns - window_columns) * PAN)
        window = pixels[top : top + window_rows, left : left + window_columns]
        small = Image.fromarray(window).resize((width, height), Image.Resampling.LANCZOS)
        frames.append(np.array(small))
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def read_held_out(location: str) -> dict[str, Image.Image]:
    """Photographs of a folder, a zip, an npz of file bytes, or `skimage`; ValueError if there are none."""
    if location == "skimage":
        return {name: Image.open(io.BytesIO(content)) for name, content in _skimage_files().items()}
    path = Path(location)
    if path.is_dir():
        files = {
            p.stem: p.read_bytes() for p in sorted(path.iterdir()) if p.suffix.lower() in PICTURE_ENDINGS
        }
    elif path.suffix == ".npz" and path.is_file():
        with np.load(path) as archive:
            files = {name: archive[name].tobytes() for name in archive.files}
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith(PICTURE_ENDINGS)]
            files = {Path(name).stem: archive.read(name) for name in sorted(names)}
    else:
        raise ValueError(
            f"held-out photographs must be a folder, a zip, an npz or skimage, found {location!r}"
        )
    if not files:
        raise ValueError(f"{location} holds no photographs: expected files ending in {PICTURE_ENDINGS}")
    return {name: Image.open(io.BytesIO(content)) for name, content in files.items()}


def _skimage_files() -> dict[str, bytes]:
    from skimage import data

    files = {}
    for name in SKIMAGE_PICTURES:
        pixels = getattr(data, name)()
        buffer = io.BytesIO()
        Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).save(buffer, "PNG")
        files[name] = buffer.getvalue()
    return files


def _quality(codec: VideoCodec, video: Float[Tensor, "1 3 L H W"]) -> dict[str, float]:
    decoded = codec.decode(codec.encode(video)).clamp(-1, 1)
    error = ((decoded - video) / 2).square()
    return {"clip": _decibels(error), "first_frame": _decibels(error[:, :, 0])}


def _decibels(error: Tensor) -> float:
    return round(-10 * math.log10(max(float(error.mean()), 1e-12)), 3)


def _mean_row(rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        codec: {
            part: round(sum(row[codec][part] for row in rows.values()) / len(rows), 3)
            for part in ("clip", "first_frame")
        }
        for codec in ("learned", "linear")
    }


def _ray_errors(codec: VideoCodec, device: torch.device) -> dict[str, float]:
    """Root mean squared error over the root mean square, of moments and of directions."""
    rays = moving_rays(ClipShape(RAY_CLIPS, NUM_FRAMES, *SIZES[0]), Draws(0, device))
    decoded = codec.decode(codec.encode(rays))
    errors = (decoded - rays).square().mean((1, 2, 3, 4)) / rays.square().mean((1, 2, 3, 4)).clamp(min=1e-12)
    moments, directions = errors.sqrt().chunk(2)
    return {"moments": round(float(moments.mean()), 5), "directions": round(float(directions.mean()), 5)}


def main(arguments: list[str] | None = None) -> None:
    """Prints the judgement as JSON, and writes it where --output says."""
    parser = argparse.ArgumentParser(prog="python -m training.codec.evaluate", description=__doc__)
    parser.add_argument("--codec", type=Path, required=True, help="file of a learned codec")
    parser.add_argument("--held-out", default="skimage", help="folder, zip or npz of photographs, or skimage")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    codec = load_learned_codec(options.codec, device)
    text = json.dumps(evaluate_codec(codec, read_held_out(options.held_out), device), indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
