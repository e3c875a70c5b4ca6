"""What Gaussians are refined against: pictures with their cameras, and the order in which they are shown.

Shape letters: M views, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath
from lyra_ns.rendering.types import RenderSettings

COUNTS_FROM = 0.5
"""Pixels of at least this weight are covered: they count in PSNR."""


@dataclass(frozen=True)
class RefinementViews:
    """Pictures of one size. A scene may have several such sets, say a photograph and frames of clips."""

    images: Float[Tensor, "M H W 3"]
    """Colours from 0 to 1."""
    cameras: CameraPath
    """Cameras [M] of these pictures, in the frame of the Gaussians."""
    depth: Float[Tensor, "M H W"] | None = None
    """z-depth, 0 where unknown."""
    weight: Float[Tensor, "M H W"] | None = None
    """How much each pixel counts: 1 what is surely seen, 0 what nobody knows; None: all of it."""
    share: float = 1.0
    """Part of the steps that are made with these pictures, relative to the shares of other sets."""
    held_back: tuple[int, ...] = ()
    """Pictures that no step is made with: they judge."""

    @property
    def num(self) -> int:
        """How many pictures there are."""
        return len(self.images)

    @property
    def covered(self) -> Bool[Tensor, "M H W"] | None:
        """Pixels that count in PSNR; None: all."""
        return None if self.weight is None else self.weight >= COUNTS_FROM

    @property
    def shown(self) -> tuple[int, ...]:
        """Pictures that steps are made with."""
        return tuple(index for index in range(self.num) if index not in self.held_back)

    def __getitem__(self, index: int) -> RefinementViews:
        """One of the pictures, alone."""
        chosen = slice(index, index + 1)
        return RefinementViews(
            self.images[chosen],
            self.cameras[chosen],
            None if self.depth is None else self.depth[chosen],
            None if self.weight is None else self.weight[chosen],
        )

    def near_time(self, time: float, within: float) -> RefinementViews | None:
        """The pictures whose cameras' times are no farther than `within` from `time`; None if there are none.

        For a moving scene, whose instants are refined one by one.
        """
        chosen = [k for k in range(self.num) if abs(float(self.cameras.times[k]) - time) <= within]
        if not chosen:
            return None
        return replace(
            self,
            images=self.images[chosen],
            cameras=self.cameras[chosen],
            depth=None if self.depth is None else self.depth[chosen],
            weight=None if self.weight is None else self.weight[chosen],
            held_back=tuple(place for place, k in enumerate(chosen) if k in self.held_back),
        )

    def no_larger_than(self, num_pixels: int) -> RefinementViews:
        """The same, smaller if a picture has more than `num_pixels` pixels; depth is picked, not mixed."""
        height, width = self.images.shape[1:3]
        shrink = math.sqrt(num_pixels / (height * width))
        if shrink >= 1:
            return self
        size = (max(1, round(height * shrink)), max(1, round(width * shrink)))

        def picked(values: Tensor | None) -> Tensor | None:
            if values is None:
                return None
            return functional.interpolate(values[:, None], size, mode="nearest-exact")[:, 0]

        images = functional.interpolate(
            self.images.movedim(-1, 1), size, mode="bilinear", antialias=True
        ).movedim(1, -1)
        return replace(
            self,
            images=images,
            cameras=self.cameras.resized(*size),
            depth=picked(self.depth),
            weight=picked(self.weight),
        )

    def to(self, device: torch.device | str) -> RefinementViews:
        """The same on `device`."""
        return replace(
            self,
            images=self.images.to(device),
            cameras=self.cameras.to(device),
            depth=None if self.depth is None else self.depth.to(device),
            weight=None if self.weight is None else self.weight.to(device),
        )

    def check(self) -> None:
        """ValueError, in one sentence, for pictures that nothing can be refined against."""
        self._check_shapes()
        for name in ("images", "depth", "weight"):
            values = getattr(self, name)
            if values is not None and not bool(values.isfinite().all()):
                raise ValueError(
                    f"expected finite {name} of views, found NaN or infinity: give 0 where unknown"
                )
        cameras = self.cameras
        if not bool(cameras.camera_to_world.isfinite().all() & cameras.intrinsics.isfinite().all()):
            raise ValueError("expected finite cameras of views, found NaN or infinity: check their poses")
        if not 0 < self.share < float("inf"):
            raise ValueError(
                f"expected a share of views above 0, found {self.share}: leave the set out instead"
            )
        if not self.shown:
            raise ValueError(
                f"all {self.num} pictures of a set of views are held back: leave some to refine against"
            )
        for what, index in (("that are shown", self.shown), ("that are held back", self.held_back)):
            if (
                self.weight is not None
                and index
                and not bool((self.weight[list(index)] >= COUNTS_FROM).any())
            ):
                raise ValueError(
                    f"the views {what} cover nothing: their weight is below {COUNTS_FROM} everywhere"
                )

    def _check_shapes(self) -> None:
        shape, cameras = tuple(self.images.shape), self.cameras
        if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"expected images of views [M, H, W, 3], found {list(shape)}")
        if tuple(cameras.shape) != shape[:1]:
            raise ValueError(
                f"expected a camera for each of {shape[0]} views, found cameras {list(cameras.shape)}"
            )
        if (cameras.height, cameras.width) != shape[1:3]:
            raise ValueError(
                f"expected cameras of {shape[1]} x {shape[2]} pixels (height x width) like their images, "
                f"found {cameras.height} x {cameras.width}: CameraPath.resized makes them, and views of "
                "another size are a set of their own"
            )
        for name in ("depth", "weight"):
            values = getattr(self, name)
            if values is not None and tuple(values.shape) != shape[:3]:
                raise ValueError(f"expected {name} of views {list(shape[:3])}, found {list(values.shape)}")
        wrong = [index for index in self.held_back if not 0 <= index < shape[0]]
        if wrong:
            raise ValueError(f"views {wrong} are to be held back, and there are {shape[0]}: count from 0")


def check_views(views: Sequence[RefinementViews]) -> None:
    """ValueError if there are no views or one of the sets cannot be used."""
    if not views:
        raise ValueError("expected views to refine against, found none: give pictures with their cameras")
    for some in views:
        some.check()


def in_turn(views: Sequence[RefinementViews], seed: int) -> Iterator[RefinementViews]:
    """One picture after the other, for ever: sets by their shares, each set's pictures in shuffled rounds.

    The set that lags behind its share most is next, so that no run of luck leaves one out.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(some.share for some in views)
    owed = [0.0] * len(views)
    waiting: list[list[int]] = [[] for _ in views]
    while True:
        owed = [debt + some.share / total for debt, some in zip(owed, views, strict=True)]
        at = max(range(len(views)), key=owed.__getitem__)
        owed[at] -= 1
        if not waiting[at]:
            order = torch.randperm(len(views[at].shown), generator=generator).tolist()
            waiting[at] = [views[at].shown[place] for place in order]
        yield views[at][waiting[at].pop()]


def finest_focal(views: Sequence[RefinementViews]) -> float:
    """The longest focal length of all views, in pixels: that of the finest pixels."""
    return max(float(some.cameras.intrinsics[..., :2].max()) for some in views)


def drawn_background(settings: RenderSettings, generator: torch.Generator) -> RenderSettings:
    """The same settings with a background of a drawn grey.

    What lets light through shows it and is wrong for any picture, while a white sky could hide a hole. Grey,
    since colours would leave stains where little is known.
    """
    grey = float(torch.rand((), generator=generator))
    return replace(settings, background=(grey, grey, grey))
