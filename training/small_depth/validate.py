"""How good predicted depth is, beside what needs no network: a constant, and the best plane.

Shape letters: H W image.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.depth.base import DepthEstimator
from lyra_ns.depth.small import load_small_depth
from lyra_ns.evaluation.photo_check import load_stereo_photo
from lyra_ns.synthetic.render import SceneRenderer
from lyra_ns.synthetic.scenes import make_scene
from lyra_ns.synthetic.textures import packaged_textures
from lyra_ns.synthetic.writer import FIRST_HELD_OUT, ClipSize
from training.small_depth.data import SceneSource


@dataclass(frozen=True)
class DepthErrors:
    """Mean of |predicted - true| / true depth."""

    scaled: float
    """After the best factor by medians."""
    fitted: float
    """After the best factor and shift of the inverse depth."""
    constant: float
    """Of the median of the true depth."""
    plane: float
    """Of the plane that fits the true depth best."""


def depth_errors(
    predicted: Float[Tensor, "H W"], true: Float[Tensor, "H W"], mask: Bool[Tensor, "H W"] | None = None
) -> DepthErrors:
    """Errors where the true depth is known (above 0) and the mask is true."""
    known = (true > 0) & true.isfinite()
    known = known if mask is None else known & mask
    height, width = true.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    found, wanted = predicted[known].double(), true[known].double()
    ones = torch.ones_like(wanted)
    plane = torch.stack([x[known].double(), y[known].double(), ones], -1)
    return DepthErrors(
        scaled=_relative(found * (wanted.median() / found.median()), wanted),
        fitted=_relative(_fitted(torch.stack([1 / found, ones], -1), wanted), wanted),
        constant=_relative(ones * wanted.median(), wanted),
        plane=_relative(_fitted(plane, wanted), wanted),
    )


def _fitted(columns: Tensor, wanted: Tensor) -> Tensor:
    """Depth, within the true range, whose inverse combines the columns with the least relative error."""
    rows = columns * wanted[:, None]
    weights = torch.linalg.lstsq(rows, torch.ones_like(wanted)[:, None]).solution
    inverse = (columns @ weights)[:, 0]
    return 1 / inverse.clamp(1 / wanted.max(), 1 / wanted.min())


def _relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs() / wanted).mean().item()


def mean_errors(errors: list[DepthErrors]) -> DepthErrors:
    """Means over images."""
    count = len(errors)
    return DepthErrors(**{key: sum(asdict(e)[key] for e in errors) / count for key in asdict(errors[0])})


def errors_on_drawn_scenes(estimator: DepthEstimator, count: int, device: str = "cpu") -> DepthErrors:
    """Errors on scenes as those of the training, of other things and with pictures that it never showed."""
    source = SceneSource(device, seed=10_001, held_out=True, num_groups=300)
    rgb, log_depth = (values.cpu() for values in source.render(count, 256))
    crop = slice(32, 224)
    return mean_errors(
        [
            depth_errors(estimator.predict(rgb[k, :, crop]).depth.cpu(), log_depth[k, crop].exp())
            for k in range(count)
        ]
    )


def errors_on_sample_scenes(estimator: DepthEstimator, count: int) -> DepthErrors:
    """Errors on the held-out scenes of `ns-lyra sample-data`, which another generator and renderer make."""
    size, bank = ClipSize(num_frames=1), packaged_textures()
    pose = torch.eye(4)[None]
    camera = CameraPath(pose, size.intrinsics(0, "held out")[None], torch.zeros(1), size.height, size.width)
    errors = []
    for number in range(count):
        scene = make_scene(0, FIRST_HELD_OUT + number, bank, held_out=True)
        frame = SceneRenderer(scene).render(camera)
        found = estimator.predict(frame.rgb[0].float() / 255).depth.cpu()
        errors.append(depth_errors(found, frame.depth[0]))
    return mean_errors(errors)


def errors_on_photograph(estimator: DepthEstimator) -> DepthErrors:
    """Errors on the left photograph of the Motorcycle pair, which nothing is trained on."""
    photo = load_stereo_photo()
    return depth_errors(estimator.predict(photo.left.movedim(-1, 0)).depth.cpu(), photo.depth)


def validate(weights: Path | None = None, count: int = 32) -> dict[str, Any]:
    """Errors of weights (None: those that ship) on `count` scenes of each kind and on the photograph.

    Computed on the CPU, as for users without a GPU.
    """
    estimator = load_small_depth("cpu", weights)
    return {
        "drawn_scenes": asdict(errors_on_drawn_scenes(estimator, count)),
        "sample_scenes": asdict(errors_on_sample_scenes(estimator, count)),
        "motorcycle_photograph": asdict(errors_on_photograph(estimator)),
    }


if __name__ == "__main__":
    print(json.dumps(tyro.cli(validate), indent=1))
