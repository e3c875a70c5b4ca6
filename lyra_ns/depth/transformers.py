"""Depth models of transformers: DepthPro, which finds the focal length too, and Depth Anything (metric)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.depth.base import DepthPrediction, checked_depth, checked_image
from lyra_ns.pretrained import load_pretrained

DEPTH_PRO = "apple/DepthPro-hf"
"""Weights of DepthPro: metric depth and field of view; Apple's research licence."""
DEPTH_ANYTHING_INDOOR = "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf"
DEPTH_ANYTHING_OUTDOOR = "depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf"
"""Weights of Depth Anything V2 for metric depth up to 20 and 80 metres; the camera must be given."""


@dataclass(frozen=True)
class TransformersDepth:
    """Depth of an image by a model of transformers and its image processor."""

    model: Any
    """A model for depth estimation."""
    processor: Any
    """Its image processor."""
    name: str
    """What it is called in records: the hub name or folder of its weights."""

    @torch.inference_mode()
    def predict(
        self, image: Float[Tensor, "3 H W"], intrinsics: Float[Tensor, " 4"] | None = None
    ) -> DepthPrediction:
        """Metric depth; intrinsics as given, else DepthPro's, else None.

        DepthPro's depth follows from the focal length; a given one replaces its own.
        """
        image = checked_image(image)
        height, width = image.shape[1:]
        inputs = self.processor(images=image.float(), do_rescale=False, return_tensors="pt")
        outputs = self.model(pixel_values=inputs["pixel_values"].to(self.model.device, self.model.dtype))
        found = self.processor.post_process_depth_estimation(outputs, target_sizes=[(height, width)])[0]
        depth = found["predicted_depth"].float().to(image.device)
        focal = found.get("focal_length")
        if focal is not None and intrinsics is not None:
            # DepthPro predicts depth per focal length, which post-processing multiplied by its own.
            depth = depth * (float(intrinsics[0]) / float(focal))
        elif focal is not None:
            intrinsics = image.new_tensor([float(focal), float(focal), width / 2, height / 2]).float()
        return DepthPrediction(
            checked_depth(depth, self.name),
            intrinsics,
            is_metric=True,
            has_training_units=False,
            estimator=self.name,
        )


def load_transformers_depth(
    weights: str = DEPTH_PRO, device: torch.device | str = "cpu"
) -> TransformersDepth:
    """A depth model of transformers by hub name or folder.

    ValueError for models of relative depth, which is inverse and has an unknown shift, and for a DepthPro
    without its field of view; FileNotFoundError for weights that cannot be read or that lack tensors.
    """
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    def load(place: str) -> tuple[Any, Any]:
        return AutoModelForDepthEstimation.from_pretrained(place), AutoImageProcessor.from_pretrained(place)

    model, processor = load_pretrained(load, weights, "depth model", "config.json")
    check_metric(model.config, weights)
    return TransformersDepth(model.to(device).eval(), processor, weights)


def check_metric(config: Any, name: str) -> None:
    """ValueError unless a model of this configuration gives depth that is metric."""
    if config.model_type == "depth_pro":
        metric = bool(config.use_fov_model)
    elif config.model_type == "depth_anything":
        metric = config.depth_estimation_type == "metric"
    else:
        metric = config.model_type in ("zoedepth", "prompt_depth_anything")
    if not metric:
        raise ValueError(
            f"expected a model of metric depth, found {name} ({config.model_type}), whose depth has no unit: "
            f"take {DEPTH_PRO} or a Depth Anything V2 called Metric"
        )
