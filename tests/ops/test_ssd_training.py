"""Training with our state scan: a checkpoint knows it by name, and every gradient reaches its own input.

The kernels need a CUDA device; here the forms in torch stand for them. They are compared in
test_ssd_triton_backward.py and on a GPU.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lyra_ns.decoder.blocks import keeping_states
from lyra_ns.ops import ssd
from lyra_ns.ops.ssd import scan_states_in_torch

pytest.importorskip("triton.tools.tensor_descriptor")

from lyra_ns.ops import ssd_triton_backward


def draw() -> list[Tensor]:
    """x, step, write, read, decay, skip, step bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 9, 4, 3), (1, 9, 4), (1, 9, 2, 5), (1, 9, 2, 5), (4,), (4,), (4,)]
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    inputs[4] = -inputs[4].exp()
    return [tensor.requires_grad_() for tensor in inputs]


def backward_in_torch(grad_y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What `ssd_backward` gives. Operators run below autograd, which a thread of its own has again."""

    def gradients() -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(scan_states_in_torch(*leaves), leaves, grad_y)

    with ThreadPoolExecutor(1) as thread:
        return tuple(gradient.contiguous() for gradient in thread.submit(gradients).result())


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Results of the forward scan, which runs in torch."""
    results: list[Tensor] = []

    def forward(*inputs: Tensor) -> Tensor:
        results.append(scan_states_in_torch(*inputs).contiguous())
        return results[-1]

    monkeypatch.setattr(ssd_triton_backward, "ssd_forward", forward)
    monkeypatch.setattr(ssd_triton_backward, "ssd_backward", backward_in_torch)
    monkeypatch.setattr(ssd, "suits_scan_kernels", lambda x, write: True)
    return results


@pytest.mark.usefixtures("scans")
def test_gradients_reach_their_inputs() -> None:
    """Value and seven gradients are those of the scan in torch."""
    inputs = draw()
    found, expected = ssd.scan_states_in_kernels(*inputs), scan_states_in_torch(*inputs)
    torch.testing.assert_close(found, expected)
    weighting = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, inputs, weighting) for y in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_a_checkpoint_can_keep_the_result(scans: list[Tensor]) -> None:
    """The scan runs once, what surrounds it twice, and gradients stay what they are."""
    inputs, calls = draw(), []

    def block(x: Tensor) -> Tensor:
        calls.append(1)
        return ssd.scan_states_in_kernels(x.sin(), *inputs[1:]).square()

    (expected,) = torch.autograd.grad(block(inputs[0]).sum(), inputs[:1])
    scans.clear()
    calls.clear()
    kept = checkpoint(block, inputs[0], use_reentrant=False, context_fn=keeping_states)
    (found,) = torch.autograd.grad(kept.sum(), inputs[:1])
    assert (len(scans), len(calls)) == (1, 2)
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("scans")
def test_a_second_derivative_is_an_error() -> None:
    """Without it, what the gradients' gradients give would be missing from a sum without a word."""
    inputs = draw()
    y = ssd.scan_states_in_kernels(*inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="scan_gradients"):
        (gradient.square().sum() + inputs[0].square().sum()).backward()


@pytest.mark.slow
@pytest.mark.usefixtures("scans")
def test_it_is_an_operator_that_torch_can_trace() -> None:
    """Shapes and types without running it, its schema, and gradients through the tracer of torch.compile."""
    torch.library.opcheck(torch.ops.lyra_ns.scan_states.default, tuple(draw()))
    inputs = draw()
    weighting = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))

    def block(*tensors: Tensor) -> Tensor:
        return ssd_triton_backward.scan_with_gradient(tensors[0].sin(), *tensors[1:]).square()

    traced = torch.compile(block, backend="aot_eager", fullgraph=True)
    results = [torch.autograd.grad(function(*inputs), inputs, weighting) for function in (block, traced)]
    torch.testing.assert_close(*results)
