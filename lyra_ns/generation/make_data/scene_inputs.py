"""What is known of a scene before its clips are made: frames, depth, cameras and units.

Shape letters: S frames (1 of a still scene), H W image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, crop_and_resize_intrinsics
from lyra_ns.data.resizing import resize_rgb
from lyra_ns.data.video_files import VideoSize
from lyra_ns.generation.cache.scene import SceneCache
from lyra_ns.generation.cache.settings import CacheSettings
from lyra_ns.generation.camera_paths import reversed_in_time, still_path
from lyra_ns.generation.depth.estimator import (
    DepthEstimator,
    DepthPrediction,
    intrinsics_of_focal,
    intrinsics_of_fov,
)
from lyra_ns.generation.depth.scene_scale import SceneScale, scene_depth, scene_scale
from lyra_ns.generation.depth.vipe import read_vipe
from lyra_ns.generation.image_files import check_size, read_image
from lyra_ns.generation.inputs import finer_size
from lyra_ns.generation.make_data.frame_depth import aligned_sequence
from lyra_ns.generation.make_data.plan import PICTURE_FOLDER, PlannedScene
from lyra_ns.generation.make_data.settings import MakeDataSettings
from lyra_ns.generation.video_frames import read_frames


@dataclass(frozen=True)
class SceneInputs:
    """A scene before its clips are made; on the CPU, in the scene's units."""

    rgb: Float[Tensor, "S 3 H W"]
    """Frames, 0 to 1; of small clips at a multiple of their size, so that warps stay sharp."""
    depth: Float[Tensor, "S H W"]
    """z-depth; 0 where unknown."""
    cameras: CameraPath
    """Cameras [S]."""
    scale: SceneScale
    """The units, for the record."""
    is_dynamic: bool
    """Whether the frames are those of a moving scene, in time."""
    notes: tuple[str, ...] = ()
    """What was done to the source, in words."""

    def in_reverse(self) -> SceneInputs:
        """The same video, last frame first."""
        return replace(
            self, rgb=self.rgb.flip(0), depth=self.depth.flip(0), cameras=reversed_in_time(self.cameras)
        )

    def cache(self, device: torch.device | str) -> SceneCache:
        """The 3D cache of these frames on `device`."""
        rgb, depth = self.rgb.to(device), self.depth.to(device)
        settings = CacheSettings.for_width(self.cameras.width)
        if self.is_dynamic:
            return SceneCache.from_video(rgb, depth, self.cameras, settings=settings)
        return SceneCache.from_image(rgb[0], depth[0], self.cameras, settings=settings)

    def first_frame(self, height: int, width: int) -> Float[Tensor, "3 H W"]:
        """The first frame at the size of the clips."""
        first = (self.rgb[:1] * 255).round().to(torch.uint8)
        return resize_rgb(first, height, width)[0].float() / 255


