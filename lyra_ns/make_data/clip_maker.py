"""Makes the clips of one scene: inputs, cache, paths, teacher, depth of frames, files.

What a clip becomes depends on the scene's content, its number and the settings, and on nothing else;
meta/CLIP.json says how it was made, and equal clips have equal records. Clips of a data set can be sources,
too: their own cameras, first frame and, where it is stored, depth.

Views 6 to 11 of a dynamic scene are made on the reversed video. On disk their frames, depth, intrinsics and
poses run forward in time, of which the official script forgets the poses; their latents stay as they were
made, since nothing but the video of such views is read (docs/reference/gen3c.md, "Reversed video").

Depth of frames that a video model made is brought to the units of the scene frame by frame. What an estimator
says of a frame is true up to scale and shift of its inverse, at best. Where the 3D cache shows something the
depth is known, and the two numbers that fit best there are taken.

Shape letters: S frames of the source (1 of a still scene), L frames of a clip, H W image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cache3d.align import InverseDepthFit, align_inverse_depth
from lyra_ns.cache3d.cache import CacheSettings, SceneCache
from lyra_ns.camera_paths import CameraPathConfig, camera_path, follow, lyra_six, reversed_in_time, still_path
from lyra_ns.cameras import CameraPath, crop_and_resize_intrinsics
from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.data.atomic import write_whole
from lyra_ns.data.images import check_size, finer_size, read_image
from lyra_ns.data.pose_order import FIRST_FLIPPED_ID
from lyra_ns.data.resize import resize_depth, resize_rgb
from lyra_ns.data.store import current_versions, write_clip
from lyra_ns.data.video import VideoSize, read_frames
from lyra_ns.depth.base import DepthEstimator, DepthPrediction, intrinsics_of_focal, intrinsics_of_fov
from lyra_ns.depth.scale import SKY_DEPTH, SceneScale, scene_depth, scene_scale
from lyra_ns.depth.vipe import read_vipe
from lyra_ns.make_data.plan import PICTURE_FOLDER, Job, PlannedScene
from lyra_ns.make_data.settings import MakeDataSettings, settings_digest
from lyra_ns.make_data.sources import clips_digest, file_scene_digest
from lyra_ns.teachers.base import CameraVideoTeacher, TeacherClip, TeacherRequest
from lyra_ns.teachers.replay import ClipOnDisk, clips_on_disk
from lyra_ns.teachers.warp import merged

FLIPPED_LABEL = "reversed"
"""Tells the draws of reversed views from those of the forward ones."""


@dataclass(frozen=True)
class ClipPath:
    """The camera path of one clip."""

    trajectory: int
    """Number of the clip."""
    config: CameraPathConfig | None
    """Its kind and the drawn distance; None for cameras that were given."""
    cameras: CameraPath
    """Cameras [L] along which the clip is made: of a flipped one in the time of the reversed video."""

    @property
    def is_flipped(self) -> bool:
        """Whether it is made on the reversed video."""
        return self.config is not None and self.trajectory >= FIRST_FLIPPED_ID


def scene_path(
    settings: MakeDataSettings, digest: str, trajectory: int, source: CameraPath, centre_depth: float
) -> ClipPath:
    """The path of clip `trajectory` of the scene with this digest, along its source cameras [L] or [1].

    The draw follows from seed, digest and number alone.
    """
    is_flipped = trajectory >= FIRST_FLIPPED_ID
    label = f"{digest}/{FLIPPED_LABEL}" if is_flipped else digest
    number = trajectory - FIRST_FLIPPED_ID if is_flipped else trajectory
    config = lyra_six(
        settings.seed,
        label,
        distance_factor=settings.distance_factor,
        look_at=settings.look_at,
        seeding=settings.seeding,
    )[number]
    if is_flipped:
        source = reversed_in_time(source)
    path = camera_path(
        config,
        centre_depth=centre_depth,
        num_frames=settings.num_frames,
        intrinsics=source.intrinsics[0],
        height=source.height,
        width=source.width,
    )
    cameras = follow(path, source)
    return ClipPath(trajectory, config, cameras)


def in_forward_time(clip: TeacherClip, cameras: CameraPath) -> tuple[TeacherClip, CameraPath]:
    """A clip made on the reversed video, and its cameras, as they are stored; latents stay as they are."""
    depth = None if clip.depth is None else clip.depth.flip(0)
    return replace(clip, video=clip.video.flip(0), depth=depth), reversed_in_time(cameras)


def noise_seed(seed: int, digest: str, trajectory: int) -> int:
    """Start of a clip's noise, from seed, digest and number."""
    content = hashlib.sha256(f"noise/{seed}/{digest}/{trajectory}".encode()).digest()
    return int.from_bytes(content[:4], "little") & torch.iinfo(torch.int32).max


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


