"""What a renderer is asked for and what it gives back.

Shape letters: B scenes, M views, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Response = Literal["ray3d", "ewa"]
"""How a Gaussian answers a pixel: along its ray in 3D (3DGUT, no blur) or as a 2D splat with dilation (EWA)."""


@dataclass(frozen=True)
class RenderSettings:
    """Constants of rasterization; defaults are those of the official renderer (lyra_decoder.md 6.2)."""

    near: float = 0.1
    """Gaussians nearer than this z-depth are not drawn."""
    far: float = 500.0
    """Gaussians farther than this z-depth are not drawn."""
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Colour behind everything."""
    response: Response | Literal["auto"] = "auto"
    """`ray3d` as the official renderer, `ewa` as ordinary viewers; `auto`: ray3d where the backend has it."""
    backend: Literal["auto", "gsplat", "cpu", "torch"] = "auto"
    """`auto`: gsplat on CUDA, the compiled CPU kernel elsewhere, plain torch where there is no compiler."""


@dataclass(frozen=True)
class Rendered:
    """Images of a scene."""

    rgb: Float[Tensor, "*batch M H W 3"]
    """Colour over the background, not clamped."""
    depth: Float[Tensor, "*batch M H W"]
    """Expected z-depth (weighted mean over what is seen); 0 where nothing is."""
    alpha: Float[Tensor, "*batch M H W"]
    """Accumulated opacity."""
