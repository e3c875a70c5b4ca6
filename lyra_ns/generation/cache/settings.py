"""How the 3D cache treats depth and what it hides."""

from __future__ import annotations

from dataclasses import dataclass, field

from lyra_ns.generation.cache.geometry import OFFICIAL_PIXEL_CENTRE, PIXEL_CENTRE
from lyra_ns.generation.cache.splat import SplatSettings

OFFICIAL_WIDTH = 1280
"""Width in pixels for which GEN3C's thresholds are meant."""
HIGHEST_THRESHOLD = 0.99
"""1 would show all."""


@dataclass(frozen=True)
class CacheSettings:
    """Settings of a SceneCache; distances in units of the scene."""

    max_buffers: int = 2
    """Warped pictures for each frame; GEN3C's network takes up to two."""
    reliability_threshold: float = 0.05
    """Pixels whose depth varies by more than this share around them are not shown; 1 shows all."""
    farthest_depth: float | None = 100.0
    """What lies beyond, infinitely far included, is shown at this depth, as GEN3C does with the sky; None
    keeps far depths and takes infinite ones for unknown."""
    foreground_masking: bool = True
    """Calls a hole what appears behind the torn silhouette of something near, as Lyra's data were made."""
    torn_threshold: float = 0.05
    """Foreground masking: variation of the depth, as a share, that counts as torn."""
    sheet_margin: float = 0.02
    """Foreground masking: how far behind the sheet something must lie to be hidden."""
    sheet_margin_share: float = 0.0
    """Foreground masking: the same as a share of the depth; the larger one counts. GEN3C has none, but it
    makes masks independent of the unit of length."""
    splat: SplatSettings = field(default_factory=SplatSettings)
    """How points that land on one pixel are mixed."""
    pixel_centre: float = PIXEL_CENTRE
    """Where the given cameras have the centre of the first pixel: 0.5, or 0.0 as in GEN3C."""

    @classmethod
    def for_width(cls, width: int) -> CacheSettings:
        """Settings for sources of a width in pixels.

        GEN3C's thresholds are slopes over five pixels at full size; smaller pictures are steeper per pixel.
        """
        times = max(1.0, OFFICIAL_WIDTH / width)
        return cls(
            reliability_threshold=min(cls.reliability_threshold * times, HIGHEST_THRESHOLD),
            torn_threshold=min(cls.torn_threshold * times, HIGHEST_THRESHOLD),
        )

    def __post_init__(self) -> None:
        if self.max_buffers < 1:
            raise ValueError(f"expected max_buffers of 1 or more, found {self.max_buffers}")
        for name in ("reliability_threshold", "torn_threshold", "farthest_depth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"expected {name} above 0, found {value}")
        if min(self.sheet_margin, self.sheet_margin_share) < 0:
            raise ValueError(
                f"expected margins of 0 or more, found {self.sheet_margin} and {self.sheet_margin_share}"
            )
        if self.pixel_centre not in (PIXEL_CENTRE, OFFICIAL_PIXEL_CENTRE):
            raise ValueError(f"expected 0.5 or 0.0 as pixel_centre, found {self.pixel_centre}")
