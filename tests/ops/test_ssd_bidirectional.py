"""Both directions in one scan equal a plain scan and one over the flipped sequence."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from lyra_ns.decoder.blocks import BidirectionalMamba, MambaBlock
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.ops import ssd
from lyra_ns.ops.ssd import TORCH_STAGES, ScanBackend, choose_scan_backend, scan_both_directions
from lyra_ns.ops.ssd_types import ScanWeights
from tests.ops.test_convolution_triton import kernel_errors

HEAD_DIM, STATE, HEADS, TAPS = 4, 6, 3, 4
INNER, CHANNELS = HEADS * HEAD_DIM, HEADS * HEAD_DIM + 2 * STATE


def make_weights(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> ScanWeights:
    """Random weights of one direction."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return ScanWeights(
        conv_weight=draw(CHANNELS, TAPS) / 2,
        conv_bias=draw(CHANNELS) / 4,
        step_bias=draw(HEADS) - 2,
        decay=-draw(HEADS).exp(),
        skip=1 + draw(HEADS) / 4,
        norm_weight=1 + draw(INNER) / 4,
    )


def leaves(weights: ScanWeights) -> dict[str, Tensor]:
    """Its tensors by name."""
    names = [field.name for field in fields(weights) if isinstance(getattr(weights, field.name), Tensor)]
    return {name: getattr(weights, name).requires_grad_() for name in names}


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 3), (1, 64), (2, 131)])
def test_arrangement_equals_two_flipped_scans(batch: int, tokens: int) -> None:
    """Values and the gradients of all thirteen inputs to 1e-10, also below the taps and across chunks."""
    generator = torch.Generator().manual_seed(tokens)
    forwards, backwards = make_weights(generator), make_weights(generator)
    shape = (batch, tokens, INNER + CHANNELS + HEADS)
    projected = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    weighting = torch.randn(batch, tokens, INNER, generator=generator, dtype=torch.float64)
    inputs = [projected, *leaves(forwards).values(), *leaves(backwards).values()]
    expected = choose_scan_backend("reference").both_directions(projected, forwards, backwards)
    found = scan_both_directions(projected, forwards, backwards, TORCH_STAGES)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    # Of a single token the decay has no gradient in one of the two forms.
    wanted = torch.autograd.grad((expected * weighting).sum(), inputs, allow_unused=True)
    given = torch.autograd.grad((found * weighting).sum(), inputs, allow_unused=True)
    for a, b, leaf in zip(given, wanted, inputs, strict=True):
        zeros = torch.zeros_like(leaf)
        torch.testing.assert_close(
            zeros if a is None else a, zeros if b is None else b, rtol=1e-10, atol=1e-10
        )


def test_half_tokens_keep_float32_inside() -> None:
    """Bfloat16 tokens are rounded between the stages and nowhere inside."""
    generator = torch.Generator().manual_seed(7)
    weights = [make_weights(generator, torch.float32) for _ in range(2)]
    projected = torch.randn(1, 90, INNER + CHANNELS + HEADS, generator=generator).bfloat16()
    found = scan_both_directions(projected, *weights, TORCH_STAGES)
    expected = choose_scan_backend("chunked").both_directions(projected.float(), *weights)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 1e-2 * expected.norm()


def test_several_groups_are_refused() -> None:
    """The two groups of the joined scan are the directions."""
    weights = replace(make_weights(torch.Generator().manual_seed(0)), num_groups=2)
    with pytest.raises(ValueError, match="one group each, found 2"):
        scan_both_directions(torch.zeros(1, 2, 3, dtype=torch.float64), weights, weights, TORCH_STAGES)


def test_layer_asks_for_both_directions_at_once() -> None:
    """The layer hands its own two sets of weights to the backend, the second for the reversed sequence."""
    config = DecoderConfig(width=16, head_dim=8, state_size=4, num_heads=2)
    torch.manual_seed(0)
    layer = BidirectionalMamba(config, choose_scan_backend("chunked")).double()
    tokens = torch.randn(1, 10, 16, dtype=torch.float64)
    mirrored = BidirectionalMamba(config, choose_scan_backend("chunked")).double()
    mirrored.load_state_dict(layer.state_dict())
    mirrored.mamba_scans = torch.nn.ModuleList(reversed(list(layer.mamba_scans)))
    torch.testing.assert_close(mirrored(tokens.flip(1)).flip(1), layer(tokens))
    assert not torch.allclose(mirrored(tokens), layer(tokens))


@pytest.mark.slow
def test_block_in_kernels_equals_torch() -> None:
    """Tokens and all weights of a whole block, through the kernels in triton's interpreter."""
    (errors,) = kernel_errors("block")
    assert len(errors) == 17
    assert max(errors.values()) < 1e-4, errors


def test_fused_refuses_what_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Main memory, machines without a working triton, and a single direction."""
    monkeypatch.setattr(ssd, "why_no_fused", lambda: "triton does not work: no compiler")
    with pytest.raises(ValueError, match=r"fused cannot run here \(triton does not work: no compiler\)"):
        choose_scan_backend("fused")
    monkeypatch.setattr(ssd, "why_no_fused", lambda: "")
    fused = choose_scan_backend("fused")
    config = DecoderConfig(width=16, head_dim=8, state_size=4, num_heads=2)
    with pytest.raises(ValueError, match="fused needs CUDA tensors"):
        MambaBlock(config, fused)(torch.zeros(1, 2, 16))
    on_cpu = ScanBackend("fused", "fused", "as asked")
    monkeypatch.setattr(ScanBackend, "form_on", lambda backend, device: "fused")
    with pytest.raises(ValueError, match="call both_directions"):
        on_cpu(torch.zeros(1, 2, 3), make_weights(torch.Generator(), torch.float32))


@pytest.mark.parametrize(
    ("no_fused", "no_mamba_ssm", "chosen"),
    [("", "", "fused"), ("broken", "", "mamba_ssm"), ("broken", "missing", "chunked")],
)
def test_auto_takes_the_fastest_that_runs(
    monkeypatch: pytest.MonkeyPatch, no_fused: str, no_mamba_ssm: str, chosen: str
) -> None:
    """On CUDA our kernels, then those of mamba-ssm, then torch; the log line says why."""
    monkeypatch.setattr(ssd, "why_no_fused", lambda: no_fused)
    monkeypatch.setattr(ssd, "why_no_mamba_ssm", lambda: no_mamba_ssm)
    backend = choose_scan_backend("auto")
    assert (backend.on_cpu, backend.on_cuda) == ("chunked", chosen)
    assert no_fused in ssd.describe_scan_backend(backend)
