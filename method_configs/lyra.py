"""`ns-train lyra`: the paper's decoder and training.

Source: docs/reference/decoder.md, "Configuration", and docs/reference/lyra_training.md, "Losses" and
"Optimiser".
"""

from __future__ import annotations

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.plugins.types import MethodSpecification

from lyra_ns.data.view_sampling import SamplingConfig
from lyra_ns.plugin.datamanager import LyraDataManagerConfig
from lyra_ns.plugin.model_config import LyraModelConfig
from lyra_ns.plugin.optimizers import DecoderAdamWConfig, WarmupSchedulerConfig
from lyra_ns.plugin.pipeline import LyraPipelineConfig
from lyra_ns.plugin.trainer import LyraTrainer

lyra = MethodSpecification(
    config=TrainerConfig(
        _target=LyraTrainer,
        method_name="lyra",
        steps_per_eval_batch=500,
        steps_per_eval_image=500,
        steps_per_eval_all_images=5000,
        steps_per_save=1000,
        max_num_iterations=75_000,
        mixed_precision=False,  # nerfstudio would mean float16; the decoder opens bfloat16 by itself
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        pipeline=LyraPipelineConfig(
            datamanager=LyraDataManagerConfig(sampling=SamplingConfig()),
            model=LyraModelConfig(),
        ),
        optimizers={
            "decoder": {
                "optimizer": DecoderAdamWConfig(lr=1e-4),
                "scheduler": WarmupSchedulerConfig(warmup_steps=100),
            }
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="Lyra: latents of a camera-controlled video model to 3D Gaussians; the paper's network.",
)
