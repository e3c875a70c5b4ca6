"""LyraDataManager: batches over many scenes for training, one active scene for everything that is shown.

What nerfstudio asks of it: docs/reference/nerfstudio.md, "Data manager and pipeline".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.dataparser_configs import AnnotatedDataParserUnion
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
from torch import nn

from lyra_ns.data.gathering import PendingBatch
from lyra_ns.data.plans import SamplingConfig
from lyra_ns.dataparsers.lyra import LyraDataParser, LyraDataParserConfig
from lyra_ns.plugin.batches import Batches, BatchSettings, CachedBatches, StreamedBatches
from lyra_ns.plugin.dataset import ClipDataset
from lyra_ns.plugin.errors import MISSING_DATA, DataError, reading_data
from lyra_ns.plugin.held_out import HeldOutViews
from lyra_ns.plugin.prefetch import PrefetchedBatches
from lyra_ns.plugin.scene_loading import load_scenes
from lyra_ns.plugin.scenes import SceneLibrary

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
