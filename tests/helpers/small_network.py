"""The network that whole runs of nerfstudio's commands train and show in tests."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

SMALL_NETWORK: dict[str, object] = {
    "init-from": "none",
    "warm-start-steps": 0,
    "decoder.width": 32,
    "decoder.depth": 2,
    "decoder.pattern": "1M1T",
    "decoder.num-heads": 2,
    "decoder.state-size": 8,
    "decoder.head-dim": 16,
}
"""Options of the model, by name."""


def options_of_network(changes: Mapping[str, object] = MappingProxyType({})) -> list[str]:
    """Words for ns-train; `changes` replaces or adds options."""
    options = {**SMALL_NETWORK, **changes}
    return [word for name, value in options.items() for word in (f"--pipeline.model.{name}", str(value))]