FRAMES_AT_ONCE = 4
"""Frames of the cache that are rendered together."""


@torch.no_grad()
def estimated_depth(
    video: UInt8[Tensor, "L 3 H W"],
    cameras: CameraPath,
    cache: SceneCache,
    estimator: DepthEstimator,
) -> Float[Tensor, "L H W"]:
    """z-depth of frames along a path [L] in the units of the cache, 0 where unknown; on the CPU.

    A frame that shows too little of the cache is fitted like the one before it. ValueError if the first one
    does.
    """
    device, farthest = cache.frames.rgb.device, cache.settings.farthest_depth
    depths: list[Tensor] = []
    fit: InverseDepthFit | None = None
    for image, known, lens in zip(video, _cache_depth(cache, cameras), cameras.intrinsics, strict=True):
        predicted = estimator.predict(image.to(device).float() / 255, lens.to(device)).depth.float().cpu()
        fit = _fit_or_earlier(predicted, known, fit)
        depths.append(fit.applied(predicted, farthest))
    return torch.stack(depths)


def aligned_sequence(depth: Float[Tensor, "L H W"]) -> Float[Tensor, "L H W"]:
    """Depth of a video from a camera that stands still, every frame in the units of the first one."""
    aligned = [depth[0]]
    fit: InverseDepthFit | None = None
    for image in depth[1:]:
        fit = _fit_or_earlier(image, depth[0], fit)
        aligned.append(fit.applied(image))
    return torch.stack(aligned)


def _fit_or_earlier(
    predicted: Float[Tensor, "H W"], known: Float[Tensor, "H W"], earlier: InverseDepthFit | None
) -> InverseDepthFit:
    """How the depth of a frame fits what is known of it, or the earlier fit where that is too little."""
    try:
        return align_inverse_depth(predicted, known)
    except ValueError:
        if earlier is None:
            raise
        return earlier


def _cache_depth(cache: SceneCache, cameras: CameraPath) -> Float[Tensor, "L H W"]:
    """The nearest depth that the cache shows, on the CPU; 0 in holes."""
    is_video = cache.policy == "per_frame"
    parts = [
        merged(cache.render(cameras[begin : begin + FRAMES_AT_ONCE], begin if is_video else 0)).depth
        for begin in range(0, cameras.shape[0], FRAMES_AT_ONCE)
    ]
    return torch.cat([part.float().cpu() for part in parts])


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


FOLDER = "meta"


@dataclass(frozen=True)
class ClipRecord:
    """What is written about one clip."""

    scene: PlannedScene
    """Its scene."""
    path: ClipPath
    """Its camera path."""
    prompt: str | None
    """What it should show."""
    noise_seed: int
    """Start of its noise."""
    scale: SceneScale | None
    """Units of the scene; None where nothing had to be estimated."""
    source_notes: tuple[str, ...]
    """What was done to the source."""
    teacher: str
    """Name of the teacher."""
    teacher_notes: dict[str, Any]
    """What the teacher says about the clip."""
    codec: VideoLatentSpec
    """Codec of its latents."""
    depth: str | None
    """Where the depth of its frames is from; None without depth."""

    def as_json(self, settings: MakeDataSettings) -> dict[str, Any]:
        """The record as it is written."""
        config = self.path.config
        return {
            "scene": self.scene.name,
            "trajectory": self.path.trajectory,
            "source": {"kind": self.scene.kind, "name": self.scene.source, "digest": self.scene.digest},
            "source_notes": list(self.source_notes),
            "path": None if config is None else asdict(config),
            "is_flipped": self.path.is_flipped,
            "prompt": self.prompt,
            "negative_prompt": settings.negative_prompt,
            "seed": settings.seed,
            "noise_seed": self.noise_seed,
            "scene_scale": None if self.scale is None else asdict(self.scale),
            "depth": self.depth,
            "teacher": self.teacher,
            "teacher_notes": self.teacher_notes,
            "codec": self.codec.codec,
            "codec_digest": self.codec.digest,
            "settings_digest": settings_digest(settings),
            "versions": current_versions(),
        }