@dataclass(frozen=True)
class InputReader:
    """Reads the source of any scene but clips with cameras of their own."""

    settings: MakeDataSettings
    """How the data set is made."""
    source: Path
    """Input of the run."""
    root: Path
    """Folder of the data set, where pictures from prompts lie."""
    estimator: DepthEstimator
    """Source of depth."""
    device: torch.device | str
    """Where depth is estimated."""

    def read(self, scene: PlannedScene) -> SceneInputs:
        """The inputs of a scene; FileNotFoundError or ValueError for a source that cannot be used."""
        if scene.kind == "vipe":
            return self._of_vipe(scene.source)
        if scene.kind == "video":
            return self._of_video(self._path(scene))
        path = picture_path(self.root, scene) if scene.kind == "prompt" else self._path(scene)
        return self._of_image(path)

    def _path(self, scene: PlannedScene) -> Path:
        return self.source if self.source.is_file() else self.source / scene.source

    def _of_image(self, path: Path) -> SceneInputs:
        image = read_image(path)
        given = (image.rgb.shape[1], image.rgb.shape[2])
        rgb = self._resized(image.rgb[None])
        known = None
        if image.focal_share is not None:
            known = intrinsics_of_focal(image.focal_share * given[1], *given)
            known = crop_and_resize_intrinsics(known, given, self._kept_size(given))
        prediction = self._predicted(rgb[0], known)
        scale = self._scale(prediction)
        depth = scene_depth(prediction.depth, scale)[None]
        return SceneInputs(rgb, depth, _still_cameras(prediction, 1), scale, False, image.notes)

    def _of_video(self, path: Path) -> SceneInputs:
        """A plain video, whose camera is taken to stand still."""
        num_frames = self.settings.num_frames
        frames = read_frames(path, num_frames)
        check_size(frames.rgb.shape[-2], frames.rgb.shape[-1], f"video {path}")
        rgb = self._resized(frames.rgb)
        first = self._predicted(rgb[0], None)
        scale = self._scale(first)
        predicted = [first.depth, *(self._predicted(image, first.intrinsics).depth for image in rgb[1:])]
        depth = scene_depth(aligned_sequence(torch.stack(predicted)), scale)
        notes = (*frames.notes, "camera taken to stand still")
        return SceneInputs(rgb, depth, _still_cameras(first, num_frames), scale, True, notes)

    def _of_vipe(self, name: str) -> SceneInputs:
        clip = read_vipe(
            self.source, name, num_frames=self.settings.num_frames, repeat_last=self.settings.repeat_last
        )
        clip = clip.resized(*self._kept_size((clip.cameras.height, clip.cameras.width)))
        scale = self._scale(clip.first_prediction())
        poses = clip.cameras.camera_to_world.clone()
        poses[:, :3, 3] *= scale.depth_factor
        cameras = replace(clip.cameras, camera_to_world=poses)
        depth = clip.depth * scale.depth_factor
        return SceneInputs(clip.rgb.float() / 255, depth, cameras, scale, True)

    def _resized(self, frames: Tensor) -> Float[Tensor, "S 3 H W"]:
        """Frames of 8 bits at the size that is kept, as colours from 0 to 1."""
        size = self._kept_size((frames.shape[-2], frames.shape[-1]))
        return resize_rgb(frames, *size).float() / 255

    def _kept_size(self, given: tuple[int, int]) -> tuple[int, int]:
        settings = self.settings
        return finer_size(given, VideoSize(settings.num_frames, settings.height, settings.width))

    def _predicted(self, image: Tensor, intrinsics: Tensor | None) -> DepthPrediction:
        return predicted_depth(self.estimator, image, intrinsics, self.settings.fov_x, self.device)

    def _scale(self, prediction: DepthPrediction) -> SceneScale:
        return scene_scale(
            prediction,
            units=self.settings.depth_units,
            centre_quantile=self.settings.centre_quantile,
            pose_scale=1.0,
        )


def _still_cameras(prediction: DepthPrediction, num_frames: int) -> CameraPath:
    """Cameras at the origin of the world."""
    assert prediction.intrinsics is not None, "predicted_depth fills it in"
    return still_path(prediction.intrinsics, num_frames, *prediction.depth.shape)


def picture_path(root: Path, scene: PlannedScene) -> Path:
    """Where the picture of a prompt lies."""
    return root / PICTURE_FOLDER / f"{scene.name}.png"


def predicted_depth(
    estimator: DepthEstimator,
    image: Float[Tensor, "3 H W"],
    intrinsics: Float[Tensor, " 4"] | None,
    fov_x: float,
    device: torch.device | str,
) -> DepthPrediction:
    """Depth of an image on the CPU, with the field of view `fov_x` where nobody knows the camera."""
    given = None if intrinsics is None else intrinsics.to(device)
    with torch.no_grad():
        found = estimator.predict(image.to(device), given)
    camera = found.intrinsics
    if camera is None:
        camera = intrinsics_of_fov(fov_x, *image.shape[1:])
    return replace(found, depth=found.depth.float().cpu(), intrinsics=camera.float().cpu())
