"""Configuration of LyraModel, apart from it because the model pulls in nerfstudio's splatfacto and gsplat."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from nerfstudio.models.base_model import Model, ModelConfig

from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.losses import LossConfig
from lyra_ns.rendering.types import RenderSettings

MODEL_MODULE = "lyra_ns.plugin.model"
"""By name, because the model's module needs this one."""


def lyra_model(config: LyraModelConfig, **kwargs: Any) -> Model:
    """The LyraModel of `config`, its module imported only now: a plugin must load where gsplat is broken."""
    model: Model = import_module(MODEL_MODULE).LyraModel(config, **kwargs)
    return model


@dataclass
class LyraModelConfig(ModelConfig):
    """A latent Gaussian decoder and how it is trained and shown."""

    _target: Any = field(default_factory=lambda: lyra_model)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """The network; defaults are the paper's."""
    init_from: str = "none"
    """`none`: random weights; `shipped`: the decoder inside this package; or a file (.safetensors, .pt)."""
    codec: str = "auto"
    """Codec of the latents: `auto` (what the data's manifest names), `linear`, or `cosmos:PATH`."""
    plucker_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the ray maps that are encoded; auto is bfloat16 for a parity decoder, else float32."""
    ray_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the rays on which the Gaussians are placed; auto as above."""
    prune_ratio: float = 0.0
    """Share of Gaussians dropped, the least opaque ones; 0.8 in the paper's last stage."""
    prune_from_step: int = 0
    """Step from which on Gaussians are dropped."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the losses."""
    render: RenderSettings = field(default_factory=RenderSettings)
    """Constants of rasterization."""
    warm_start_steps: int = 0
    """First steps that regress colour and distance of each Gaussian directly (small-scale stabiliser).

    Only with random weights: a decoder that starts from trained ones would forget."""
    ema_decay: float = 0.0
    """Share of the old average that a step leaves in the moving average of the weights, which evaluation and
    export then use; 0: no average, as the official training."""
    use_cuda_graphs: bool = False
    """Replay the decoder's training step as CUDA graphs; pays for small decoders on one GPU."""
    target_time: float = 0.0
    """Moment of a dynamic scene that is shown where the camera names none, 0 to 1; ns-export uses it."""
    sh_degree: int = 0
    """Read by ns-export; Lyra's colours do not depend on the direction."""
    enable_collider: bool = False
    """Unused: there are no rays."""
