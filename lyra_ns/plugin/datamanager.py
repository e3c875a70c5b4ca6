"""LyraDataManager: batches over many scenes for training, one active scene for everything that is shown.

What nerfstudio asks of it: docs/reference/nerfstudio.md, "Data manager and pipeline". Training batches are
streamed from disk by workers, or gathered from scenes in memory; either way batch number i of a rank depends
on (seed, rank, i) only, and the next one is on its way to the device while the present one is trained on.
Frames of clips are a nerfstudio data set without image files: they come out of the videos. Views of several
scenes are held out to measure on, for ns-eval and the evaluation during training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lyra_ns.data.batch import PendingBatch, gather
from lyra_ns.data.scenes import LoadedScene
from lyra_ns.data.types import Clip
from lyra_ns.data.view_sampling import (
    ALL_RANKS,
    SamplingConfig,
    batch_generator,
    draw_num_trajectories,
    draw_plans,
    scene_order,
)
from lyra_ns.dataparsers.lyra import LyraDataParser, LyraDataParserConfig
from lyra_ns.plugin.errors import MISSING_DATA, DataError, reading_data
from lyra_ns.plugin.scenes import SceneLibrary, load_scenes
from lyra_ns.plugin.views import SceneViews, View

if TYPE_CHECKING:
    from lyra_ns.data.store import LyraStore


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


@dataclass(frozen=True)
class BatchSettings:
    """What both kinds of batches need to know."""

    batch_size: int
    """Scenes per batch."""
    seed: int
    """Seed of everything random."""
    rank: int
    """Number of this process."""
    world_size: int
    """Number of processes; each has its own scenes."""
    device: torch.device | str
    """Where batches go."""


class Batches(Protocol):
    """A source of batches."""

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """Batch number `index`, on the device."""
        ...


class StreamedBatches:
    """Read from disk by worker processes, which run ahead of the training."""

    def __init__(self, store: LyraStore, names: list[str], settings: BatchSettings, num_workers: int) -> None:
        self._store, self._names, self._settings = store, names, settings
        self._num_workers = num_workers
        self._iterator: Iterator[PendingBatch] | None = None
        self._expected: tuple[int, SamplingConfig] | None = None

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """Batch number `index`; the workers start anew when it does not follow the one before."""
        if self._iterator is None or self._expected != (index, sampling):
            self._iterator = iter(self._loader(index, sampling))
        with reading_data():
            pending = next(self._iterator)
        self._expected = (index + 1, sampling)
        return pending.to(self._settings.device)

    def _loader(self, first_batch: int, sampling: SamplingConfig) -> DataLoader:
        from lyra_ns.data.stream import TrainingStream

        settings = self._settings
        with reading_data():
            stream = TrainingStream(
                self._store,
                self._names,
                sampling,
                batch_size=settings.batch_size,
                seed=settings.seed,
                rank=settings.rank,
                world_size=settings.world_size,
                first_batch=first_batch,
            )
        return DataLoader(stream, batch_size=None, num_workers=self._num_workers)


class CachedBatches:
    """Gathered from scenes that were decoded once and stay in memory: nothing but indexing."""

    def __init__(self, scenes: list[LoadedScene], settings: BatchSettings) -> None:
        self._scenes, self._settings = scenes, settings

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """Batch number `index`."""
        settings = self._settings
        scenes = [self._scene(index * settings.batch_size + place) for place in range(settings.batch_size)]
        shared = batch_generator(settings.seed, index, ALL_RANKS)
        num_trajectories = draw_num_trajectories(scenes, sampling, shared)
        generator = batch_generator(settings.seed, index, settings.rank)
        with reading_data():
            plans = draw_plans(scenes, sampling, generator, num_trajectories)
            return gather(scenes, plans, sampling).to(settings.device)

    def _scene(self, position: int) -> LoadedScene:
        """Scene number `position` of an endless series of shuffled passes."""
        order = scene_order(position, len(self._scenes), self._settings.seed, self._settings.rank)
        return self._scenes[order[0]]


class PrefetchedBatches:
    """Batches of another source, each read and moved while the one before it is in use.

    One thread reads, copies into pinned memory and starts the copy to the device on a stream of its own, so
    neither the host nor the device waits. Batch for batch the same as those of the source: one that was read
    ahead but is not asked for is thrown away.
    """

    def __init__(self, source: Batches, device: torch.device | str) -> None:
        """Take a source whose batches lie in main memory."""
        self._source, self._device = source, torch.device(device)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lyra-prefetch")
        self._ahead: tuple[tuple[int, SamplingConfig], Future[PendingBatch]] | None = None
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """Batch number `index`, on the device; errors of reading it are raised here."""
        wanted, ahead = (index, sampling), self._ahead
        self._ahead = None
        future = ahead[1] if ahead is not None and ahead[0] == wanted else self._start(wanted)
        pending = future.result()
        following = (index + 1, sampling)
        self._ahead = (following, self._start(following))
        if self._stream is None:
            return pending
        # Its memory belongs to the copying stream, which must not reuse it before this one is done with it.
        stream = torch.cuda.current_stream(self._device)
        return map_tensors(pending, lambda tensor: _used_on(tensor, stream))

    def _start(self, wanted: tuple[int, SamplingConfig]) -> Future[PendingBatch]:
        return self._reader.submit(self._fetch, *wanted)

    def _fetch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """The batch, arrived on the device: waiting for that is all that this thread has to do."""
        pending = self._source.batch(index, sampling)
        if self._stream is None:
            return pending.to(self._device)
        pinned = map_tensors(pending, lambda tensor: tensor.contiguous().pin_memory())
        with torch.cuda.stream(self._stream):
            moved = map_tensors(pinned, lambda tensor: tensor.to(self._device, non_blocking=True))
        self._stream.synchronize()
        return moved


def _used_on(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor inside its dataclasses, dictionaries, lists and tuples mapped."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        mapped = {name: map_tensors(part, function) for name, part in found.items()}
        changed = {name: part for name, part in mapped.items() if part is not found[name]}
        return replace(value, **changed) if changed else value
    if isinstance(value, dict):
        return {key: map_tensors(part, function) for key, part in value.items()}
    if isinstance(value, list):
        return [map_tensors(part, function) for part in value]
    if type(value) is tuple:
        return tuple(map_tensors(part, function) for part in value)
    return value


EVALUATION_SEED_SHIFT = 1_000_003
"""Batches of held-out scenes are drawn under another seed than those of training."""


@dataclass
class LyraDataManagerConfig(FullImageDatamanagerConfig):
    """Which scenes are trained on and how. `ns-render dataset` asks for a FullImageDatamanagerConfig."""

    _target: type = field(default_factory=lambda: LyraDataManager)
    dataparser: AnnotatedDataParserUnion = field(default_factory=LyraDataParserConfig)
    """Where the scenes are; only `lyra-data` works."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Input trajectories and target views of a batch."""
    scenes_per_step: int = 1
    """Scenes per training step and process."""
    cache: Literal["none", "cpu", "device"] = "none"
    """`none`: workers read every batch from disk; `cpu`, `device`: all training scenes are held there."""
    num_workers: int = 2
    """Worker processes that read ahead (cache none); 0 reads in the training process."""
    seed: int = 0
    """Seed of everything that is drawn; a resumed run goes on where it was."""
    num_eval_scenes: int = 8
    """Held-out scenes that evaluation measures, at most."""


