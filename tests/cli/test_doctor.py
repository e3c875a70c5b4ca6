"""What `ns-lyra doctor` says is missing."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch

from lyra_ns.cli import doctor
from lyra_ns.ops import ssd


@pytest.mark.parametrize(("major", "is_missing"), [(8, True), (9, False), (10, True)])
def test_mamba_ssm_is_missed_only_where_our_own_scan_has_no_kernels(
    monkeypatch: pytest.MonkeyPatch, major: int, is_missing: bool
) -> None:
    """A Hopper card has them both ways."""
    find = importlib.util.find_spec

    def without_mamba_ssm(name: str) -> ModuleSpec | None:
        return None if name == "mamba_ssm" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", without_mamba_ssm)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setattr(ssd, "_describes_tiles", lambda: True)
    assert any("mamba-ssm" in line for line in doctor._advice("cuda")) == is_missing
    assert not any("mamba-ssm" in line for line in doctor._advice("cpu"))
