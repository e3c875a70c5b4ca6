"""From plans to batches: what is read at once, and what waits for the codec.

Worker processes gather; the process with the accelerator decodes and encodes what is pending. Indices are
Python numbers and views are stacked, so nothing here makes a GPU wait for the host or the host for a GPU.

Shape letters: B scenes, V trajectories, L frames, M targets per scene, N clips to decode, F frames from
files, C T h w latent, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from lyra_ns.cameras import CameraPath, relative_to, stack_cameras
from lyra_ns.codec.base import FrameDecoder, VideoCodec
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.data.resize import ResizedScene
from lyra_ns.data.scenes import LoadedScene, SceneSource, StoredScene
from lyra_ns.data.types import SceneBatch
from lyra_ns.data.view_sampling import FrameSource, SamplingConfig, ScenePlan, draw_plans

DECODED_NUMBERS_AT_ONCE = 2**28
"""Numbers of decoded video held at once (1 GiB): one 121 x 704 x 1280 clip, or a hundred small ones."""


@dataclass(frozen=True)
class FrameSources:
    """Where the target frames, and the input frames of a warm start, come from."""

    teacher_latents: Float[Tensor, "N C T h w"] | None
    """Latents of the clips to decode; with a warm start from latents the B V inputs come first."""
    decoded_slots: list[tuple[int, int, int]]
    """Clip row, frame, and place among the B M targets, of each target that is decoded."""
    file_frames: UInt8[Tensor, "F 3 H W"] | None
    """Target frames read from files."""
    file_slots: list[int]
    """Place among the B M targets of each of them."""
    input_frames: UInt8[Tensor, "inputs L 3 H W"] | None
    """Frames of the B V inputs, to be encoded or for a warm start from files."""

    @property
    def num_clips(self) -> int:
        """Clips to decode."""
        return 0 if self.teacher_latents is None else len(self.teacher_latents)

    def to(self, device: torch.device | str) -> FrameSources:
        """The same on `device`."""
        return replace(self, **moved(vars(self), device))


@dataclass(frozen=True)
class PendingBatch:
    """A batch whose target frames are not decoded yet."""

    ready: dict[str, Any]
    """The fields of the SceneBatch that are complete."""
    sources: FrameSources
    """Where the missing fields come from."""
    config: SamplingConfig
    """How the batch was drawn."""

    def to(self, device: torch.device | str) -> PendingBatch:
        """The same on `device`."""
        ready = self.ready | moved(self.ready, device)
        return replace(self, ready=ready, sources=self.sources.to(device))

    @torch.no_grad()
    def complete(self, codec: VideoCodec) -> SceneBatch:
        """The batch with its target frames and latents; the codec must be on the batch's device."""
        num_scenes, num_inputs = self.ready["cameras"].shape[:2]
        targets = dict(self._file_targets())
        cells = self._file_cells()
        num_clips = self.sources.num_clips
        if isinstance(codec, FrameDecoder):
            targets |= self._single_frames(codec)
            num_clips = num_scenes * num_inputs if self._inputs_are_decoded else 0
        for first_row, videos in self._decoded(codec, num_clips):
            if not isinstance(codec, FrameDecoder):
                targets |= self._picked(first_row, videos)
            if self._inputs_are_decoded:
                inputs = videos[: max(num_scenes * num_inputs - first_row, 0)]
                cells += [self._cell_means(video.transpose(0, 1)) for video in inputs]
        target_rgb = torch.stack([targets[slot] for slot in sorted(targets)])
        ready = self.ready
        if self.config.inputs == "encoded":
            ready = {**ready, "latents": self._encoded(codec).unflatten(0, (num_scenes, num_inputs))}
        return SceneBatch(
            **ready,
            target_rgb=target_rgb.unflatten(0, (num_scenes, -1)),
            input_rgb=torch.stack(cells).unflatten(0, (num_scenes, num_inputs)) if cells else None,
        )

    def _encoded(self, codec: VideoCodec) -> Float[Tensor, "inputs C T h w"]:
        """Latents of the input frames, in diffusion space as stored ones are; a bounded number at a time."""
        clips = self.sources.input_frames
        assert clips is not None, "gather reads the frames that are to be encoded"
        at_once = max(1, DECODED_NUMBERS_AT_ONCE // clips[0].numel())
        groups = (group.transpose(1, 2).float() / 127.5 - 1 for group in clips.split(at_once))
        return torch.cat([codec.to_diffusion(codec.encode(group)) for group in groups])

    @property
    def _inputs_are_decoded(self) -> bool:
        return self.config.warm_start and self.config.target_frames == "latents"

    def _file_targets(self) -> Iterator[tuple[int, Tensor]]:
        if self.sources.file_frames is not None:
            images = (self.sources.file_frames.float() / 255).permute(0, 2, 3, 1)
            yield from zip(self.sources.file_slots, images, strict=True)

    def _file_cells(self) -> list[Tensor]:
        clips = self.sources.input_frames if self.config.warm_start else None
        return [] if clips is None else [self._cell_means(clip.float() / 255) for clip in clips]

    def _single_frames(self, codec: Any) -> dict[int, Tensor]:
        """The decoded target frames by place, each by itself. `codec` is a VideoCodec and a FrameDecoder."""
        if self.sources.teacher_latents is None or not self.sources.decoded_slots:
            return {}
        raw = codec.from_diffusion(self.sources.teacher_latents.float())
        rows, frames, slots = zip(*self.sources.decoded_slots, strict=True)
        images = _to_unit_range(codec.decode_frames([raw[row] for row in rows], frames))
        return dict(zip(slots, images.permute(0, 2, 3, 1), strict=True))

    def _decoded(self, codec: VideoCodec, num_clips: int) -> Iterator[tuple[int, Tensor]]:
        """First row and videos [n, 3, L, H, W] from 0 to 1 of the first clips, a bounded number at a time."""
        cameras: CameraPath = self.ready["cameras"]
        numbers_per_clip = 3 * cameras.shape[-1] * cameras.height * cameras.width
        at_once = max(1, DECODED_NUMBERS_AT_ONCE // numbers_per_clip)
        latents = self.sources.teacher_latents
        if latents is None:
            return
        for row in range(0, num_clips, at_once):
            z = latents[row : min(row + at_once, num_clips)]
            yield row, _to_unit_range(codec.decode(codec.from_diffusion(z.float())))

    def _picked(self, first_row: int, videos: Tensor) -> dict[int, Tensor]:
        """The target frames among these clips, by place. Stacking copies them, so the clips can be freed."""
        here = [
            (row - first_row, frame, slot)
            for row, frame, slot in self.sources.decoded_slots
            if first_row <= row < first_row + len(videos)
        ]
        if not here:
            return {}
        images = torch.stack([videos[row, :, frame].permute(1, 2, 0) for row, frame, _ in here])
        return dict(zip((slot for _, _, slot in here), images, strict=True))

    def _cell_means(self, frames: Float[Tensor, "L 3 H W"]) -> Float[Tensor, "L rows columns 3"]:
        return functional.avg_pool2d(frames, self.config.cell_size).permute(0, 2, 3, 1)


def _to_unit_range(colours: Tensor) -> Tensor:
    return colours.add(1).mul_(0.5).clamp_(0, 1)


def moved(values: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The tensors and cameras among `values`, on `device`."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value.to(device)
        for name, value in values.items()
        if isinstance(value, Tensor | CameraPath)
    }


GatheredScene = StoredScene | LoadedScene | ResizedScene
ScenePlans = Sequence[tuple[GatheredScene, ScenePlan]]


def gather(scenes: Sequence[SceneSource], plans: Sequence[ScenePlan], config: SamplingConfig) -> PendingBatch:
    """The tensors that the plans ask for, on the scenes' device, frames not decoded yet.

    Errors of the scenes (missing depth, damaged latents) come through as they are.
    """
    pairs = [(_at_size(scene, config), plan) for scene, plan in zip(scenes, plans, strict=True)]
    latents = _read_latents(pairs, config)
    sources = _frame_sources(pairs, latents, config)
    cameras, target_cameras = _relative_cameras(pairs)
    if config.warm_start:
        _check_cells(cameras, config.cell_size)
    ready: dict[str, Any] = {
        "names": [scene.name for scene in scenes],
        "trajectories": [list(plan.inputs) for plan in plans],
        "target_depth": _target_depth(pairs) if config.with_depth else None,
        "input_depth": _input_depth(pairs, config.cell_size) if config.warm_start else None,
        "is_dynamic": scenes[0].is_dynamic,
        "target_ids": [list(plan.targets) for plan in plans],
    }
    if config.inputs == "stored":
        ready["latents"] = _input_latents(pairs, latents)
    # Images and latents are where the scenes are, cameras always on the host.
    device = ready["latents"].device if sources.input_frames is None else sources.input_frames.device
    ready |= {
        "cameras": cameras.to(device),
        "target_cameras": target_cameras.to(device),
        "target_time": _target_time(pairs, device),
    }
    return PendingBatch(ready, sources, config)


def _at_size(scene: SceneSource, config: SamplingConfig) -> GatheredScene:
    return scene if config.image_size is None else ResizedScene(scene, *config.image_size)


def _input_latents(pairs: ScenePlans, latents: dict[tuple[int, int], Tensor]) -> Float[Tensor, "B V C T h w"]:
    inputs = [[latents[index, each] for each in plan.inputs] for index, (_, plan) in enumerate(pairs)]
    return _stacked([_stacked(z, "latents") for z in inputs], "latents").float()


def _is_decoded(scene: GatheredScene, trajectory: int, config: SamplingConfig) -> bool:
    return config.target_frames == "latents" and trajectory in scene.input_ids


def _read_latents(pairs: ScenePlans, config: SamplingConfig) -> dict[tuple[int, int], Tensor]:
    """Latents of inputs and of other clips to decode, each read once, by (place of scene, trajectory)."""
    latents = {}
    for index, (scene, plan) in enumerate(pairs):
        decoded = [trajectory for trajectory, _ in plan.targets if _is_decoded(scene, trajectory, config)]
        inputs = plan.inputs if config.inputs == "stored" else []
        for trajectory in dict.fromkeys([*inputs, *decoded]):
            latents[index, trajectory] = scene.latents(trajectory)
    return latents


def _frame_sources(
    pairs: ScenePlans, latents: dict[tuple[int, int], Tensor], config: SamplingConfig
) -> FrameSources:
    num_targets = len(pairs[0][1].targets)
    clips: dict[tuple[int, int], int] = {}
    if config.warm_start and config.target_frames == "latents":
        for index, (_, plan) in enumerate(pairs):
            for trajectory in plan.inputs:
                clips[index, trajectory] = len(clips)
    reads_inputs = config.inputs == "encoded" or (config.warm_start and config.target_frames == "rgb")
    decoded_slots, file_frames, file_slots, input_frames = [], [], [], []
    for index, (scene, plan) in enumerate(pairs):
        from_files = []
        for slot, (trajectory, frame) in enumerate(plan.targets, index * num_targets):
            if _is_decoded(scene, trajectory, config):
                row = clips.setdefault((index, trajectory), len(clips))
                decoded_slots.append((row, frame, slot))
            else:
                from_files.append((trajectory, frame))
                file_slots.append(slot)
        wanted = _input_slots(scene, plan) if reads_inputs else []
        # Together, so that a video which is input and target is decoded once.
        images = _images(scene.rgb, [*wanted, *from_files])
        input_frames += images[: len(wanted)]
        file_frames += images[len(wanted) :]
    num_inputs = sum(len(plan.inputs) for _, plan in pairs)
    return FrameSources(
        teacher_latents=_stacked([latents[key] for key in clips], "latents") if clips else None,
        decoded_slots=decoded_slots,
        file_frames=_stacked(file_frames, "frames") if file_frames else None,
        file_slots=file_slots,
        input_frames=(
            _stacked(input_frames, "frames").unflatten(0, (num_inputs, -1)) if input_frames else None
        ),
    )


def _input_frames(scene: GatheredScene, plan: ScenePlan) -> Sequence[int]:
    return range(scene.num_frames) if plan.input_frames is None else plan.input_frames


def _input_slots(scene: GatheredScene, plan: ScenePlan) -> list[tuple[int, int]]:
    """Trajectory and frame of every image that goes in, in the order of the inputs."""
    return [(trajectory, frame) for trajectory in plan.inputs for frame in _input_frames(scene, plan)]


def _images(read: Callable[[int, Sequence[int]], Tensor], targets: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The image of each target; every trajectory is opened once, its frames read in ascending order."""
    found: dict[tuple[int, int], Tensor] = {}
    for trajectory in dict.fromkeys(trajectory for trajectory, _ in targets):
        frames = sorted({frame for each, frame in targets if each == trajectory})
        images = read(trajectory, frames)
        found |= {(trajectory, frame): image for frame, image in zip(frames, images, strict=True)}
    return [found[target] for target in targets]


def _target_depth(pairs: ScenePlans) -> Float[Tensor, "B M H W"]:
    images = [image for scene, plan in pairs for image in _images(scene.depth, plan.targets)]
    return _stacked(images, "depth").float().unflatten(0, (len(pairs), -1))


def _input_depth(pairs: ScenePlans, cell_size: int) -> Float[Tensor, "B V L rows columns"]:
    """Depth at the pixel just behind each cell's centre (of even sizes it lies between pixels)."""
    start, clips = cell_size // 2, []
    for scene, plan in pairs:
        images = _images(scene.depth, _input_slots(scene, plan))
        clips.append(_stacked([image[start::cell_size, start::cell_size] for image in images], "depth"))
    num_inputs = len(pairs[0][1].inputs)
    return _stacked(clips, "depth").float().unflatten(1, (num_inputs, -1))


def _check_cells(cameras: CameraPath, cell_size: int) -> None:
    if cameras.height % cell_size or cameras.width % cell_size:
        raise ValueError(
            f"cell_size must divide the image size {cameras.height}x{cameras.width}, found {cell_size}: take "
            "the decoder's"
        )


def _relative_cameras(pairs: ScenePlans) -> tuple[CameraPath, CameraPath]:
    """Cameras of inputs [B, V, L] and targets [B, M], relative to the first frame that goes in."""
    inputs, targets = [], []
    for scene, plan in pairs:
        frames = list(_input_frames(scene, plan))
        paths = stack_cameras([scene.cameras(trajectory)[frames] for trajectory in plan.inputs])
        reference = paths.camera_to_world[0, 0]
        views = stack_cameras([scene.cameras(trajectory)[frame] for trajectory, frame in plan.targets])
        inputs.append(relative_to(paths, reference))
        targets.append(relative_to(views, reference))
    return stack_cameras(inputs), stack_cameras(targets)


def _target_time(pairs: ScenePlans, device: torch.device) -> Float[Tensor, " B"] | None:
    times = [
        plan.time_frame / max(scene.num_frames - 1, 1) for scene, plan in pairs if plan.time_frame is not None
    ]
    return torch.tensor(times).to(device, non_blocking=True) if times else None


def _stacked(values: list[Tensor], what: str) -> Tensor:
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise ValueError(
            f"{what} of one batch must have one shape, found {sorted(shapes)}: leave out scenes of another "
            "size, or cut all to one num_frames"
        )
    return torch.stack(values)


def make_batch(
    scenes: Sequence[SceneSource],
    config: SamplingConfig,
    codec: VideoCodec,
    generator: torch.Generator,
    num_trajectories: int | None = None,
) -> SceneBatch:
    """A training batch of these scenes, on their device; the same for the same generator state.

    All scenes get the same number of trajectories V, drawn once unless given. The generator must be a CPU
    one: indices are drawn and applied on the host, so that the device never has to be waited for.
    """
    plans = draw_plans(scenes, config, generator, num_trajectories)
    return gather(scenes, plans, config).complete(codec)


def evaluation_batch(
    scene: SceneSource,
    codec: VideoCodec,
    num_trajectories: int = 6,
    frames: Sequence[int] | None = None,
    target_frames: FrameSource = "rgb",
    order: Sequence[int] = READING_ORDER,
    with_novel_paths: bool = True,
    with_depth: bool = True,
) -> SceneBatch:
    """The fixed batch that a scene is judged by: inputs in the official order, nothing random.

    Targets are `frames` (default: the middle and the last) of all trajectories and then of the held-out
    paths, named in `target_ids`; of a dynamic scene exactly one frame, which is the moment shown.
    """
    inputs = [trajectory for trajectory in order if trajectory in scene.input_ids][:num_trajectories]
    if len(inputs) < num_trajectories:
        raise ValueError(
            f"scene {scene.name} has {len(inputs)} of the trajectories {list(order)}, expected "
            f"{num_trajectories}: evaluate with fewer"
        )
    if frames is None:
        last = scene.num_frames - 1
        frames = (last,) if scene.is_dynamic else ((scene.num_frames + 1) // 2, last)
    if scene.is_dynamic and len(frames) != 1:
        raise ValueError(f"a dynamic scene shows one moment, found frames {list(frames)}: give one frame")
    trajectories = scene.target_ids + (scene.novel_ids if with_novel_paths else [])
    targets = [(trajectory, frame) for trajectory in trajectories for frame in frames]
    plan = ScenePlan(inputs, targets, frames[0] if scene.is_dynamic else None)
    config = SamplingConfig(target_frames=target_frames, with_depth=with_depth)
    return gather([scene], [plan], config).complete(codec)
