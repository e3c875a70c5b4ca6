"""How close a decoder comes to clips of held-out photographs, beside its codec alone.

>>> codec = load_codec("linear", "cuda")
>>> clips = warped_clips(read_pack(Path("held_out.safetensors")), "cuda")  # once
>>> rows = evaluate_clips(decoder, codec, clips)  # for every checkpoint
>>> rows[-1]  # the mean

Needs torch, numpy, Pillow and the decoder's side of lyra_ns alone, on a CPU or on CUDA.

Shape letters: V paths, L frames, M frames judged, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.photographs.warped_clips import SETTINGS, WarpedClips, warped_clips
from lyra_ns.cameras import CameraPath
from lyra_ns.codec.base import VideoCodec
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.losses import ImageDistance
from lyra_ns.ops.lpips import load_lpips
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.rendering import render

FRAMES_JUDGED = (8, 16)
"""Frames of every path: its middle and its end."""
PRUNE_RATIO = 0.5
"""Share of Gaussians that is dropped, as in `ns-lyra generate`."""
MEAN = "mean"
"""What the row of means has in place of a photograph's name."""
MEASURES = ("codec_psnr", "codec_lpips", "psnr", "lpips", "input_psnr")
"""Numbers of a row."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """Frames of one photograph's clips: two of each path, and at last the photograph itself."""

    truth: Float[Tensor, "M H W 3"]
    """What the clips show."""
    coded: Float[Tensor, "M H W 3"]
    """What is left after the codec."""
    rendered: Float[Tensor, "M H W 3"]
    """What the Gaussians show."""


def evaluate_photographs(
    decoder: LatentGaussianDecoder,
    codec: VideoCodec,
    photographs: Mapping[str, bytes],
    device: torch.device | str,
) -> list[Row]:
    """Rows of `evaluate_clips` for packed photographs; decoder and codec must be on `device`."""
    return evaluate_clips(decoder, codec, warped_clips(photographs, device))


def evaluate_clips(
    decoder: LatentGaussianDecoder,
    codec: VideoCodec,
    clips: Mapping[str, WarpedClips],
    perceptual: ImageDistance | None = None,
) -> list[Row]:
    """One row of MEASURES per photograph, and their mean; all on the device of the clips."""
    perceptual = perceptual or load_lpips("alex")
    rows = [
        {"photograph": name, **scores(judged_frames(decoder, codec, clip), perceptual)}
        for name, clip in clips.items()
    ]
    means = {key: sum(row[key] for row in rows) / len(rows) for key in MEASURES}
    return [*rows, {"photograph": MEAN, **means}]


@torch.no_grad()
def judged_frames(decoder: LatentGaussianDecoder, codec: VideoCodec, clips: WarpedClips) -> Judged:
    """The frames that are compared, from latents of all clips of a photograph."""
    raw = codec.encode(clips.frames.float().transpose(1, 2) / 127.5 - 1)
    reconstruct = Reconstructor(decoder, codec, PRUNE_RATIO)
    gaussians = reconstruct(codec.to_diffusion(raw), clips.cameras)
    rendered = render(gaussians, _judged_cameras(clips.cameras), SETTINGS).rgb.clamp(0, 1)
    coded = codec.decode(raw).clamp(-1, 1).transpose(1, 2) / 2 + 0.5
    truth = clips.frames.float() / 255
    return Judged(_judged(truth).movedim(1, -1), _judged(coded).movedim(1, -1), rendered)


def _judged(frames: Float[Tensor, "V L *any"]) -> Float[Tensor, "M *any"]:
    """FRAMES_JUDGED of every path, and the first frame of the first."""
    return torch.cat([frames[:, FRAMES_JUDGED].flatten(0, 1), frames[:1, 0]])


def _judged_cameras(cameras: CameraPath) -> CameraPath:
    """Their cameras [M]."""
    return replace(
        cameras,
        camera_to_world=_judged(cameras.camera_to_world),
        intrinsics=_judged(cameras.intrinsics),
        times=_judged(cameras.times),
    )


@torch.no_grad()
def scores(judged: Judged, perceptual: ImageDistance) -> Row:
    """MEASURES of one photograph: of the codec and of the Gaussians on the paths, and at the photograph."""
    truth, coded, rendered = judged.truth[:-1], judged.coded[:-1], judged.rendered[:-1]
    return {
        "codec_psnr": pooled_psnr(coded, truth),
        "codec_lpips": mean_distance(perceptual, coded, truth),
        "psnr": pooled_psnr(rendered, truth),
        "lpips": mean_distance(perceptual, rendered, truth),
        "input_psnr": pooled_psnr(judged.rendered[-1:], judged.truth[-1:]),
    }


def pooled_psnr(rgb: Float[Tensor, "M H W 3"], truth: Float[Tensor, "M H W 3"]) -> float:
    """PSNR in dB of the mean squared error over all images together."""
    return float(-10 * (rgb - truth).square().mean().log10())


def mean_distance(
    perceptual: ImageDistance, rgb: Float[Tensor, "M H W 3"], truth: Float[Tensor, "M H W 3"]
) -> float:
    """Mean perceptual distance of the images."""
    return float(perceptual(rgb.movedim(-1, 1), truth.movedim(-1, 1)).mean())
