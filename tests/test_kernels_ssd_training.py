"""Training with our forward scan: every gradient of mamba-ssm's backward pass reaches its own input.

mamba-ssm needs a CUDA device; here its backward function is torch's, in mamba-ssm's order of results. The
kernels themselves are compared on a GPU (tests/gpu/test_ssd_bidirectional_gpu.py).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns import ssd_bidirectional
from lyra_ns.ssd import KERNEL_CHUNK
from lyra_ns.ssd_bidirectional import scan_states_in_torch

pytest.importorskip("triton.tools.tensor_descriptor")

from lyra_ns.kernels import ssd_training


def draw() -> list[Tensor]:
    """x, step, write, read, decay, skip, step bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 9, 4, 3), (1, 9, 4), (1, 9, 2, 5), (1, 9, 2, 5), (4,), (4,), (4,)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    inputs[4] = -inputs[4].exp()
    return [tensor.requires_grad_() for tensor in inputs]


def backward_of_torch(
    dout: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    out: Tensor,
    chunk: int,
    **others: Any,
) -> tuple[Tensor | None, ...]:
    """Gradients in the order and with the arguments of mamba-ssm."""
    assert (out.shape, chunk, others["dt_softplus"]) == (x.shape, KERNEL_CHUNK, True)
    leaves = [tensor.detach().requires_grad_() for tensor in (x, dt, B, C, A, others["D"], others["dt_bias"])]
    with torch.enable_grad():
        dx, ddt, dB, dC, dA, dD, dbias = torch.autograd.grad(scan_states_in_torch(*leaves), leaves, dout)
    return dx, ddt, dA, dB, dC, dD, None, dbias, None


def test_gradients_reach_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and seven gradients are those of the scan in torch."""
    module = ModuleType("mamba_ssm.ops.triton.ssd_combined")
    module._mamba_chunk_scan_combined_bwd = backward_of_torch  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(ssd_training, "ssd_forward", scan_states_in_torch)
    inputs = draw()
    found, expected = ssd_training.scan_with_gradient(*inputs), scan_states_in_torch(*inputs)
    torch.testing.assert_close(found, expected)
    weighting = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, inputs, weighting) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_training_takes_our_forward_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it suits and mamba-ssm is there for the way back."""
    monkeypatch.setattr(ssd_bidirectional, "suits_forward_kernels", lambda x, write: True)
    monkeypatch.setattr(ssd_bidirectional, "why_no_mamba_ssm", lambda: "")
    monkeypatch.setattr(ssd_training, "ssd_forward", lambda x, *others: x * 2)
    inputs = [tensor.detach().float().requires_grad_() for tensor in draw()]
    found = ssd_bidirectional.scan_states_in_kernels(*inputs)
    assert found.grad_fn is not None
    torch.testing.assert_close(found, inputs[0] * 2)
