"""The forms of the Mamba-2 scan agree in values and gradients."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lyra_ns.ops import ssd
from lyra_ns.ops.ssd import choose_scan_backend, chunked_states, recurrent_states, scan_in_torch
from lyra_ns.ops.ssd_types import ScanWeights

HEAD_DIM, STATE, TAPS = 4, 6, 4


def make_case(
    batch: int, tokens: int, groups: int, heads_per_group: int, seed: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ScanWeights]:
    """Random projected tokens and weights of one scan."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    heads = groups * heads_per_group
    inner, channels = heads * HEAD_DIM, heads * HEAD_DIM + 2 * groups * STATE
    weights = ScanWeights(
        conv_weight=draw(channels, TAPS) / 2,
        conv_bias=draw(channels) / 4,
        step_bias=draw(heads) - 2,
        decay=-draw(heads).exp(),
        skip=1 + draw(heads) / 4,
        norm_weight=1 + draw(inner) / 4,
        num_groups=groups,
    )
    return draw(batch, tokens, inner + channels + heads), weights


def values_and_gradients(projected: Tensor, weights: ScanWeights, state_scan: ssd.StateScan) -> list[Tensor]:
    """The scan's result and the gradients of all seven inputs under a fixed random weighting of it."""
    names = [field.name for field in fields(weights) if isinstance(getattr(weights, field.name), Tensor)]
    leaves = {name: getattr(weights, name).clone().requires_grad_() for name in names}
    projected = projected.clone().requires_grad_()
    result = scan_in_torch(projected, replace(weights, **leaves), state_scan)
    generator = torch.Generator().manual_seed(0)
    weighting = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
    return [result.detach(), *torch.autograd.grad((result * weighting).sum(), [projected, *leaves.values()])]


def worst_relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest norm of a difference, relative to the expected norm (of one token, decay has no gradient)."""
    errors = [(a - b).norm() / b.norm().clamp(min=1e-6) for a, b in zip(found, expected, strict=True)]
    return torch.stack(errors).max().item()


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 70),
    groups=st.integers(1, 2),
    heads_per_group=st.integers(1, 3),
    chunk=st.sampled_from([1, 8, 16, 25, 64, 100]),
    seed=st.integers(0, 2**31),
)
def test_chunked_equals_recurrence(
    batch: int, tokens: int, groups: int, heads_per_group: int, chunk: int, seed: int
) -> None:
    """Any length, also below and between multiples of the chunk, to 1e-10 in float64."""
    projected, weights = make_case(batch, tokens, groups, heads_per_group, seed)
    expected = values_and_gradients(projected, weights, recurrent_states)
    found = values_and_gradients(projected, weights, lambda *inputs: chunked_states(*inputs, chunk))
    assert worst_relative_error(found, expected) < 1e-10


def test_float32_stays_close_to_float64() -> None:
    """Single precision costs about its rounding, also over many chunks and without NaN in any gradient."""
    projected, weights = make_case(1, 300, 1, 2, seed=1)
    expected = values_and_gradients(projected, weights, recurrent_states)
    single, single_weights = make_case(1, 300, 1, 2, seed=1, dtype=torch.float32)
    found = values_and_gradients(single, single_weights, chunked_states)
    assert worst_relative_error([tensor.double() for tensor in found], expected) < 2e-5


def test_strong_decay_gives_no_nan() -> None:
    """Where a state fades within one token, exponents overflow above the diagonal: gradients must not."""
    projected, weights = make_case(1, 130, 1, 2, seed=2, dtype=torch.float32)
    weights = replace(weights, decay=torch.full_like(weights.decay, -50.0), step_bias=weights.step_bias + 4)
    for tensor in values_and_gradients(projected, weights, chunked_states):
        assert tensor.isfinite().all()


def test_recurrence_by_hand() -> None:
    """Two tokens, one head, one channel, one state: the sum written out."""
    x = torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)
    step = torch.tensor([0.5, 0.25]).view(1, 2, 1)
    write, read = torch.tensor([1.0, 4.0]).view(1, 2, 1, 1), torch.tensor([7.0, 10.0]).view(1, 2, 1, 1)
    first = 0.5 * 2 * 1
    second = torch.exp(torch.tensor(-0.25 * 2)) * first + 0.25 * 3 * 4
    expected = torch.stack([torch.tensor(first * 7.0), second * 10])
    found = recurrent_states(x, step, torch.tensor([-2.0]), write, read)
    torch.testing.assert_close(found.flatten(), expected)


def test_scan_is_causal() -> None:
    """No token sees a later one, also across a chunk border; every token sees the first."""
    projected, weights = make_case(1, 100, 1, 2, seed=3)
    backend = choose_scan_backend("chunked")
    changed = projected.clone()
    changed[:, 64:] += 1
    difference = (backend(changed, weights) - backend(projected, weights)).abs().amax((0, 2))
    assert difference[:64].max() == 0
    assert difference[64:].min() > 0


def test_half_tokens_keep_float32_states() -> None:
    """Bfloat16 tokens only round what goes in and out."""
    projected, weights = make_case(1, 90, 1, 2, seed=4, dtype=torch.float32)
    half = projected.bfloat16()
    found = choose_scan_backend("chunked")(half, weights)
    expected = choose_scan_backend("reference")(half.float(), weights).bfloat16()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


def test_backend_is_chosen_and_named() -> None:
    """Auto resolves to a form that runs, and the log line names it."""
    backend = choose_scan_backend("auto")
    assert backend.on_cpu == "chunked"
    assert "chunked" in ssd.describe_scan_backend(backend)
    assert ssd.describe_scan_backend(choose_scan_backend("reference")) == "Mamba-2 scan: reference (as asked)"


def test_unusable_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for the kernels where they cannot run is an error, not a silent change."""
    monkeypatch.setattr(ssd, "why_no_mamba_ssm", lambda: "no CUDA device")
    with pytest.raises(ValueError, match=r"no CUDA device.*pip install"):
        choose_scan_backend("mamba_ssm")
    assert "no CUDA device" in ssd.describe_scan_backend(choose_scan_backend("auto"))


def test_kernels_refuse_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder built for the kernels but left on the CPU says so."""
    monkeypatch.setattr(ssd, "why_no_mamba_ssm", lambda: "")
    projected, weights = make_case(1, 3, 1, 1, seed=5)
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        choose_scan_backend("mamba_ssm")(projected, weights)
