"""nerfstudio's trainer on the right card, which says what to do when a step does not fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig

from lyra_ns.plugin.pipeline import LyraPipeline


class LyraTrainer(Trainer):
    """As its parent; a step that runs out of memory ends the run with a checkpoint and one clear message."""

    pipeline: LyraPipeline

    def __init__(self, config: TrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, local_rank, world_size)
        if self.device.startswith("cuda"):
            # nerfstudio leaves the first card current in every process, and Triton's kernels launch there:
            # the mamba-ssm kernels of all other processes then failed on two GPUs.
            torch.cuda.set_device(self.device)

    def train_iteration(self, step: int) -> Any:
        """Loss, losses and metrics of one step; SystemExit if the device has not enough memory for it."""
        try:
            return super().train_iteration(step)
        except torch.cuda.OutOfMemoryError as error:
            first_line = (str(error).strip() or "no details").splitlines()[0]
        # Out here, where the error no longer holds on to the tensors of the step.
        self.optimizers.zero_grad_all()
        explanation = self.pipeline.explain_out_of_memory(step, self._state_kept_after(step))
        raise SystemExit(f"lyra: {explanation}\n(torch: {first_line})")

    def _state_kept_after(self, failed_step: int) -> str:
        """Save the state from before `failed_step`, if this run changed it; says where to go on from."""
        # The weights change at the very end of a step, so they are those of the step before.
        if failed_step > self._start_step:
            self.save_checkpoint(failed_step - 1)
        kept = sorted(self.checkpoint_dir.glob("step-*.ckpt"))
        if kept:
            return f"Nothing is lost: {kept[-1]} goes on from there (--load-dir {self.checkpoint_dir})."
        if self.config.load_dir is not None:
            return f"This run has made no step since it was resumed from {self.config.load_dir}."
        return "No step was finished yet, so there is no checkpoint."
