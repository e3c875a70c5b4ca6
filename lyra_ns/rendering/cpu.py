"""The compiled CPU backend: splats to pixels and back through splat.cpp."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.rendering.compiler import load_kernel
from lyra_ns.rendering.projection import Splats
from lyra_ns.rendering.types import MIN_ALPHA, MIN_TRANSMITTANCE

TILE = 16
NUM_CHANNELS = 4
GRADIENT_COLUMNS = (2, 3, 5, 1, 4)
"""Width of the gradients of centres, whitenings, perspectives, opacities and colours in the kernel's rows."""


class _View(ctypes.Structure):
    """The struct View of splat.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("width", "height", "num_threads", "unused")),
        *((name, ctypes.c_int64) for name in ("num_splats", "num_pairs")),
        *((name, ctypes.c_double) for name in ("max_alpha", "min_alpha", "min_transmittance")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("centres", "whitenings", "perspectives", "opacities", "colours", "depths", "boxes"),
                *("tile_starts", "pair_splats"),
                *("image", "transmittance", "last", "image_grad", "transmittance_grad"),
                *("pair_grads", "splat_grads"),
            )
        ),
    ]


def rasterize(
    splats: Splats, height: int, width: int, max_alpha: float
) -> tuple[Float[Tensor, "H W 4"], Float[Tensor, "H W"]]:
    """Blended colours with z-depth, and transmittance, of one view; repeatable bit by bit."""
    return _Rasterize.apply(
        splats.centres,
        splats.whitenings,
        splats.perspectives,
        splats.opacities,
        splats.colours,
        splats.depths,
        splats.boxes,
        (height, width, max_alpha),
    )


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tensors, (height, width, max_alpha) = arguments
        names = ("centres", "whitenings", "perspectives", "opacities", "colours", "depths", "boxes")
        inputs = {
            name: tensor.detach().contiguous()
            for name, tensor in zip(names, tensors, strict=True)
            if tensor is not None
        }
        like = inputs["centres"]
        constants = {"height": height, "width": width, "max_alpha": max_alpha}
        num_tiles = -(-height // TILE) * -(-width // TILE)
        inputs["tile_starts"] = torch.empty(num_tiles + 1, dtype=torch.int64)
        num_pairs = _call("count_pairs", like.dtype, inputs, constants)
        inputs["pair_splats"] = torch.empty(num_pairs, dtype=torch.int32)
        _call("list_pairs", like.dtype, inputs, constants)
        image, transmittance = like.new_empty(height, width, NUM_CHANNELS), like.new_empty(height, width)
        inputs["last"] = torch.empty(height, width, dtype=torch.int32)
        outputs = {"image": image, "transmittance": transmittance}
        _call("blend", like.dtype, inputs | outputs, constants)
        ctx.names, ctx.constants = (*inputs, "transmittance"), constants
        ctx.save_for_backward(*inputs.values(), transmittance)
        return image, transmittance

    @staticmethod
    def backward(ctx: Any, image_grad: Tensor, transmittance_grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        like = tensors["centres"]
        width = sum(GRADIENT_COLUMNS)
        tensors |= {
            "image_grad": image_grad.contiguous(),
            "transmittance_grad": transmittance_grad.contiguous(),
            "pair_grads": like.new_empty(len(tensors["pair_splats"]), width),
            "splat_grads": like.new_empty(len(like), width),
        }
        _call("differentiate", like.dtype, tensors, ctx.constants)
        centres, whitenings, perspectives, opacities, colours = tensors["splat_grads"].split(
            GRADIENT_COLUMNS, 1
        )
        if "perspectives" not in tensors:
            perspectives = None
        return centres, whitenings, perspectives, opacities[:, 0], colours, None, None, None


def _call(name: str, dtype: torch.dtype, tensors: dict[str, Tensor], constants: dict[str, Any]) -> int:
    """Run one of the kernel's functions; the result of those that have one."""
    view = _View(
        num_threads=torch.get_num_threads(),
        num_splats=len(tensors["centres"]),
        num_pairs=len(tensors.get("pair_splats", ())),
        min_alpha=MIN_ALPHA,
        min_transmittance=MIN_TRANSMITTANCE,
        **constants,
        **{key: tensor.data_ptr() for key, tensor in tensors.items()},
    )
    function = load_kernel().library[f"{name}_{str(dtype).removeprefix('torch.')}"]
    function.restype = ctypes.c_int64
    return function(ctypes.byref(view))
