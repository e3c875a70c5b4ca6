"""AdamW for the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from torch.nn import Parameter


@dataclass
class DecoderAdamWConfig(OptimizerConfig):
    """AdamW with the constants of the paper's training, fused on CUDA.

    Source: docs/reference/lyra_training.md, "Optimiser".
    """

    _target: type = torch.optim.AdamW
    lr: float = 1e-4
    """Full learning rate."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    max_norm: float | None = 1.0
    """Gradients of all parameters together are scaled down to this norm."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decay: Literal["matrices", "all"] = "matrices"
    """`matrices` spares vectors (norms, biases, A_log, D, dt_bias); `all` is what the official code does."""

    def setup(self, params: list[Parameter]) -> torch.optim.Optimizer:
        """One optimizer over `params`, so that gradient clipping sees all of them together.

        ValueError for weights of less than float32, in which steps of this size would be lost.
        """
        coarse = {str(p.dtype).removeprefix("torch.") for p in params if p.dtype.itemsize < 4}
        if coarse:
            raise ValueError(
                f"expected weights in float32, found {sorted(coarse)}: leave --pipeline.model.decoder.parity "
                "off to train; matrix products run in bfloat16 on CUDA without it"
            )
        decayed = [p for p in params if self.decay == "all" or p.ndim >= 2]
        spared = [p for p in params if self.decay != "all" and p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        fused = all(parameter.is_cuda for parameter in params)
        return self._target(groups, lr=self.lr, eps=self.eps, betas=(0.9, 0.999), fused=fused)
