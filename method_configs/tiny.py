"""`ns-train lyra-tiny`: a small decoder for CPUs and small GPUs, which starts from weights that ship."""

from __future__ import annotations

import torch
from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.plugins.types import MethodSpecification

from lyra_ns.data.view_sampling import SamplingConfig
from lyra_ns.decoder.config import TINY_DECODER
from lyra_ns.losses import LossConfig
from lyra_ns.plugin.datamanager import LyraDataManagerConfig
from lyra_ns.plugin.model_config import LyraModelConfig
from lyra_ns.plugin.optimizers import DecoderAdamWConfig, WarmupSchedulerConfig
from lyra_ns.plugin.pipeline import LyraPipelineConfig
from lyra_ns.plugin.trainer import LyraTrainer
from lyra_ns.rendering.types import RenderSettings

lyra_tiny = MethodSpecification(
    config=TrainerConfig(
        _target=LyraTrainer,
        method_name="lyra-tiny",
        steps_per_eval_batch=500,
        steps_per_eval_image=500,
        steps_per_eval_all_images=2000,
        steps_per_save=500,
        max_num_iterations=15_000,
        mixed_precision=False,  # nerfstudio would mean float16; the decoder opens bfloat16 by itself
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        pipeline=LyraPipelineConfig(
            datamanager=LyraDataManagerConfig(
                sampling=SamplingConfig(
                    num_target_frames=1,
                    target_distribution="uniform",
                    cross_view_targets=True,
                    num_target_trajectories=5,
                )
            ),
            model=LyraModelConfig(
                decoder=TINY_DECODER,
                init_from="shipped",
                loss=LossConfig(mse=4.0, lpips=0.25, lpips_net="alex", opacity=0.02, attributes=0.1),
                # One response on every machine, that of ordinary viewers; gsplat 1.4 has no other.
                render=RenderSettings(response="ewa"),
                prune_ratio=0.5,
                warm_start_steps=1000,
            ),
        ),
        optimizers={
            "decoder": {
                "optimizer": DecoderAdamWConfig(lr=2e-4),
                "scheduler": WarmupSchedulerConfig(warmup_steps=100),
            }
        },
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="Lyra, small: starts from a decoder inside the package, runs on CPUs and small GPUs.",
)
