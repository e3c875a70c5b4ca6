"""Views of several scenes to measure on, for ns-eval and the evaluation during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs

from lyra_ns.plugin.dataset import ClipDataset
from lyra_ns.plugin.views import SceneViews


class HeldOutViews:
    """Pairs of camera and truth over scenes, scene by scene, so that each is decoded once.

    The camera's metadata names the scene, and the model shows that one.
    """

    def __init__(
        self,
        views_by_scene: dict[str, SceneViews],
        outputs_of: Callable[[SceneViews], DataparserOutputs],
        device: torch.device | str,
    ) -> None:
        """Take views of each scene; `outputs_of` gives nerfstudio's cameras for them."""
        self._views = views_by_scene
        self._places = [
            (scene, row) for scene, views in views_by_scene.items() for row in range(len(views.views))
        ]
        self._device = device
        self._dataset = lru_cache(maxsize=1)(
            lambda scene: ClipDataset(outputs_of(views_by_scene[scene]), views_by_scene[scene].views)
        )
        # nerfstudio averages what the first image reports, so depth counts only if every scene has it.
        clips = [view.clip for views in views_by_scene.values() for view in views.views]
        self._has_depth = all(clip.has("depth") for clip in dict.fromkeys(clips))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Cameras, dict[str, Any]]:
        """Camera [1] and truth number `index`."""
        scene, row = self._places[index]
        dataset = self._dataset(scene)
        camera = dataset.cameras[row : row + 1].to(self._device)
        camera.metadata = {"scene": scene}
        truth = dataset[row]
        if not self._has_depth:
            truth.pop("depth_image", None)
        return camera, truth

    def __iter__(self) -> Iterator[tuple[Cameras, dict[str, Any]]]:
        return (self[index] for index in range(len(self)))
