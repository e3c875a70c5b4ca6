"""What blocks keep and recompute: equal gradients, attention once, and the estimate behind the choice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.decoder.blocks import (
    Attention,
    BidirectionalMamba,
    Perceptron,
    choose_policy,
    kept_bytes,
    policy_for_memory,
)
from lyra_ns.decoder.config import DecoderConfig
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.ops import ssd

SMALL = {"width": 64, "depth": 4, "pattern": "1M1T", "num_heads": 4, "state_size": 32, "head_dim": 16}
POLICIES = ("none", "states", "scans", "all")
GIB = 2**30


def small_decoder(**changes: Any) -> LatentGaussianDecoder:
    """A decoder of two Mamba and two attention blocks with the same random weights each time."""
    torch.manual_seed(0)
    decoder = LatentGaussianDecoder(DecoderConfig(**{**SMALL, **changes}))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return decoder


def small_tokens() -> Tensor:
    """Tokens of two scenes."""
    return torch.randn(2, 96, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("policy", ["states", "scans", "all"])
def test_every_policy_gives_the_same_gradients(policy: str, dtype: torch.dtype) -> None:
    """Of all parameters and of the tokens, to the bit."""
    results = []
    for recompute in ("none", policy):
        decoder, tokens = small_decoder(recompute=recompute).to(dtype), small_tokens().to(dtype)
        tokens.requires_grad_()
        after = decoder.trunk(tokens)
        after.square().mean().backward()
        used = {name: p.grad for name, p in decoder.enc_blocks.named_parameters()}
        results.append({"after": after.detach(), "tokens": tokens.grad, **used})
    assert all(value is not None and value.abs().max() > 0 for value in results[0].values())
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("none", (2, 2, 2)), ("states", (4, 2, 4)), ("scans", (4, 2, 4)), ("all", (4, 4, 4))],
)
def test_only_all_runs_attention_again(policy: str, expected: tuple[int, int, int]) -> None:
    """How often Mamba layers, attention and perceptrons run in one step of two blocks each."""
    decoder, calls = small_decoder(recompute=policy), {BidirectionalMamba: 0, Attention: 0, Perceptron: 0}

    def count(module: torch.nn.Module, _: Any) -> None:
        calls[type(module)] += 1

    for module in decoder.modules():
        if type(module) in calls:
            module.register_forward_pre_hook(count)
    decoder.trunk(small_tokens()).sum().backward()
    assert tuple(calls.values()) == expected


def test_without_gradients_nothing_is_recomputed_or_kept() -> None:
    """Inference takes the plain way whatever the policy."""
    plain, other = (small_decoder(recompute=recompute) for recompute in ("none", "all"))
    with torch.no_grad():
        assert torch.equal(plain.trunk(small_tokens()), other.trunk(small_tokens()))


def measured_kept_bytes(decoder: LatentGaussianDecoder, tokens: Tensor) -> int:
    """Memory of all tensors that autograd keeps after the trunk, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in decoder.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        after = decoder.trunk(tokens)
    assert after.requires_grad
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


@pytest.mark.parametrize("pattern", ["M", "T"])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_estimate_bounds_what_is_kept(policy: str, pattern: str) -> None:
    """From above and not by much; a block that is being recomputed is part of the estimate only."""
    decoder = small_decoder(recompute=policy, pattern=pattern, trunk_dtype="float32")
    tokens = torch.randn(1, 512, 64).requires_grad_()
    found = measured_kept_bytes(decoder, tokens)
    if policy != "none":
        one_block = small_decoder(recompute="none", pattern=pattern, trunk_dtype="float32", depth=1)
        found += measured_kept_bytes(one_block, tokens)
    estimate = kept_bytes(decoder.config, 512, policy, "chunked")
    assert found <= estimate <= 1.6 * found


def test_full_size_on_common_cards() -> None:
    """Six trajectories keep attention on 80 GB and recompute the rest; one keeps everything there."""
    official, per_view = DecoderConfig(), 56_320
    assert policy_for_memory(official, per_view, "mamba_ssm", 80 * GIB) == "none"
    assert policy_for_memory(official, 6 * per_view, "mamba_ssm", 80 * GIB) == "scans"
    assert policy_for_memory(official, 6 * per_view, "mamba_ssm", 24 * GIB) == "all"
    needs = [kept_bytes(official, 6 * per_view, policy, "fused") for policy in POLICIES]
    assert needs == sorted(set(needs), reverse=True)
    # Only our own kernels can keep what the states give.
    assert policy_for_memory(official, 6 * per_view, "fused", 141 * GIB) == "states"
    assert policy_for_memory(official, 6 * per_view, "mamba_ssm", 141 * GIB) == "scans"
    assert policy_for_memory(official, 6 * per_view, "fused", 80 * GIB) == "scans"
    # A scan written in torch keeps so much more that one trajectory must recompute, too.
    assert policy_for_memory(official, per_view, "chunked", 80 * GIB) == "scans"
    assert policy_for_memory(official, per_view, "fused_in_torch", 80 * GIB) == "scans"
    assert policy_for_memory(official, 6 * per_view, "fused_in_mamba_ssm", 141 * GIB) == "scans"


def test_auto_asks_the_card_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Main memory never decides, and a policy that is named stays."""
    cpu, card = torch.device("cpu"), torch.device("cuda")
    many = 337_920
    assert choose_policy(DecoderConfig(), many, cpu, "chunked") == "none"
    assert choose_policy(DecoderConfig(recompute="all"), 1, card, "mamba_ssm") == "all"

    class Card:
        total_memory = 80 * GIB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    assert choose_policy(DecoderConfig(), many, card, "mamba_ssm") == "scans"


def test_auto_asks_what_computes_the_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one trajectory a Hopper card keeps all, others do with mamba-ssm: torch would keep too much."""

    class Card:
        total_memory = 80 * GIB

    def policy(major: int, obstacle: str, **changes: Any) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        monkeypatch.setattr(ssd, "why_no_mamba_ssm", lambda: obstacle)
        return choose_policy(DecoderConfig(**changes), 56_320, torch.device("cuda"), "fused")

    monkeypatch.setattr(ssd, "_describes_tiles", lambda: True)
    assert policy(9, "missing") == "none"
    assert policy(8, "") == "none"
    assert policy(8, "missing") == "scans"
    assert policy(9, "missing", state_size=96) == "scans"
    monkeypatch.setattr(ssd, "_describes_tiles", lambda: False)
    assert policy(9, "missing") == "scans"
