"""Clips of a data set as sources: their own cameras, first frame and, where it is stored, depth.

Shape letters: L frames, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.data.resizing import resize_depth
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.cache.settings import CacheSettings
from lyra_ns.generation.depth.estimator import DepthEstimator
from lyra_ns.generation.depth.scene_scale import SKY_DEPTH, SceneScale, scene_scale
from lyra_ns.generation.make_data.scene_inputs import predicted_depth
from lyra_ns.generation.make_data.settings import MakeDataSettings
from lyra_ns.generation.teachers.clips_on_disk import ClipOnDisk

STORED = "stored"
"""What records call depth that the source has."""


@dataclass(frozen=True)
class GivenClip:
    """A clip whose cameras are known, at the size and length of the data set that is made; on the CPU."""

    cameras: CameraPath
    """The path [L], in the units of the source."""
    image: Float[Tensor, "3 H W"]
    """Its first frame, 0 to 1."""
    depth: Float[Tensor, "H W"] | None
    """z-depth of the first frame in the same units, 0 where unknown; None if the source has none."""

    def with_cache(
        self, estimator: DepthEstimator, settings: MakeDataSettings, device: torch.device | str
    ) -> tuple[SceneCache, SceneScale]:
        """The 3D cache of the first frame in the units of the cameras, and these units for the record.

        Without stored depth it is estimated, and `pose_scale` of the settings says how units relate.
        """
        depth = self.depth
        if depth is None:
            found = predicted_depth(estimator, self.image, self.cameras.intrinsics[0], settings.fov_x, device)
            scale = scene_scale(found, units="as_predicted", pose_scale=settings.pose_scale)
            depth = torch.where(found.depth > 0, found.depth / scale.pose_scale, SKY_DEPTH)
        else:
            scale = SceneScale(1.0, 1.0, 1.0, "given", 0, 0.0, STORED)
        cache = SceneCache.from_image(
            self.image.to(device),
            depth.to(device),
            self.cameras[:1],
            settings=CacheSettings.for_width(self.cameras.width),
        )
        return cache, scale


def read_given_clip(clip: ClipOnDisk, settings: MakeDataSettings) -> GivenClip:
    """A clip at size and length of the data set; ValueError if it is too short or has no frames."""
    size = (settings.height, settings.width)
    request = clip.request(settings.num_frames, *size)
    depth = resize_depth(clip.clip.depth([0]), *size)[0] if clip.clip.has("depth") else None
    return GivenClip(request.cameras, request.image, depth)