def record_path(folder: Path, scene: str, trajectory: int) -> Path:
    """Where the record of a clip lies; `folder` holds the numbered ones."""
    return folder / str(trajectory) / FOLDER / f"{scene}.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record whole."""
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False).encode())


def codec_of_record(path: Path) -> VideoLatentSpec | None:
    """Name and digest of the codec of a clip's latents; None if there is no record."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        return VideoLatentSpec(content["codec"], digest=content["codec_digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"record {path} must be JSON as `ns-lyra make-data` writes it, found damage ({error}): delete "
            "the pose file of this clip, then it is made again"
        ) from error


class _ClipInputs(NamedTuple):
    """What one clip is made from."""

    path: ClipPath
    image: Tensor
    cache: SceneCache | None
    scale: SceneScale | None
    notes: tuple[str, ...]


@dataclass
class ClipMaker:
    """A worker's models, and how it makes clips with them."""

    settings: MakeDataSettings
    """How the data set is made."""
    source: Path
    """Input of the run."""
    root: Path
    """Folder of the data set."""
    folder: Path
    """Folder in it that holds the numbered ones."""
    teacher: CameraVideoTeacher
    """Source of clips."""
    estimator: DepthEstimator
    """Source of depth."""
    device: torch.device
    """Where caches lie and depth is estimated."""

    def __post_init__(self) -> None:
        self._reader = InputReader(self.settings, self.source, self.root, self.estimator, self.device)
        self._latest: tuple[str, SceneInputs] | None = None

    def __call__(self, job: Job) -> VideoLatentSpec:
        """Writes the clips of a job and returns the codec of their latents; raises what went wrong.

        Clips that the teacher makes together are written before the next: at full size each takes a GB.
        """
        self._check_source(job.scene)
        inputs = self._inputs(job)
        while together := list(islice(inputs, self.settings.teacher.samples_at_once)):
            self._make(job.scene, together)
        return self.teacher.codec.spec

    def _make(self, scene: PlannedScene, inputs: list[_ClipInputs]) -> None:
        clips = self.teacher.generate([self._request(scene, each) for each in inputs])
        for each, clip in zip(inputs, clips, strict=True):
            self._write(scene, each, clip)

    @cached_property
    def _given_clips(self) -> dict[tuple[str, int], ClipOnDisk]:
        """The clips that are the source, by scene and trajectory."""
        return {(clip.scene, clip.trajectory): clip for clip in clips_on_disk(self.source)}

    def _check_source(self, scene: PlannedScene) -> None:
        """ValueError if the source is not what was planned: clips would not follow from their record."""
        if scene.kind == "clips":
            clips = [self._given_clips.get((scene.source, number)) for number in scene.trajectories]
            found = clips_digest(clip for clip in clips if clip is not None)
        else:
            found = file_scene_digest(scene.kind, scene.source, self.source)
        if found != scene.digest:
            raise ValueError(
                f"source {scene.source} must be what it was when it was planned ({scene.digest[:8]}), found "
                f"{found[:8]}: it changed meanwhile; run the command again to plan it anew"
            )

    def _inputs(self, job: Job) -> Iterator[_ClipInputs]:
        if job.scene.kind == "clips":
            for trajectory in job.trajectories:
                yield self._given(job.scene, trajectory)
            return
        inputs = self._scene_inputs(job.scene)
        caches: dict[bool, tuple[SceneInputs, SceneCache]] = {}
        height, width = self.settings.height, self.settings.width
        for trajectory in job.trajectories:
            path = scene_path(
                self.settings,
                job.scene.digest,
                trajectory,
                inputs.cameras.resized(height, width),
                inputs.scale.centre_depth,
            )
            if path.is_flipped not in caches:
                turned = inputs.in_reverse() if path.is_flipped else inputs
                caches[path.is_flipped] = turned, turned.cache(self.device)
            turned, cache = caches[path.is_flipped]
            yield _ClipInputs(path, turned.first_frame(height, width), cache, inputs.scale, inputs.notes)

    def _scene_inputs(self, scene: PlannedScene) -> SceneInputs:
        """Inputs of a scene, kept for its next job."""
        if self._latest is None or self._latest[0] != scene.digest:
            self._latest = None  # Frees the earlier scene before the next one is read.
            self._latest = scene.digest, self._reader.read(scene)
        return self._latest[1]

    def _given(self, scene: PlannedScene, trajectory: int) -> _ClipInputs:
        given = read_given_clip(self._given_clips[scene.source, trajectory], self.settings)
        needs_cache = self.teacher.needs_cache or self.settings.frame_depth == "estimated"
        units = given.with_cache(self.estimator, self.settings, self.device) if needs_cache else None
        cache, scale = units or (None, None)
        return _ClipInputs(ClipPath(trajectory, None, given.cameras), given.image, cache, scale, ())

    def _request(self, scene: PlannedScene, inputs: _ClipInputs) -> TeacherRequest:
        # Teachers draw noise by the name of the scene, which must not decide anything; clips are found by it.
        return TeacherRequest(
            scene=scene.source if scene.kind == "clips" else scene.digest,
            trajectory=inputs.path.trajectory,
            cameras=inputs.path.cameras,
            image=inputs.image,
            cache=inputs.cache,
            prompt=scene.prompt or self.settings.prompt,
            negative_prompt=self.settings.negative_prompt,
            seed=noise_seed(self.settings.seed, scene.digest, inputs.path.trajectory),
        )

    def _write(self, scene: PlannedScene, inputs: _ClipInputs, clip: TeacherClip) -> None:
        """Files of one clip; the pose comes last, and the record before it."""
        path = inputs.path
        depth, origin, scale = self._depth(scene, inputs, clip)
        record = ClipRecord(
            scene=scene,
            path=path,
            prompt=scene.prompt or self.settings.prompt,
            noise_seed=noise_seed(self.settings.seed, scene.digest, path.trajectory),
            scale=scale,
            source_notes=inputs.notes,
            teacher=self.teacher.name,
            teacher_notes=clip.notes,
            codec=self.teacher.codec.spec,
            depth=origin,
        )
        clip, cameras = TeacherClip(clip.z, clip.video, depth, clip.notes), path.cameras
        if path.is_flipped:
            clip, cameras = in_forward_time(clip, cameras)
        where = record_path(self.folder, scene.name, path.trajectory)
        write_record(where, record.as_json(self.settings))
        write_clip(
            self.folder,
            scene.name,
            path.trajectory,
            cameras,
            z=clip.z,
            rgb=clip.video,
            depth=clip.depth,
            latent_format=self.settings.latent_format,
        )

    def _depth(
        self, scene: PlannedScene, inputs: _ClipInputs, clip: TeacherClip
    ) -> tuple[Tensor | None, str | None, SceneScale | None]:
        """Depth of the frames as they were made, where it is from, and the units."""
        wanted = self.settings.frame_depth
        if wanted == "teacher" or (wanted == "auto" and clip.depth is not None):
            return clip.depth, None if clip.depth is None else self.teacher.name, inputs.scale
        cache, scale = inputs.cache, inputs.scale
        if cache is None:
            given = read_given_clip(self._given_clips[scene.source, inputs.path.trajectory], self.settings)
            cache, scale = given.with_cache(self.estimator, self.settings, self.device)
        depth = estimated_depth(clip.video, inputs.path.cameras, cache, self.estimator)
        return depth, f"{self.estimator.name}, fitted to the 3D cache", scale
