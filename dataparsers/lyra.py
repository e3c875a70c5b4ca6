"""`lyra-data`: scenes in the layout of the official Lyra data set.

nerfstudio loads this module while it is still importing its data managers. It must not import
nerfstudio.data.datamanagers, .pipelines, .engine.trainer, .plugins.types or .configs.*_configs
(docs/reference/nerfstudio.md, "Entry points").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification

if TYPE_CHECKING:
    from lyra_ns.plugin.scenes import SceneLibrary
    from lyra_ns.plugin.views import SceneViews

SCENE_BOX_MARGIN = 1.5
"""The scene box reaches this many times as far from the origin as the farthest camera, and at least 1."""


@dataclass
class LyraDataParserConfig(DataParserConfig):
    """Scenes in the official layout, and which of them is shown."""

    _target: type = field(default_factory=lambda: LyraDataParser)
    data: Path | None = None
    """Folder that holds the trajectories 0/ 1/ ... (or static/, dynamic/ with them), or their tars."""
    scene: str = ""
    """Scene that viewer, ns-render and ns-export show: a name or a position. Default: first held-out."""
    trajectories: tuple[int, ...] = (5, 0, 1, 2, 3, 4)
    """Input trajectories in reading order; frame 0 of the first is the origin. Absent ones are left out."""
    test_fraction: float = 0.1
    """Share of scenes held out where the data itself does not say which."""
    split_seed: int = 0
    """Seed of that choice."""
    eval_every: int = 4
    """Every so many frames of a path are measured."""
    flipped_pose_order: Literal["auto", "as_is", "reverse"] = "auto"
    """How the poses of the time-reversed views 6 to 11 of dynamic data are stored; auto looks at them."""


@dataclass
class LyraDataParser(DataParser):
    """Cameras of the active scene for nerfstudio; train: the input trajectories, val and test: true views."""

    config: LyraDataParserConfig

    def __init__(self, config: LyraDataParserConfig) -> None:
        """Open the data set; DataError with what to do if it cannot be used."""
        super().__init__(config)
        self.includes_time = self.scenes.is_dynamic

    @cached_property
    def scenes(self) -> SceneLibrary:
        """All scenes of the data set."""
        from lyra_ns.plugin.scenes import open_scenes

        config = self.config
        return open_scenes(
            config.data,
            config.trajectories,
            config.scene,
            config.split_seed,
            config.test_fraction,
            config.flipped_pose_order,
        )

    def views(self, split: str) -> SceneViews:
        """Views of the active scene."""
        if split == "train":
            return self.scenes.input_views(self.scenes.active)
        return self.scenes.true_views(self.scenes.active, self.config.eval_every)

    def outputs_of(self, views: SceneViews) -> DataparserOutputs:
        """Cameras and names of views, in the frame of their scene's reference camera."""
        from lyra_ns.plugin.views import nerfstudio_cameras

        cameras = nerfstudio_cameras(views.cameras, with_times=self.scenes.is_dynamic)
        reach = max(1.0, SCENE_BOX_MARGIN * float(cameras.camera_to_worlds[:, :3, 3].abs().max()))
        return DataparserOutputs(
            # There are no such files: the names say which frame of which video is meant.
            image_filenames=[
                self.scenes.store.home / views.scene / view.path / f"{view.frame:05d}.png"
                for view in views.views
            ],
            cameras=cameras,
            scene_box=SceneBox(aabb=torch.tensor([[-reach] * 3, [reach] * 3])),
            metadata={"scene": views.scene, "latents": self.scenes.store.spec},
        )

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: object) -> DataparserOutputs:
        return self.outputs_of(self.views(split))


lyra_data = DataParserSpecification(
    config=LyraDataParserConfig(), description="Scenes in the layout of the official Lyra data set."
)
