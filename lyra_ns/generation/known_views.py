"""What is known of a scene beside its clips: the picture itself, and its cache seen from around.

It is kept in units of the scene, in the world of the first source camera, when the cache itself is gone, and
is what Gaussians are refined against and judged by.

Shape letters: V paths, L frames of a clip, S frames of the source, M views, H W image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, concatenate_cameras, relative_to
from lyra_ns.generation.length_unit import in_unit
from lyra_ns.generation.orbit import coverage_of_cache, covered_degrees, turned_camera
from lyra_ns.generation.scene_plan import ScenePlan
from lyra_ns.generation.teachers.warp import shown_whole, warped_frames
from lyra_ns.refinement import RefinementViews
from lyra_ns.refinement_config import usual_pixels

PICTURE_SHARE = 0.5
"""Share of the steps of refinement that are made with the picture itself."""
HOLE_WEIGHT = 0.1
"""Weight of what is shown in holes of the cache, where it is a guess."""
AROUND = ((8, 0), (-8, 0), (16, 0), (-16, 0), (0, 8), (0, -8))
"""Degrees to the right and upwards at which the cache is shown from around its centre."""
JUDGES_AROUND = ((12, 0), (-12, 0))
"""The same for views that judge."""


@dataclass(frozen=True)
class KnownViews:
    """Views in units of the scene."""

    picture: RefinementViews
    """The picture, or the frames of a video at their times."""
    around: RefinementViews | None = None
    """The cache from around; None if a video model completes it, and for videos."""
    covered: dict[str, int] = field(default_factory=dict)
    """Degrees by direction for which the cache is known; empty where `around` is None."""

    def for_gaussians(self, first_camera: Float[Tensor, "4 4"], factor: float) -> tuple[RefinementViews, ...]:
        """The views in the frame of the first camera of the first path, all lengths times `factor`."""
        return tuple(
            replace(
                some,
                cameras=in_unit(relative_to(some.cameras, first_camera), factor),
                depth=None if some.depth is None else some.depth * factor,
            )
            for some in (self.picture, self.around)
            if some is not None
        )


def known_views(plan: ScenePlan, is_warp: bool, device_type: str) -> KnownViews:
    """What the plan knows, as long as it has its cache; warped views are as fine as the picture."""
    assert plan.cache is not None
    picture = _source_views(plan).no_larger_than(usual_pixels(device_type))
    if not is_warp or plan.frames.is_video:
        return KnownViews(picture)
    camera = picture.cameras[0]
    covered = covered_degrees(coverage_of_cache(plan.cache), camera, plan.scale.centre_depth)
    return KnownViews(picture, _views_around(plan, camera), covered)


def _source_views(plan: ScenePlan) -> RefinementViews:
    """The picture, or the frames of a video, with their depth."""
    assert plan.cache is not None
    num = len(plan.frames.rgb)
    times = torch.linspace(0.0, 1.0, num) if num > 1 else torch.zeros(1)
    cameras = replace(plan.cache.frames.cameras.to("cpu"), times=times)
    images = plan.frames.rgb.movedim(1, -1).float() / 255
    return RefinementViews(images, cameras, plan.depth, share=PICTURE_SHARE)


def _views_around(plan: ScenePlan, camera: CameraPath) -> RefinementViews:
    """The cache as cameras like this one see it from around and from the middle and the end of the paths."""
    assert plan.cache is not None
    size = (camera.height, camera.width)
    judges, rings = (
        [turned_camera(camera, plan.scale.centre_depth, *degrees) for degrees in which]
        for which in (JUDGES_AROUND, AROUND)
    )
    middle_and_end = [plan.cameras.shape[1] // 2, plan.cameras.shape[1] - 1]
    paths = [path.cameras[middle_and_end].resized(*size) for path in plan.paths]
    cameras = concatenate_cameras([*judges, *rings, *paths])
    warped = warped_frames(shown_whole(plan.cache), cameras)
    weight = torch.where(warped.mask[:, 0], 1.0, HOLE_WEIGHT)
    images = warped.video.movedim(1, -1).float() / 255
    return RefinementViews(
        images, cameras, warped.depth, weight, 1 - PICTURE_SHARE, tuple(range(len(JUDGES_AROUND)))
    )
