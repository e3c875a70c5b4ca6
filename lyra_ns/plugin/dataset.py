"""Frames of clips as a nerfstudio data set; there are no image files, so frames come out of the videos."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from lyra_ns.data.types import Clip
from lyra_ns.plugin.views import View


class ClipDataset(InputDataset):
    """The views of one scene: `image` [H, W, 3] and, if all clips have depth, `depth_image` [H, W, 1]."""

    CLIPS_KEPT = 2
    """Decoded clips in memory; views are asked for in order, so few are enough."""

    def __init__(self, dataparser_outputs: DataparserOutputs, views: list[View]) -> None:
        """Take cameras and names from `dataparser_outputs`, one for each of `views`."""
        super().__init__(dataparser_outputs)
        assert len(views) == len(dataparser_outputs.image_filenames)
        self.views = views
        self.has_depth = all(view.clip.has("depth") for view in views)
        self._decoded: OrderedDict[tuple[int, str], Tensor] = OrderedDict()

    def get_numpy_image(self, image_idx: int) -> npt.NDArray[np.uint8]:
        """The frame as [H, W, 3] bytes."""
        view = self.views[image_idx]
        frames = self._read(view.clip, "rgb")
        return np.ascontiguousarray(frames[view.frame].permute(1, 2, 0).numpy())

    def get_metadata(self, data: dict[str, Any]) -> dict[str, Any]:
        """The z-depth of the view, 0 where unknown."""
        if not self.has_depth:
            return {}
        view = self.views[data["image_idx"]]
        return {"depth_image": self._read(view.clip, "depth")[view.frame, ..., None].float()}

    def _read(self, clip: Clip, what: str) -> Tensor:
        key = (id(clip), what)
        if key not in self._decoded:
            self._decoded[key] = clip.rgb() if what == "rgb" else torch.as_tensor(clip.depth())
            while len(self._decoded) > 2 * self.CLIPS_KEPT:
                self._decoded.popitem(last=False)
        return self._decoded[key]
