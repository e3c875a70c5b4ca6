"""The small decoder of the stabiliser experiment, and what switches each stabiliser off."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lyra_ns.gaussians import GaussianHeadConfig

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig

OFFICIAL_HEAD = GaussianHeadConfig()
"""The paper's head, which each switched-off stabiliser returns to."""


@dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; runs of different settings do not share a result file."""

    num_scenes: int = 24
    """Training scenes."""
    num_held_out: int = 6
    """Scenes that are measured."""
    height: int = 80
    """Image height in pixels."""
    width: int = 128
    """Image width in pixels."""
    num_frames: int = 17
    """Frames per clip."""
    decoder_width: int = 128
    """Channels of a token."""
    decoder_depth: int = 4
    """Blocks of the decoder, three scans and one attention."""
    cell_size: int = 4
    """Pixels per Gaussian along each side."""
    num_trajectories_max: int = 3
    """Most input trajectories of a step; their number is uniform from 1."""
    num_target_trajectories: int = 2
    """Images that a step renders."""
    learning_rate: float = 1e-3
    """Full learning rate, which falls along a cosine after the warm-up."""
    learning_rate_warmup_steps: int = 25
    """Steps until the full learning rate is reached."""
    steps: int = 200
    """Training steps of every run."""
    warm_start_steps: int = 80
    """How many of them are the attribute warm start, where it is on."""


def without_warm_start(config: TrainerConfig) -> None:
    """Render from the first step."""
    config.pipeline.model.warm_start_steps = 0


def without_attribute_loss(config: TrainerConfig) -> None:
    """Let go of depth and colour of single Gaussians after the warm start."""
    config.pipeline.model.loss.attributes = 0.0


def with_official_distances(config: TrainerConfig) -> None:
    """Distances from 0.1 to 500, linear in the sigmoid."""
    _change_head(config, "near", "far", "distance_law", "distance_shift")


def with_official_scales(config: TrainerConfig) -> None:
    """Scales in world units under a cap."""
    _change_head(config, "scale_law", "scale_cap", "footprint_limit")


def with_official_rotations(config: TrainerConfig) -> None:
    """The normalised raw quaternion."""
    _change_head(config, "identity_rotation")


def without_input_statistics(config: TrainerConfig) -> None:
    """Latents and ray maps go in as they are."""
    config.pipeline.model.decoder.input_statistics = False


def with_official_init(config: TrainerConfig) -> None:
    """Full gain behind the zero weights of the ray embedding."""
    config.pipeline.model.decoder.init = "official"


def _change_head(config: TrainerConfig, *names: str) -> None:
    head = config.pipeline.model.decoder.head
    config.pipeline.model.decoder.head = replace(
        head, **{name: getattr(OFFICIAL_HEAD, name) for name in names}
    )


SWITCHES: dict[str, Callable[[TrainerConfig], None]] = {
    "attribute warm start": without_warm_start,
    "attribute loss afterwards": without_attribute_loss,
    "near plane and distance law": with_official_distances,
    "footprint scale": with_official_scales,
    "identity rotation": with_official_rotations,
    "input statistics": without_input_statistics,
    "damped start": with_official_init,
}
"""What switches each stabiliser off."""

VARIANTS: dict[str, list[str]] = {
    "all on": [],
    **{f"without {name}": [name] for name in SWITCHES},
    "all off": list(SWITCHES),
}
"""Stabilisers that each variant lacks."""


def training_config(setting: Setting, switched_off: list[str], seed: int, data: Path) -> TrainerConfig:
    """`lyra-tiny` from random weights at the size of `setting`, without some stabilisers."""
    from lyra_ns.method_configs.tiny import lyra_tiny

    config = deepcopy(lyra_tiny.config)
    model, manager = config.pipeline.model, config.pipeline.datamanager
    model.init_from = "none"
    model.warm_start_steps = setting.warm_start_steps
    model.decoder = replace(
        model.decoder,
        width=setting.decoder_width,
        depth=setting.decoder_depth,
        cell_size=setting.cell_size,
    )
    manager.data, manager.seed, manager.cache = data, seed, "cpu"
    manager.sampling = replace(
        manager.sampling,
        num_trajectories_max=setting.num_trajectories_max,
        num_target_trajectories=setting.num_target_trajectories,
    )
    group = config.optimizers["decoder"]
    group["optimizer"] = replace(group["optimizer"], lr=setting.learning_rate)
    group["scheduler"] = replace(
        group["scheduler"],
        warmup_steps=setting.learning_rate_warmup_steps,
        decay="cosine",
        max_steps=setting.steps,
    )
    for name in switched_off:
        SWITCHES[name](config)
    return config
