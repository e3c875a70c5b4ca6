"""Scenes as sources of tensors: read from disk when asked, or held whole in memory (on a GPU, say).

Trajectories go by id; held-out paths count from `NOVEL_FIRST_ID`.

Shape letters: V trajectories, I trajectories with latents, L frames, C T h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.data.pose_order import FIRST_FLIPPED_ID
from lyra_ns.data.types import NOVEL_FIRST_ID, Clip, Scene


@dataclass(frozen=True)
class StoredScene:
    """A scene that is read from disk piece by piece; sizes are checked against each other on the way."""

    scene: Scene
    """The scene's clips."""
    novel: Mapping[int, Clip] = field(default_factory=dict)
    """Held-out camera paths by number."""
    wanted_frames: int | None = None
    """Frames to use of each clip (8k + 1), from the first; None takes all."""
    spec: VideoLatentSpec = VideoLatentSpec("unknown")  # noqa: RUF009  frozen
    """How latents relate to videos."""
    _cameras: dict[int, CameraPath] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the scene."""
        return self.scene.name

    @property
    def is_dynamic(self) -> bool:
        """Whether things move."""
        return self.scene.is_dynamic

    @property
    def input_ids(self) -> list[int]:
        """Trajectories with latents; of dynamic scenes only those in forward time (0 to 5)."""
        return [
            trajectory
            for trajectory, clip in self.scene.clips.items()
            if clip.has("latent") and not (self.is_dynamic and trajectory >= FIRST_FLIPPED_ID)
        ]

    @property
    def target_ids(self) -> list[int]:
        """All trajectories of the scene."""
        return list(self.scene.clips)

    @property
    def novel_ids(self) -> list[int]:
        """Ids of the held-out camera paths."""
        return [NOVEL_FIRST_ID + number for number in sorted(self.novel)]

    @property
    def num_frames(self) -> int:
        """Frames used of each clip."""
        return self.cameras(self.target_ids[0]).shape[0]

    def cameras(self, trajectory: int) -> CameraPath:
        """Cameras [L] of the frames in use; ValueError if the clip is too short."""
        if trajectory not in self._cameras:
            self._cameras[trajectory] = self._read_cameras(trajectory)
        return self._cameras[trajectory]

    def latents(self, trajectory: int) -> Float[Tensor, "C T h w"]:
        """Latents of the frames in use; ValueError unless their size fits the video's."""
        z, cameras = self._clip(trajectory).latents(), self.cameras(trajectory)
        latent_frames = (cameras.shape[0] - 1) // self.spec.temporal_stride + 1
        check_latent_size(z, self._label(trajectory), self.spec, cameras)
        if z.shape[1] < latent_frames:
            raise ValueError(
                f"latent of {self._label(trajectory)} must have {latent_frames} latent frames for "
                f"{cameras.shape[0]} frames, found {z.shape[1]}: generate the clip again"
            )
        return z[:, :latent_frames]

    def rgb(self, trajectory: int, frames: Sequence[int]) -> UInt8[Tensor, "n 3 H W"]:
        """Stored frames; ValueError unless they have the cameras' image size."""
        images = self._clip(trajectory).rgb(frames)
        check_image_size(images, f"rgb of {self._label(trajectory)}", self.cameras(trajectory))
        return images

    def depth(self, trajectory: int, frames: Sequence[int]) -> Float[Tensor, "n H W"]:
        """z-depth; ValueError unless it has the cameras' image size."""
        images = self._clip(trajectory).depth(frames)
        check_image_size(images, f"depth of {self._label(trajectory)}", self.cameras(trajectory))
        return images

    def _clip(self, trajectory: int) -> Clip:
        if trajectory >= NOVEL_FIRST_ID:
            return self.novel[trajectory - NOVEL_FIRST_ID]
        return self.scene.clips[trajectory]

    def _label(self, trajectory: int) -> str:
        kind, number = ("trajectory", trajectory)
        if trajectory >= NOVEL_FIRST_ID:
            kind, number = ("held-out path", trajectory - NOVEL_FIRST_ID)
        return f"scene {self.name}, {kind} {number}"

    def _read_cameras(self, trajectory: int) -> CameraPath:
        path = self._clip(trajectory).cameras()
        num_frames = self.wanted_frames or path.shape[0]
        if path.shape[0] < num_frames:
            raise ValueError(
                f"{self._label(trajectory)} must have at least {num_frames} frames, found {path.shape[0]}: "
                "ask for fewer frames or leave the clip out"
            )
        times = torch.linspace(0.0, 1.0, num_frames) if num_frames > 1 else torch.zeros(1)
        return replace(path[:num_frames], times=times)


