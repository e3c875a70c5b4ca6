"""`python -m benchmarks.kernels.cosmos_encoder`: ray maps encoded at the paper's size, ours beside diffusers.

The autoencoder has the sizes of CV8x8x8 and random weights: speed does not depend on their values, and errors
are compared between two executions of the same weights. Needs a CUDA device of 40 GB or more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks.environment import describe_environment
from benchmarks.full_size.inputs import Size, cameras
from benchmarks.full_size.measure import measure
from lyra_ns.cameras import CameraPath
from lyra_ns.codec import cosmos_encoder
from lyra_ns.codec.base import LatentStatistics
from lyra_ns.codec.cosmos import CosmosCodec, EncoderName
from lyra_ns.codec.cosmos_encoder import TemporalConvolution
from lyra_ns.data.atomic import write_whole
from lyra_ns.decoder.conditioning import ConditioningBuilder
from lyra_ns.device import GIB

Row = dict[str, Any]
Part = Literal["clip", "error", "scene", "profile", "layers"]

TEMPORAL_TILES = ((128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (128, 128, 64, 4, 3), (128, 128, 64, 8, 3))
"""Rows, columns, depth, warps and stages that `layers` times; the first is the kernel's own choice."""
KINDS = {
    "temporal convolution": ("_temporal_convolution",),
    "norm and SiLU": ("_span_moments", "_merge_moments", "_normalise"),
    "attention": ("_softmax_in_place", "_causal_attention"),
    "convolution": ("conv", "fprop", "implicit"),
    "matrix product": ("gemm", "nvjet", "cutlass"),
}
"""Parts of kernel names that tell the kind, the first that fits; all else moves or adds."""


def random_autoencoder() -> Any:
    """AutoencoderKLCosmos with the sizes of CV8x8x8 and random weights, which bfloat16 holds exactly."""
    from diffusers import AutoencoderKLCosmos

    torch.manual_seed(0)
    return AutoencoderKLCosmos().to(torch.bfloat16).float()


def codec_of(autoencoder: Any, encoder: EncoderName, device: str = "cuda") -> CosmosCodec:
    """A codec around it."""
    statistics = LatentStatistics(torch.zeros(16, 16), torch.ones(16, 16))
    return CosmosCodec(autoencoder, statistics, "cosmos:random", encoder).to(device)


def scene_cameras(size: Size) -> CameraPath:
    """The six official trajectories [1, 6, L] on the GPU, by their numbers."""
    return cameras(6, size, "cuda", order=range(6))


def cost(work: Callable[[], Any], repetitions: int, warm_up: int = 1) -> Row:
    """Median milliseconds of `work`, most memory in use meanwhile, and how much of it came on top, in GB."""
    measured = measure(work, repetitions, warm_up)
    return {
        "ms": round(measured.milliseconds, 3),
        "peak_gb": round(measured.peak_gib * GIB / 1e9, 2),
        "growth_gb": round(measured.growth_gib * GIB / 1e9, 2),
    }


def difference(found: Tensor, expected: Tensor) -> Row:
    """Largest and relative difference."""
    gap, wanted = (found - expected).double(), expected.double()
    return {
        "max_difference": gap.abs().max().item(),
        "relative_difference": (gap.norm() / wanted.norm()).item(),
    }


def clip_rows(autoencoder: Any, paths: CameraPath, repetitions: int) -> list[Row]:
    """One moment video encoded by each encoder, and how far the results are apart."""
    plain = codec_of(autoencoder, "plain")
    video = ConditioningBuilder(plain, 8, cache_folder=None)._ray_videos(paths[0, :1])[0]
    rows, latents = [], {}
    names: tuple[EncoderName, ...] = ("plain", "fast")
    for name in names:
        codec = codec_of(autoencoder, name)
        row = {"what": f"{name} encoder, one clip", **cost(partial(codec.encode, video), repetitions)}
        latents[name] = codec.encode(video)
        rows.append(row)
    rows[1] |= difference(latents["fast"], latents["plain"])
    rows.append(
        {"what": "fast encoder, one frame", **cost(lambda: codec.encode(video[:, :, :1]), repetitions)}
    )
    return rows


