"""One picture per prompt, by any text-to-image pipeline of diffusers.

Shape letters: H W image.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from lyra_ns.data.resize import resize_rgb
from lyra_ns.device import MemoryName
from lyra_ns.gen3c.inputs import UnsafeContent
from lyra_ns.pretrained import default_dtype, load_pretrained, place

logger = logging.getLogger(__name__)

FLUX = "black-forest-labs/FLUX.1-dev"
"""The model of the official data; its licence is not commercial, and the hub wants it accepted first."""
SIZE_STEP = 16
"""Height and width that a model is asked for are multiples of this."""
FALLBACK_SIDE = 1024
"""Side of the square that a model is taken to be made for if its configuration does not tell."""
LARGEST_ASPECT = 4.0
"""A longer side of more than so many shorter ones is no picture that these models know."""


@dataclass(frozen=True)
class TextToImage:
    """A picture for a prompt: made at the size the model is made for, then cropped and resized."""

    pipeline: Any
    """A pipeline of diffusers that takes prompt, height, width and generator."""
    name: str
    """What it is called in records: the hub name or folder of its weights."""
    native_pixels: int
    """Area in pixels of the pictures that the model is made for."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the pipeline, such as num_inference_steps and guidance_scale."""

    @torch.no_grad()
    def __call__(self, prompt: str, height: int, width: int, seed: int) -> UInt8[Tensor, "3 H W"]:
        """The picture, on the CPU; the same for the same arguments, whatever was made before.

        ValueError for an empty prompt, a size that is none, or a pipeline that gives no picture;
        UnsafeContent if the pipeline's own safety checker refuses what was made.
        """
        if not prompt.strip():
            raise ValueError("expected a prompt that says what the picture shows, found an empty one")
        step = math.lcm(SIZE_STEP, int(getattr(self.pipeline, "vae_scale_factor", 1)))
        made_height, made_width = size_to_make(height, width, self.native_pixels, step)
        result = self.pipeline(
            prompt=prompt,
            height=made_height,
            width=made_width,
            generator=torch.Generator().manual_seed(seed),
            output_type="pil",
            **self.options,
        )
        return resize_rgb(_picture(result, prompt, self.name)[None], height, width)[0]


def size_to_make(height: int, width: int, native_pixels: int, step: int = SIZE_STEP) -> tuple[int, int]:
    """(height, width) in multiples of `step`, about `native_pixels` in area, of the aspect of the target.

    ValueError for a size that is none, or too long for pictures.
    """
    if min(height, width) < 1 or max(height, width) > LARGEST_ASPECT * min(height, width):
        raise ValueError(
            f"expected a picture whose sides differ by at most {LARGEST_ASPECT:g} times, found "
            f"{height}x{width} (height x width): choose another size"
        )
    scale = math.sqrt(native_pixels / (height * width))
    made_height, made_width = (max(1, round(side * scale / step)) * step for side in (height, width))
    return made_height, made_width


def load_text_to_image(
    model: str = FLUX,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: MemoryName = "fast",
    options: Mapping[str, Any] | None = None,
) -> TextToImage:
    """The text-to-image pipeline of a folder or hub id, ready to make pictures on `device`.

    `dtype` defaults to bfloat16 on a GPU and float32 on a CPU. FileNotFoundError if the weights are not
    there, ModuleNotFoundError if they need a package that is missing, ValueError if they make no pictures
    from texts or an option is none of theirs.
    """

    def load(location: str) -> Any:
        return _pipeline(location, default_dtype(device, dtype))

    pipeline = load_pretrained(load, model, "text to image")
    options = dict(options or {})
    _check_arguments(pipeline, options)
    pipeline.set_progress_bar_config(disable=None)  # No bar where the output is no terminal.
    made = TextToImage(place(pipeline, device, memory), model, _native_pixels(pipeline), options)
    logger.info("pictures by %s, made at about %d pixels", model, made.native_pixels)
    return made


def _pipeline(location: str, dtype: torch.dtype) -> Any:
    """What diffusers takes for the text-to-image pipeline of these weights, or the one they were saved as."""
    from diffusers import AutoPipelineForText2Image, DiffusionPipeline

    try:
        return AutoPipelineForText2Image.from_pretrained(location, torch_dtype=dtype)
    except ValueError:
        # The table of AutoPipeline does not know every pipeline that can do it.
        return DiffusionPipeline.from_pretrained(location, torch_dtype=dtype)


def _check_arguments(pipeline: Any, options: Mapping[str, Any]) -> None:
    """ValueError unless the pipeline takes a prompt, a size, a generator and the options."""
    taken = inspect.signature(pipeline.__call__).parameters
    missing = [name for name in ("prompt", "height", "width", "generator", *options) if name not in taken]
    if missing:
        raise ValueError(
            f"expected a text-to-image pipeline that takes {', '.join(missing)}, found "
            f"{type(pipeline).__name__} that does not: choose another model, or leave the option out"
        )


def _native_pixels(pipeline: Any) -> int:
    """Area of the pictures that the model was made for, from its configuration."""
    network = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    cells = getattr(pipeline, "default_sample_size", None)
    if cells is None and network is not None:
        cells = getattr(network.config, "sample_size", None)
    if cells is None:
        return FALLBACK_SIDE**2
    rows, columns = cells if isinstance(cells, list | tuple) else (cells, cells)
    return int(rows * columns * pipeline.vae_scale_factor**2)


def _picture(result: Any, prompt: str, name: str) -> UInt8[Tensor, "3 H W"]:
    """The only picture of a pipeline's result."""
    refused = getattr(result, "nsfw_content_detected", None)
    if refused and any(refused):
        raise UnsafeContent(f"{name} refuses to show what it made of {prompt[:60]!r}: change it or the seed")
    images = getattr(result, "images", None)
    if not images:
        raise ValueError(f"expected one picture from {name}, found {type(result).__name__} without any")
    return torch.from_numpy(np.array(images[0].convert("RGB"))).permute(2, 0, 1)
