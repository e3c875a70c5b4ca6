"""What a renderer is asked for and what it gives back.

Shape letters: B scenes, M views, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Response = Literal["ray3d", "ewa"]
"""How a Gaussian answers a pixel: along its ray in 3D (3DGUT, no blur) or as a dilated 2D splat (EWA)."""

MIN_ALPHA = 1.0 / 255.0
"""A Gaussian that covers a pixel by less is skipped there; fixed in gsplat."""

MIN_TRANSMITTANCE = 1e-4
"""A pixel is finished before the Gaussian that would let no more light than this through; fixed in gsplat."""


@dataclass(frozen=True)
class RenderSettings:
    """Constants of rasterization; defaults are those of the official renderer.

    Source: docs/reference/lyra_training.md, "Renderer".
    """

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
    views_at_once: int | Literal["auto"] | None = "auto"
    """Views rendered together. A number: each group is then rendered again in backward, and memory is that of
    one group (docs/reference/lyra_training.md, "Deferred back-propagation"). None: all views, and nothing is
    rendered twice. auto: as many as the free memory of the card lets, rendered again only where the renders
    of all views cannot be kept."""
    depth_gradient: bool = True
    """Whether depth pulls Gaussians along the viewing axis. False as the official renderer, whose depth only
    changes blending weights."""
    dilation: float = 0.3
    """Variance in square pixels by which the EWA response widens every splat."""
    max_alpha: float = 0.999
    """Largest opacity of one Gaussian in one pixel. gsplat has its own: 0.999 up to 1.5, 0.99 from 1.6."""

    def __post_init__(self) -> None:
        """Refuse what no backend can draw."""
        if not 0.0 < self.near < self.far:
            raise ValueError(f"near and far must satisfy 0 < near < far, found {self.near} and {self.far}")
        if isinstance(self.views_at_once, int) and self.views_at_once < 1:
            raise ValueError(f"views_at_once must be auto, None or at least 1, found {self.views_at_once}")


@dataclass(frozen=True)
class Rendered:
    """Images of a scene."""

    rgb: Float[Tensor, "*batch M H W 3"]
    """Colour over the background, not clamped."""
    depth: Float[Tensor, "*batch M H W"]
    """Expected z-depth (weighted mean over what is seen); 0 where nothing is."""
    alpha: Float[Tensor, "*batch M H W"]
    """Accumulated opacity."""