def error_rows(autoencoder: Any) -> list[Row]:
    """Errors in bfloat16 against diffusers in float32, on a clip small enough for that."""
    paths = scene_cameras(Size(17, 352, 640))
    exact_codec = codec_of(autoencoder, "plain", "cpu")
    exact_codec._autoencoder.to("cuda")  # float32 on the GPU, which the codec itself does not offer
    videos = ConditioningBuilder(exact_codec, 8, cache_folder=None)._ray_videos(paths[0, :1]).flatten(0, 1)
    videos = videos.bfloat16()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    exact = exact_codec.encode(videos)
    torch.backends.cudnn.allow_tf32 = before
    names: tuple[EncoderName, ...] = ("plain", "fast")
    return [
        {"what": f"{name} encoder in bfloat16 against float32"}
        | difference(codec_of(autoencoder, name).encode(videos), exact)
        for name in names
    ]


def scene_rows(autoencoder: Any, paths: CameraPath, repetitions: int) -> list[Row]:
    """Cameras of six trajectories to Plücker latents: each encoder, the maps alone, and both caches."""
    rows = []
    plain = codec_of(autoencoder, "plain")
    builder = ConditioningBuilder(plain, 8, views_at_once=1, max_cache_bytes=0, cache_folder=None)
    rows.append({"what": "plain encoder, six views", **cost(lambda: builder.build(paths), 1)})
    fast = codec_of(autoencoder, "fast")
    for views in (None, 1):
        uncached = ConditioningBuilder(fast, 8, views, max_cache_bytes=0, cache_folder=None)
        what = f"fast encoder, six views, {views or 'as many as fit'} at once"
        rows.append({"what": what, **cost(partial(uncached.build, paths), repetitions)})

    def maps() -> None:
        for view in range(paths.shape[1]):
            uncached._ray_videos(paths[0, view : view + 1])

    rows.append({"what": "ray maps alone, six views", **cost(maps, repetitions)})
    kept = ConditioningBuilder(fast, 8, cache_folder=None)
    rows.append({"what": "repeated cameras, memory", **cost(lambda: kept.build(paths), repetitions)})
    with TemporaryDirectory() as folder:

        def read() -> None:
            ConditioningBuilder(fast, 8, max_cache_bytes=0, cache_folder=Path(folder)).build(paths)

        rows.append({"what": "repeated cameras, disk", **cost(read, repetitions)})
    return rows


def profile_rows(autoencoder: Any, paths: CameraPath) -> list[Row]:
    """GPU milliseconds of one clip by kind of kernel, and the largest kernels by name."""
    codec = codec_of(autoencoder, "fast")
    video = ConditioningBuilder(codec, 8, cache_folder=None)._ray_videos(paths[0, :1])[0]
    codec.encode(video)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        codec.encode(video)
        torch.cuda.synchronize()
    kernels = [(event.key, event.self_device_time_total / 1e3) for event in profile.key_averages()]
    totals: dict[str, float] = {}
    for name, milliseconds in kernels:
        kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")
        totals[kind] = totals.get(kind, 0.0) + milliseconds
    rows = [{"what": f"all of kind {kind}", "ms": round(total, 3)} for kind, total in totals.items()]
    largest = sorted(kernels, key=lambda kernel: -kernel[1])[:16]
    return rows + [{"what": name[:90], "ms": round(milliseconds, 3)} for name, milliseconds in largest]


