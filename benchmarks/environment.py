"""Where and with what a result was measured."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from lyra_ns.environment import environment

CPU_DESCRIPTION = Path("/proc/cpuinfo")
"""Where Linux says what processor it runs on."""


def describe_environment(device: str) -> dict[str, object]:
    """Device, number of threads, versions and commit, ready for JSON; `device` is `cpu` or a CUDA device.

    As in the files of `ns-lyra evaluate`, but a CPU by its model: here times are compared.
    """
    described = environment(torch.device(device))
    if torch.device(device).type == "cpu":
        described["device"] = f"CPU {cpu_model() or platform.machine()}"
    return {**described, "threads": torch.get_num_threads()}


def cpu_model(description: Path = CPU_DESCRIPTION) -> str | None:
    """Name, family and model of the first processor, None where the system does not say."""
    if not description.is_file():
        return None
    lines = description.read_text().splitlines()
    pairs = dict(map(str.strip, line.split(":", 1)) for line in reversed(lines) if ":" in line)
    if "model name" not in pairs:
        return None
    # Virtual machines may say "Xeon Processor" without a number; family and model tell generations apart.
    return f"{pairs['model name']}, family {pairs.get('cpu family', '?')}, model {pairs.get('model', '?')}"
