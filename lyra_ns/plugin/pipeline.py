"""LyraPipeline: hands whole batches to the model, which nerfstudio's own pipeline keeps back.

Source: docs/reference/nerfstudio.md, "Data manager and pipeline".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import profiler
from nerfstudio.utils.rich_utils import CONSOLE

from lyra_ns.data.plans import SamplingConfig
from lyra_ns.device_memory import free_bytes
from lyra_ns.plugin.datamanager import LyraDataManager, LyraDataManagerConfig
from lyra_ns.plugin.errors import DataError
from lyra_ns.plugin.memory_policy import (
    BatchSize,
    advice,
    batch_size_of,
    expected_bytes,
    out_of_memory_message,
)
from lyra_ns.plugin.model_config import LyraModelConfig
from lyra_ns.recomputation import choose_policy


@dataclass
class LyraPipelineConfig(VanillaPipelineConfig):
    """Data manager and model."""

    _target: type = field(default_factory=lambda: LyraPipeline)
    datamanager: LyraDataManagerConfig = field(default_factory=LyraDataManagerConfig)
    """Scenes, how they are sampled and which one is shown."""
    model: LyraModelConfig = field(default_factory=LyraModelConfig)
    """The decoder and its losses."""


class LyraPipeline(VanillaPipeline):
    """Multi-scene batches in, losses out. Bad data ends the command with one sentence before step 0."""

    config: LyraPipelineConfig
    datamanager: LyraDataManager

    def __init__(
        self,
        config: LyraPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        """Build data manager and model, connect them and, for training (`val`), set the first weights."""
        config.datamanager.sampling = sampling_for(config)
        if world_size > 1 and config.model.use_cuda_graphs:
            CONSOLE.log("lyra: CUDA graphs are off, they do not work with several processes")
            config.model.use_cuda_graphs = False
        try:
            super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
            self.model.attach_scenes(self.datamanager.scenes)
            self.datamanager.needs_attributes_at = self.model.uses_attributes_at
            if test_mode == "val":
                self.model.prepare_training(self.datamanager.first_batch())
        except DataError as error:
            # nerfstudio would show forty lines of traceback around the one that helps.
            raise SystemExit(f"lyra: {error}") from error
        for line in self.model.describe_parts():
            CONSOLE.log(f"lyra: {line}")

    @profiler.time_function
    def get_train_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Outputs, losses and metrics of the next training batch."""
        self._free_before_step, self._batch_size = free_bytes(torch.device(self.device)), None
        cameras, waiting = self.datamanager.next_train(step)
        batch = {"scenes": self.model.complete(waiting["pending"])}
        self._batch_size = batch_size_of(batch["scenes"], self.config.model.decoder, self.model.prune_ratio)
        outputs = self._model(cameras, batch)  # not self.model: DDP hooks onto this call
        metrics = self.model.get_metrics_dict(outputs, batch)
        return outputs, self.model.get_loss_dict(outputs, batch, metrics), metrics

    _batch_size: BatchSize | None = None
    _free_before_step: int | None = None

    def explain_out_of_memory(self, step: int, checkpoint: str) -> str:
        """What the batch of `step` was expected to need and what needs less; ends with `checkpoint`."""
        size, model = self._batch_size, self.config.model
        parts: dict[str, int] = {}
        options = ["--pipeline.datamanager.cache cpu", "fewer scenes or target views"]
        if size is not None:
            device = self.model.device
            scan = self.model.decoder.scan.form_on(device)
            policy = choose_policy(model.decoder, size.num_tokens, device, scan)
            parts = expected_bytes(size, model, policy, model.decoder.scan_form(scan, device))
            options = advice(size, model, policy)
        return out_of_memory_message(step, size, parts, self._free_before_step, options, checkpoint)

    @profiler.time_function
    @torch.no_grad()
    def get_eval_loss_dict(self, step: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Outputs, losses and metrics of a batch of held-out scenes."""
        self.eval()
        cameras, batch = self.datamanager.next_eval(step)
        batch = {"scenes": self.model.complete(batch["pending"])}
        outputs = self.model(cameras, batch)
        metrics = self.model.get_metrics_dict(outputs, batch)
        losses = self.model.get_loss_dict(outputs, batch, metrics)
        self.train()
        return outputs, losses, metrics


def sampling_for(config: LyraPipelineConfig) -> SamplingConfig:
    """The sampling with what only the model's configuration knows: cell size, and whether depth is used."""
    model = config.model
    needs_depth = bool(model.loss.depth or model.loss.attributes) or model.warm_start_steps > 0
    sampling = config.datamanager.sampling
    return replace(
        sampling, cell_size=model.decoder.cell_size, with_depth=sampling.with_depth and needs_depth
    )
