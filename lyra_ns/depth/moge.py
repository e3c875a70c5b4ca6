"""MoGe, the estimator that the official data were made with.

Source: docs/reference/gen3c.md, "Depth and scale" and "Sources of depth".
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.depth.base import DepthPrediction, checked_depth, checked_image

Version = Literal["v1", "v2"]
CHECKPOINTS: dict[Version, str] = {"v1": "Ruicheng/moge-vitl", "v2": "Ruicheng/moge-2-vitl"}
"""Hub names of the weights; Lyra used the first version, the second is metric."""


@dataclass(frozen=True)
class MoGeDepth:
    """Depth and camera of an image by a MoGe model."""

    model: Any
    """A model with MoGe's `infer`."""
    version: Version
    """Version of the model."""

    @property
    def name(self) -> str:
        """`moge-v1` or `moge-v2`."""
        return f"moge-{self.version}"

    @torch.inference_mode()
    def predict(
        self, image: Float[Tensor, "3 H W"], intrinsics: Float[Tensor, " 4"] | None = None
    ) -> DepthPrediction:
        """Depth, 0 outside the model's mask; intrinsics as given, else as found by the model."""
        image = checked_image(image)
        height, width = image.shape[1:]
        device = next(self.model.parameters()).device
        fov_x = None
        if intrinsics is not None:
            fov_x = math.degrees(2 * math.atan(width / 2 / float(intrinsics[0])))
        found = self.model.infer(image.float().to(device), fov_x=fov_x)
        depth = torch.where(found["mask"].bool(), found["depth"].float(), 0.0).to(image.device)
        if intrinsics is None:
            matrix = found["intrinsics"].float().to(image.device)
            size = matrix.new_tensor([width, height, width, height])
            intrinsics = matrix[[0, 1, 0, 1], [0, 1, 2, 2]] * size
        return DepthPrediction(
            checked_depth(depth, self.name),
            intrinsics,
            is_metric=self.version == "v2",
            has_training_units=self.version == "v1",
            estimator=self.name,
        )


def load_moge(
    version: Version = "v1", weights: str | None = None, device: torch.device | str = "cpu"
) -> MoGeDepth:
    """MoGe with the weights of a hub name or local file; ValueError where the package is not installed."""
    try:
        module = importlib.import_module(f"moge.model.{version}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"depth by MoGe needs the package moge, found none ({error}): `pip install 'lyra-ns[moge]'`, or "
            "choose another estimator"
        ) from error
    model = module.MoGeModel.from_pretrained(weights or CHECKPOINTS[version])
    return MoGeDepth(model.to(device).eval(), version)
