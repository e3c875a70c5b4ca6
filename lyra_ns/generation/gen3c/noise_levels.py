"""Noise levels of GEN3C as a scheduler of diffusers. Imports diffusers.

Source: docs/reference/gen3c.md, "Sampler".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import EDMEulerScheduler

from lyra_ns.codec.statistics import SIGMA_DATA

LEVELS: dict[str, Any] = {
    "sigma_min": 2e-4,
    "sigma_max": 80.0,
    "sigma_data": SIGMA_DATA,
    "sigma_schedule": "karras",
    "rho": 7.0,
    "final_sigmas_type": "zero",
    "prediction_type": "epsilon",
}
"""What the released network was trained and sampled with."""


def gen3c_scheduler() -> EDMEulerScheduler:
    """Noise levels of GEN3C: from 80 to 0.0002, then 0 (other Cosmos models end at 0.002)."""
    return EDMEulerScheduler(**LEVELS)


def check_noise_levels(config: Mapping[str, Any]) -> None:
    """ValueError, naming what differs, unless a scheduler of this configuration has GEN3C's noise levels."""
    differing = [name for name, value in LEVELS.items() if config.get(name) != value]
    if differing:
        expected, found = (
            ", ".join(f"{name} {values.get(name)}" for name in differing) for values in (LEVELS, config)
        )
        raise ValueError(f"GEN3C's scheduler has {expected}, found {found}: use gen3c_scheduler()")
