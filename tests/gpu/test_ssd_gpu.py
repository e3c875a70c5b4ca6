"""The Triton kernels of mamba-ssm and the torch forms of the scan agree on a GPU."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from lyra_ns.ops.ssd import ScanBackend, choose_scan_backend
from lyra_ns.ops.ssd_types import ScanName, ScanWeights

pytestmark = pytest.mark.gpu

HEAD_DIM, STATE = 64, 64


@pytest.fixture
def kernels() -> ScanBackend:
    """The kernel backend; skipped where mamba-ssm is not installed."""
    pytest.importorskip("mamba_ssm")
    return choose_scan_backend("mamba_ssm")


def make_case(batch: int, tokens: int, groups: int = 1, seed: int = 0) -> tuple[Tensor, ScanWeights]:
    """Random projected tokens and weights of four heads, float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inner = 4 * HEAD_DIM
    channels = inner + 2 * groups * STATE
    weights = ScanWeights(
        conv_weight=draw(channels, 4) / 2,
        conv_bias=draw(channels) / 4,
        step_bias=draw(4) - 3,
        decay=-draw(4).exp(),
        skip=1 + draw(4) / 4,
        norm_weight=1 + draw(inner) / 4,
        num_groups=groups,
    )
    return draw(batch, tokens, inner + channels + 4), weights


def values_and_gradients(
    backend: ScanBackend, projected: Tensor, weights: ScanWeights, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """The scan's result and all seven gradients, as float64 on the CPU; only the tokens get `dtype`."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    names = [field.name for field in fields(weights) if isinstance(getattr(weights, field.name), Tensor)]
    leaves = {name: getattr(weights, name).to(device, exact).requires_grad_() for name in names}
    projected = projected.to(device, dtype).requires_grad_()
    result = backend(projected, replace(weights, **leaves))
    weighting = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = (result * weighting.to(result)).sum()
    gradients = torch.autograd.grad(loss, [projected, *leaves.values()])
    return [tensor.detach().double().cpu() for tensor in (result, *gradients)]


def relative_errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Norms of the differences relative to the expected norms."""
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("tokens", [100, 256, 700])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 3e-2)])
def test_kernels_equal_recurrence(
    kernels: ScanBackend, tokens: int, groups: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Values and gradients of the kernels, up to the tf32 or bfloat16 products inside."""
    projected, weights = make_case(2, tokens, groups)
    projected = projected.to(dtype).double()
    expected = values_and_gradients(
        choose_scan_backend("reference"), projected, weights, torch.float64, "cpu"
    )
    found = values_and_gradients(kernels, projected, weights, dtype, "cuda")
    assert max(relative_errors(found, expected)) < tolerance


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_torch_forms_equal_on_both_devices(name: ScanName) -> None:
    """The torch forms compute the same in float64 on the GPU."""
    projected, weights = make_case(2, 150)
    backend = choose_scan_backend(name)
    expected = values_and_gradients(
        choose_scan_backend("reference"), projected, weights, torch.float64, "cpu"
    )
    found = values_and_gradients(backend, projected, weights, torch.float64, "cuda")
    assert max(relative_errors(found, expected)) < 1e-10


def test_kernels_without_fused_convolution(kernels: ScanBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without causal-conv1d the scan kernel alone does, with everything around it in torch."""
    from mamba_ssm.ops.triton import ssd_combined

    projected, weights = make_case(2, 300)
    expected = values_and_gradients(
        choose_scan_backend("reference"), projected, weights, torch.float64, "cpu"
    )
    monkeypatch.setattr(ssd_combined, "causal_conv1d_fwd_function", None)
    found = values_and_gradients(kernels, projected, weights, torch.float32, "cuda")
    assert max(relative_errors(found, expected)) < 5e-3


def test_expanded_gradient_reaches_the_kernels(kernels: ScanBackend) -> None:
    """The gradient of a sum has stride zero, which the kernels do not take as it is."""
    projected, weights = make_case(1, 64)
    moved = {field.name: getattr(weights, field.name) for field in fields(weights)}
    moved = {
        key: value.to("cuda", torch.float32) if isinstance(value, Tensor) else value
        for key, value in moved.items()
    }
    tokens = projected.to("cuda", torch.float32).requires_grad_()
    kernels(tokens, ScanWeights(**moved)).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()