@dataclass(frozen=True)
class LoadedScene:
    """A scene held in memory. Cameras stay on the CPU, the rest moves with `to`."""

    name: str
    """Name of the scene."""
    input_ids: list[int]
    """Trajectories with latents, ascending."""
    target_ids: list[int]
    """All trajectories, ascending, without the held-out paths."""
    novel_ids: list[int]
    """Held-out camera paths, from `NOVEL_FIRST_ID` up."""
    input_latents: Float[Tensor, "I C T h w"]
    """Latents in diffusion space, one row per input id."""
    camera_paths: CameraPath
    """Cameras [V, L]: one row per target id, then per novel id; on the CPU."""
    all_rgb: UInt8[Tensor, "V L 3 H W"] | None = None
    """Frames in the same rows, if loaded."""
    all_depth: Float[Tensor, "V L H W"] | None = None
    """Half-precision z-depth in the same rows, if loaded."""
    is_dynamic: bool = False
    """Whether things move."""

    @property
    def num_frames(self) -> int:
        """Frames per clip."""
        return self.camera_paths.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the latents and images are."""
        return self.input_latents.device

    def to(self, device: torch.device | str) -> LoadedScene:
        """The same scene with latents and images on `device`."""
        return replace(
            self,
            input_latents=self.input_latents.to(device, non_blocking=True),
            all_rgb=None if self.all_rgb is None else self.all_rgb.to(device, non_blocking=True),
            all_depth=None if self.all_depth is None else self.all_depth.to(device, non_blocking=True),
        )

    def latents(self, trajectory: int) -> Float[Tensor, "C T h w"]:
        """Latents in diffusion space."""
        return self.input_latents[self.input_ids.index(trajectory)]

    def cameras(self, trajectory: int) -> CameraPath:
        """Cameras [L], as stored."""
        return self.camera_paths[self._row(trajectory)]

    def rgb(self, trajectory: int, frames: Sequence[int]) -> UInt8[Tensor, "n 3 H W"]:
        """Stored frames; ValueError if the scene was loaded without."""
        return self._pick(self.all_rgb, "rgb", trajectory, frames)

    def depth(self, trajectory: int, frames: Sequence[int]) -> Float[Tensor, "n H W"]:
        """z-depth; ValueError if the scene was loaded without."""
        return self._pick(self.all_depth, "depth", trajectory, frames)

    def _row(self, trajectory: int) -> int:
        return (self.target_ids + self.novel_ids).index(trajectory)

    def _pick(self, images: Tensor | None, what: str, trajectory: int, frames: Sequence[int]) -> Tensor:
        if images is None:
            raise ValueError(
                f"scene {self.name} was loaded without {what}, which the batch needs: load it with "
                f"with_{what}=True"
            )
        row = images[self._row(trajectory)]
        if list(frames) == list(range(len(row))):
            return row
        # Stacked views instead of fancy indexing, which would copy the index to the device and wait for it.
        return torch.stack([row[frame] for frame in frames])


SceneSource = StoredScene | LoadedScene
"""What batches are made from: both answer the same questions, by trajectory id."""


def load_scene(
    scene: Scene,
    novel: Mapping[int, Clip] | None = None,
    *,
    num_frames: int | None = None,
    with_rgb: bool = False,
    with_depth: bool = True,
    latent_dtype: torch.dtype = torch.float32,
    spec: VideoLatentSpec | None = None,
) -> LoadedScene:
    """The scene, whole, in CPU memory; clips are cut to their first `num_frames` frames if given.

    ValueError or FileNotFoundError, naming the clip, when one is missing, damaged or of another size.
    """
    source = StoredScene(scene, novel or {}, num_frames, spec or VideoLatentSpec("unknown"))
    if not source.input_ids:
        raise FileNotFoundError(
            f"scene {scene.name} has no latents: expected them in latent/{scene.name}.pkl"
        )
    trajectories = source.target_ids + source.novel_ids
    frames = range(source.num_frames)
    rgb = [source.rgb(trajectory, frames) for trajectory in trajectories] if with_rgb else None
    depth = [source.depth(trajectory, frames).half() for trajectory in trajectories] if with_depth else None
    latents = [source.latents(trajectory).to(latent_dtype) for trajectory in source.input_ids]
    paths = [source.cameras(trajectory) for trajectory in trajectories]
    _check_same([tuple(z.shape) for z in latents], source.input_ids, scene.name, "latent shape")
    sizes = [(*path.shape, path.height, path.width) for path in paths]
    _check_same(sizes, trajectories, scene.name, "frames, height and width")
    return LoadedScene(
        name=scene.name,
        input_ids=source.input_ids,
        target_ids=source.target_ids,
        novel_ids=source.novel_ids,
        input_latents=torch.stack(latents),
        camera_paths=stack_cameras(paths),
        all_rgb=None if rgb is None else torch.stack(rgb),
        all_depth=None if depth is None else torch.stack(depth),
        is_dynamic=scene.is_dynamic,
    )


def check_latent_size(z: Tensor, label: str, spec: VideoLatentSpec, cameras: CameraPath) -> None:
    """ValueError unless latents have the codec's channels and cover the cameras' image."""
    stride = spec.spatial_stride
    expected = (spec.num_channels, cameras.height // stride, cameras.width // stride)
    found = (z.shape[0], *z.shape[2:])
    if found[0] != expected[0]:
        raise ValueError(
            f"latent of {label} must have {expected[0]} channels in [C, T, h, w], found shape "
            f"{tuple(z.shape)}: encode the clip with an 8x8x8 codec of {expected[0]} channels"
        )
    if found != expected:
        raise ValueError(
            f"latent of {label} must be {expected[1]}x{expected[2]} for a {cameras.height}x{cameras.width} "
            f"video, found {found[1]}x{found[2]}: video and latent come from different sizes, write one again"
        )


def check_image_size(images: Tensor, label: str, cameras: CameraPath) -> None:
    """ValueError unless images have the cameras' size."""
    if tuple(images.shape[-2:]) != (cameras.height, cameras.width):
        raise ValueError(
            f"{label} must be {cameras.height}x{cameras.width} like the clip's video, found "
            f"{images.shape[-2]}x{images.shape[-1]}: write it at the video's size"
        )


def _check_same(values: list, trajectories: list[int], name: str, what: str) -> None:
    for trajectory, value in zip(trajectories, values, strict=True):
        if value != values[0]:
            raise ValueError(
                f"scene {name} must have one {what} in all trajectories, found {values[0]} in "
                f"{trajectories[0]} and {value} in {trajectory}: leave the odd one out or ask for num_frames"
            )
