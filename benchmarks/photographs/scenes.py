"""Scenes that `generate` makes of photographs, each made once, and what is known of them afterwards.

Shape letters: H W image.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from benchmarks.photographs.crops import Crop
from benchmarks.photographs.held_out import Picture
from benchmarks.photographs.views import per_pixel, view_size
from lyra_ns.cameras import CameraPath
from lyra_ns.depth.small import load_small_depth
from lyra_ns.export.ply import load_ply
from lyra_ns.gaussians import Gaussians

CHECKOUT = Path(__file__).resolve().parents[2]
"""The package that is measured unless another is given."""
ONE_SCENE = Path(__file__).resolve().with_name("one_scene.py")
"""What makes a scene."""


@dataclass(frozen=True)
class MadeScene:
    """A scene that was made of a photograph."""

    picture: Picture
    """The photograph."""
    gaussians: Gaussians
    """The scene, in the frame of the photograph's camera."""
    record: dict[str, Any]
    """What `generate` says of it."""
    cost: dict[str, float]
    """Seconds and memory."""

    @property
    def crop(self) -> Crop:
        """The part of the photograph that it was made of."""
        return Crop.of_aspect(self.picture, self.record["clips"]["height"], self.record["clips"]["width"])

    @property
    def whole_lens(self) -> Float[Tensor, " 4"]:
        """Intrinsics in pixels of the whole photograph."""
        lens = self.record["lens"]
        return self.crop.whole_lens(torch.tensor(lens["intrinsics"]), lens["height"], lens["width"])

    @property
    def centre_depth(self) -> float:
        """Median depth in units of the Gaussians, about which orbits turn; the estimator's median is 1."""
        return self.record["scale"]["depth_factor"] * self.record["unit"]["factor"]

    @cached_property
    def view(self) -> PhotographView:
        """What it was made of, at the size at which it is judged."""
        clips = self.record["clips"]
        return self.view_of(self.crop, *view_size(clips["height"], clips["width"]))

    def view_of(self, crop: Crop, height: int, width: int) -> PhotographView:
        """Some part of the photograph at a size."""
        return PhotographView(
            crop.cut(self.picture, height, width),
            crop.camera(self.whole_lens, height, width),
            self.centre_depth,
        )


@dataclass(frozen=True)
class PhotographView:
    """A photograph as a camera of the scene sees it."""

    rgb: Float[Tensor, "H W 3"]
    """Colours from 0 to 1."""
    camera: CameraPath
    """Its camera []."""
    centre_depth: float
    """Median depth in the unit of the camera."""

    @cached_property
    def own_depth(self) -> Float[Tensor, "H W"]:
        """Depth by the network that ships, its median at `centre_depth`."""
        depth = load_small_depth().predict(self.rgb.movedim(-1, 0), self.camera.intrinsics).depth
        return depth / depth.median() * self.centre_depth

    @cached_property
    def per_pixel(self) -> Gaussians:
        """One Gaussian per pixel by that depth."""
        return per_pixel(self.rgb, self.own_depth, self.camera)


class SceneMaker:
    """Makes scenes in a folder, each in a process of its own and only once.

    `arguments` are those of `one_scene`, `checkout` holds the package whose `generate` makes them; None: this
    one.
    """

    def __init__(self, folder: Path, arguments: Sequence[str] = (), checkout: Path | None = None) -> None:
        self.folder = folder
        self.arguments = arguments
        self.checkout = checkout or CHECKOUT
        self._made: dict[str, MadeScene] = {}

    def made(self, name: str, picture: Picture) -> MadeScene:
        """The scene of a photograph, whose name no other one has; RuntimeError if `generate` fails."""
        if name not in self._made:
            self._made[name] = self._make(name, picture)
        return self._made[name]

    def _make(self, name: str, picture: Picture) -> MadeScene:
        photograph, folder = self.folder / f"{name}.png", self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(photograph)
        command = [sys.executable, str(ONE_SCENE), str(photograph), str(folder), *self.arguments]
        finished = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(self.checkout)}
        )
        if finished.returncode:
            raise RuntimeError(f"no scene of {name} could be made: {finished.stderr.strip()[-2000:]}")
        return MadeScene(
            picture,
            load_ply(folder / "scene.ply"),
            json.loads((folder / "record.json").read_text()),
            json.loads(folder.with_suffix(".json").read_text()),
        )