class LyraDataManager(VanillaDataManager[InputDataset]):
    """Scenes of a data set for nerfstudio.

    A VanillaDataManager because `ns-render spiral` asks for one; it shares no code with its parent. Train and
    eval data set hold the active scene: frames of its input trajectories, and true views to compare with.
    """

    config: LyraDataManagerConfig

    def __init__(
        self,
        config: LyraDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **kwargs: Any,
    ) -> None:
        """Open the data set; DataError with what to do if it cannot be used."""
        self.config = config
        self.device = device
        self.world_size = world_size
        self.local_rank = local_rank
        self.test_mode = test_mode
        self.test_split = "val" if test_mode == "val" else "test"
        self.needs_attributes_at: Callable[[int], bool] = lambda step: False
        self.dataparser = self._opened_dataparser()
        self.includes_time = self.dataparser.includes_time
        with reading_data():
            self.train_dataset = self._dataset("train")
            self.eval_dataset = self._dataset(self.test_split)
        self.train_dataparser_outputs = self.train_dataset._dataparser_outputs
        DataManager.__init__(self)

    def _opened_dataparser(self) -> LyraDataParser:
        config = self.config
        if not isinstance(config.dataparser, LyraDataParserConfig):
            raise DataError(
                f"this method reads scenes with latents, which {type(config.dataparser).__name__} has not: "
                "use lyra-data, or no data parser at all"
            )
        if config.data is not None:
            config.dataparser.data = Path(config.data)
        if config.dataparser.data is None:
            raise DataError(MISSING_DATA)
        config.data = config.dataparser.data
        return config.dataparser.setup()

    def _dataset(self, split: str) -> ClipDataset:
        views = self.dataparser.views(split)
        return ClipDataset(self.dataparser.outputs_of(views), views.views)

    @property
    def scenes(self) -> SceneLibrary:
        """All scenes of the data set."""
        return self.dataparser.scenes

    def setup_train(self) -> None:
        """Nothing: batches are opened by the first one that is asked for."""

    def setup_eval(self) -> None:
        """Nothing: views are read when they are asked for."""

    def sampling_at(self, step: int) -> SamplingConfig:
        """How the batch of `step` is drawn; only the attribute loss needs depth and colour of the inputs."""
        return replace(self.config.sampling, warm_start=self.needs_attributes_at(step))

    def _settings(self, seed: int) -> BatchSettings:
        rank, world_size = self.local_rank, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # nerfstudio gives the rank within one machine only.
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return BatchSettings(self.config.scenes_per_step, seed, rank, world_size, self.device)

    @cached_property
    def _train_batches(self) -> Batches:
        device = torch.device(self.device)
        if device.type != "cuda" or self.config.cache == "device":
            return self._read_batches(self.device)
        return PrefetchedBatches(self._read_batches("cpu"), device)

    def _read_batches(self, device: torch.device | str) -> Batches:
        """Training batches on `device`, read when they are asked for."""
        config, settings = self.config, replace(self._settings(self.config.seed), device=device)
        store, names = self.scenes.store, self.scenes.split.train
        if not names:
            raise DataError(
                "all scenes are held out, none is left to train on: lower lyra-data --test-fraction"
            )
        if config.cache == "none":
            return StreamedBatches(store, names, settings, config.num_workers)
        from lyra_ns.data.stream import rank_share

        with reading_data():
            own = rank_share(names, settings.rank, settings.world_size)
        where = self.device if config.cache == "device" else "cpu"
        return CachedBatches(load_scenes(store, own, self.sampling_at(0), where), settings)

    @cached_property
    def _eval_batches(self) -> Batches:
        settings = replace(self._settings(self.config.seed + EVALUATION_SEED_SHIFT), rank=0, world_size=1)
        return StreamedBatches(self.scenes.store, self._measured_scenes, settings, num_workers=0)

    def first_batch(self) -> PendingBatch:
        """The first training batch, read in this process so that its errors are seen as they are."""
        if self.config.cache != "none":
            return self._train_batches.batch(0, self.sampling_at(0))
        settings = self._settings(self.config.seed)
        names = self.scenes.split.train
        return StreamedBatches(self.scenes.store, names, settings, 0).batch(0, self.sampling_at(0))

    def next_train(self, step: int) -> tuple[Cameras, dict[str, PendingBatch]]:
        """A camera, which stands for all and is not used, and the batch of `step`."""
        self.train_count += 1
        pending = self._train_batches.batch(step, self.sampling_at(step))
        return self._placeholder, {"pending": pending}

    def next_eval(self, step: int) -> tuple[Cameras, dict[str, PendingBatch]]:
        """As `next_train`, over held-out scenes."""
        pending = self._eval_batches.batch(self.eval_count, self.config.sampling)
        self.eval_count += 1
        return self._placeholder, {"pending": pending}

    @cached_property
    def _placeholder(self) -> Cameras:
        return self.train_dataset.cameras[:1].to(self.device)

    @cached_property
    def _measured_scenes(self) -> list[str]:
        return (self.scenes.split.test or self.scenes.split.train)[: self.config.num_eval_scenes]

    @cached_property
    def fixed_indices_eval_dataloader(self) -> HeldOutViews:
        """Every view that ns-eval measures: true views of the held-out scenes."""
        every = self.dataparser.config.eval_every
        views = {name: self.scenes.true_views(name, every) for name in self._measured_scenes}
        return HeldOutViews(views, self.dataparser.outputs_of, self.device)

    @cached_property
    def eval_dataloader(self) -> FixedIndicesEvalDataloader:
        """Views of the active scene; `ns-render spiral` starts at the first."""
        return FixedIndicesEvalDataloader(input_dataset=self.eval_dataset, device=self.device)

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """One view after the other of the held-out scenes, a different scene each time."""
        views = self.fixed_indices_eval_dataloader
        stride = max(1, len(views) // len(self._measured_scenes))
        index = (self.eval_image_count * (stride + 1)) % len(views)
        self.eval_image_count += 1
        return views[index]

    eval_image_count: int = 0

    def get_train_rays_per_batch(self) -> int:
        """Pixels of a training step, roughly: the viewer's speed display reads it."""
        camera = self.train_dataset.cameras[0]
        pixels = int(camera.height) * int(camera.width)
        return pixels * self.config.sampling.num_target_frames * self.config.scenes_per_step

    def get_eval_rays_per_batch(self) -> int:
        """As `get_train_rays_per_batch`."""
        return self.get_train_rays_per_batch()

    def get_datapath(self) -> Path:
        """Where the data is; the viewer keeps camera paths there."""
        assert self.config.data is not None
        return self.config.data

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """None: nothing is learned here."""
        return {}
