"""`python -m benchmarks.kernels.perceptual`: LPIPS in training by autograd and with its gradient written out.

VGG in bfloat16 with random weights, which change no time. `step` is distance and gradient of one part of the
images; `error` compares both with float32; `layers` times each kind of kernel and each convolution beside the
ways it could be computed; `profile` lists the largest kernels of the written-out form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import lpips
import torch
import tyro
from torch import Tensor
from torch.nn import functional

from benchmarks.full_size.measure import measure
from lyra_ns.device import GIB
from lyra_ns.ops import lpips_triton
from lyra_ns.ops.lpips import LPIPS_EPSILON, PerceptualDistance

Row = dict[str, Any]
Part = Literal["step", "error", "layers", "profile"]

LAYERS = ((3, 64, 1), (64, 64, 1), (128, 128, 2), (256, 256, 4), (512, 512, 8), (512, 512, 16))
"""Channels in and out of a convolution, and by how much its map is smaller than the image."""
BLOCK_ENDS = ((64, 1), (128, 2), (256, 4), (512, 8))
"""Channels of a feature that is pooled, and by how much it is smaller than the image."""


def random_lpips(dtype: torch.dtype | None) -> PerceptualDistance:
    """LPIPS on VGG; equal weights in every call."""
    torch.manual_seed(0)
    return PerceptualDistance(lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).cuda(), "random", dtype)


def random_images(num_images: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Predicted and wanted images as training has them, the channels last in memory."""
    generator = torch.Generator("cuda").manual_seed(0)
    both = torch.rand(2, num_images, height, width, 3, generator=generator, device="cuda").movedim(-1, 2)
    return both[0], both[1]


def ways(perceptual: PerceptualDistance) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """Distance and gradient of a part: by autograd, and written out."""
    _, written_out = perceptual._ways(torch.device("cuda"))
    return {"autograd": perceptual._distance_and_gradient, "written out": written_out}


def step_rows(images: tuple[Tensor, Tensor], repetitions: int) -> Iterator[Row]:
    """Time and memory of each way, and the bytes that a pixel needs."""
    for name, way in ways(random_lpips(torch.bfloat16)).items():
        measured = measure(lambda way=way: way(*images), repetitions)
        per_pixel = measured.growth_gib * GIB / (images[0].numel() / 3)
        yield {"way": name, **measured.row(), "bytes_per_pixel": round(per_pixel)}


def error_rows(images: tuple[Tensor, Tensor], repetitions: int) -> Iterator[Row]:
    """Relative errors of both ways against float32, for one image."""
    pair = tuple(image[:1] for image in images)
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    exact = random_lpips(None)._distance_and_gradient(*pair)
    torch.backends.cudnn.allow_tf32 = before
    for name, way in ways(random_lpips(torch.bfloat16)).items():
        errors = [
            (found - truth).norm() / truth.norm() for found, truth in zip(way(*pair), exact, strict=True)
        ]
        yield {"way": name, "distance": f"{errors[0]:.2e}", "gradient": f"{errors[1]:.2e}"}


def layer_rows(images: tuple[Tensor, Tensor], repetitions: int) -> Iterator[Row]:
    """Convolutions of each size, with what follows them, then the kernels alone with their speed."""
    num_images, _, height, width = images[0].shape
    for channels_in, channels_out, stride in LAYERS:
        size = (num_images, height // stride, width // stride)
        yield from _convolution_rows(channels_in, channels_out, size, repetitions)
    # Three channels padded with zeros to the multiple that tensor cores like.
    yield from _convolution_rows(8, 64, (num_images, height, width), repetitions)
    for channels, stride in BLOCK_ENDS:
        yield from _kernel_rows(channels, (num_images, height // stride, width // stride), repetitions)


def _random_map(channels: int, size: tuple[int, int, int]) -> Tensor:
    num_images, height, width = size
    maps = torch.randn(num_images, height, width, channels, device="cuda", dtype=torch.bfloat16)
    return maps.movedim(-1, 1)


def _convolution_rows(
    channels_in: int, channels_out: int, size: tuple[int, int, int], repetitions: int
) -> Iterator[Row]:
    maps, gradient = _random_map(channels_in, size), _random_map(channels_out, size)
    weight = _random_map(channels_in, (channels_out, 3, 3)) / channels_in**0.5
    bias = torch.randn(channels_out, device="cuda")
    forms = {
        "alone": lambda: functional.conv2d(maps, weight, padding=1),
        "with our bias and ReLU": lambda: lpips_triton.rectify(
            functional.conv2d(maps, weight, padding=1), bias
        ),
        "with cuDNN's bias and ReLU": lambda: torch.cudnn_convolution_relu(
            maps, weight, bias.bfloat16(), (1, 1), (1, 1), (1, 1), 1
        ),
        "gradient as transposed convolution": lambda: functional.conv_transpose2d(
            gradient, weight, padding=1
        ),
        "gradient as backward": lambda: torch.ops.aten.convolution_backward(
            gradient, maps, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
        ),
    }
    for name, form in forms.items():
        row: Row = {"convolution": f"{channels_in} to {channels_out}", "size": size, "form": name}
        try:
            row["ms"] = round(measure(form, repetitions).milliseconds, 3)
        except RuntimeError as error:  # cuDNN has no engine for it: the other rows still count
            row["failed"] = str(error).splitlines()[0][:100]
        yield row


def _kernel_rows(channels: int, size: tuple[int, int, int], repetitions: int) -> Iterator[Row]:
    feature, wanted = _random_map(channels, size).relu(), _random_map(channels, size).relu()
    bias, pooled = torch.randn(channels, device="cuda"), functional.max_pool2d(feature, 2)
    moved = {
        "rectify": (lambda: lpips_triton.rectify(feature, bias), 2.0),
        "rectify_and_pool": (lambda: lpips_triton.rectify_and_pool(feature, bias), 2.25),
        "mask_gradient": (lambda: lpips_triton.mask_gradient(wanted, feature), 3.0),
        "distance_and_gradient": (
            lambda: lpips_triton.distance_and_gradient(feature, wanted, bias, LPIPS_EPSILON, pooled),
            3.25,
        ),
    }
    for name, (form, passes) in moved.items():
        time = measure(form, repetitions).milliseconds
        speed = passes * feature.nbytes / time / 1e6
        yield {"kernel": name, "channels": channels, "ms": round(time, 3), "GB/s": round(speed)}


def profile_rows(images: tuple[Tensor, Tensor], repetitions: int) -> Iterator[Row]:
    """GPU milliseconds of one part by kernel, the largest first."""
    way = ways(random_lpips(torch.bfloat16))["written out"]
    way(*images)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        way(*images)
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    for event in events[:20]:
        yield {
            "kernel": event.key[:90],
            "calls": event.count,
            "ms": round(event.self_device_time_total / 1e3, 3),
        }


def main(
    parts: tuple[Part, ...] = ("step", "error", "layers"),
    num_images: int = 4,
    height: int = 704,
    width: int = 1280,
    repetitions: int = 10,
) -> None:
    """Print the rows of `parts`, each as soon as it is known."""
    makers = {"step": step_rows, "error": error_rows, "layers": layer_rows, "profile": profile_rows}
    images = random_images(num_images, height, width)
    for part in parts:
        for row in makers[part](images, repetitions):
            print(part, *(f"{key}={value}" for key, value in row.items()), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    tyro.cli(main)