def layer_rows(repetitions: int) -> list[Row]:
    """Convolutions and attention at the encoder's two sizes, in the ways that could be taken."""
    rows = []
    for frames, height, width, channels in ((31, 176, 320, 256), (16, 88, 160, 512)):
        x = torch.randn(1, frames, height, width, channels, device="cuda", dtype=torch.bfloat16)
        label = f"{frames}x{height}x{width}x{channels}"
        products = 2 * x.numel() * channels
        rows += _temporal_rows(x, label, products * 3, repetitions)
        rows += _spatial_rows(x, label, products * 9, repetitions)
    rows += _attention_rows(repetitions)
    return rows


def _timed(what: str, work: Callable[[], Any], products: float, repetitions: int) -> Row:
    row = {"what": what, **cost(work, repetitions, warm_up=2)}
    return row | {"tflop_per_s": round(products / row["ms"] / 1e9, 1)}


def _temporal_rows(x: Tensor, label: str, products: float, repetitions: int) -> list[Row]:
    from lyra_ns.codec.cosmos_triton import Tile, temporal_convolution

    channels = x.shape[-1]
    weight = torch.randn(3, channels, channels, device="cuda", dtype=torch.bfloat16) / channels**0.5
    convolution = TemporalConvolution(weight, torch.zeros(channels, device="cuda"))
    flat = x.flatten(2, 3)

    def plain() -> Tensor:
        return cosmos_encoder.convolve_in_time(x, convolution, x, plain=True)

    rows = [_timed(f"temporal {label} torch", plain, products, repetitions)]
    for sizes in TEMPORAL_TILES:
        kernel = partial(temporal_convolution, flat, weight, convolution.bias, 1, flat, Tile(*sizes))
        rows.append(_timed(f"temporal {label} tile {sizes}", kernel, products, repetitions))
    return rows


def _spatial_rows(x: Tensor, label: str, products: float, repetitions: int) -> list[Row]:
    channels = x.shape[-1]
    weight = torch.randn(channels, channels, 3, 3, device="cuda", dtype=torch.bfloat16) / channels**0.5
    weight = weight.contiguous(memory_format=torch.channels_last)
    images = cosmos_encoder.images_of_frames(x)
    rows = []
    for search in (False, True):
        with torch.backends.cudnn.flags(enabled=True, benchmark=search):

            def convolve() -> Tensor:
                return torch.nn.functional.conv2d(images, weight, padding=1)

            rows.append(_timed(f"spatial {label} search={search}", convolve, products, repetitions))
    return rows


def _attention_rows(repetitions: int) -> list[Row]:
    projected = torch.randn(1, 4, 88, 160, 1536, device="cuda", dtype=torch.bfloat16)
    products = 4 * 4 * (88 * 160) ** 2 * 512
    return [
        _timed(
            f"spatial attention of 4 frames, {'torch' if plain else 'products'}",
            partial(cosmos_encoder.attend_in_space, projected, plain),
            products,
            repetitions,
        )
        for plain in (True, False)
    ]


def main(
    parts: tuple[Part, ...] = ("clip", "error", "scene", "profile", "layers"),
    repetitions: int = 3,
    num_frames: int = 121,
    height: int = 704,
    width: int = 1280,
    output: Path | None = None,
) -> None:
    """Print the rows of `parts`, and write them to the JSON file `output` if one is named."""
    autoencoder = random_autoencoder()
    size = Size(num_frames, height, width)
    paths = scene_cameras(size)
    makers: dict[Part, Callable[[], list[Row]]] = {
        "clip": lambda: clip_rows(autoencoder, paths, repetitions),
        "error": lambda: error_rows(autoencoder),
        "scene": lambda: scene_rows(autoencoder, paths, repetitions),
        "profile": lambda: profile_rows(autoencoder, paths),
        "layers": lambda: layer_rows(repetitions),
    }
    rows = {}
    for part in parts:
        rows[part] = makers[part]()
        for row in rows[part]:
            print(part, *(f"{key}={value}" for key, value in row.items()), flush=True)
        torch.cuda.empty_cache()
    if output is not None:
        result = {"environment": describe_environment("cuda"), "size": vars(size), "rows": rows}
        write_whole(output, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    tyro.cli(main)
