"""Own attention, own blocks and kept positions compute what diffusers computes, and hear what it says."""

from __future__ import annotations

import json
from unittest import mock

import pytest
import torch
from torch import Tensor

from lyra_ns.gen3c.layers import (
    Gen3CAttnProcessor,
    Gen3CBlock,
    KeptPositions,
    keep_positions,
    legacy_angles,
    use_own_attention,
    use_own_blocks,
)
from tests.helpers.gen3c_speed_cases import guided, prepared
from tests.helpers.interpreter import interpreted
from tests.helpers.small_gen3c import draw_weights, drawn, small_transformer


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return guided(small_transformer())


@pytest.mark.parametrize("change", [use_own_attention, keep_positions, use_own_blocks])
def test_nothing_changes(change: object, expected: Tensor) -> None:
    """Not one bit on the CPU, and state dicts keep their names and values."""
    transformer = prepared(change)
    assert torch.equal(guided(transformer), expected)
    assert torch.equal(guided(transformer), expected)
    stock = small_transformer().state_dict()
    found = transformer.state_dict()
    assert set(found) == set(stock)
    assert all(torch.equal(found[name], stock[name]) for name in stock)


def test_the_perceptron_may_take_parts_of_the_tokens(expected: Tensor) -> None:
    torch.testing.assert_close(guided(prepared(lambda one: use_own_blocks(one, num_parts=5))), expected)


def test_backends_reach_the_attention() -> None:
    """With diffusers' own processors `set_attention_backend` changes nothing."""
    import diffusers.models.attention_dispatch as table

    math = table.AttentionBackendName._NATIVE_MATH
    for changes, num_calls in (((), 0), ((use_own_attention,), 8)):
        transformer = prepared(*changes)
        before = table._AttentionBackendRegistry._active_backend
        transformer.set_attention_backend("_native_math")
        table._AttentionBackendRegistry.set_active_backend(before)
        calls = []
        original = table._AttentionBackendRegistry._backends[math]
        counting = lambda **given: (calls.append(1), original(**given))[1]  # noqa: E731, B023
        with mock.patch.dict(table._AttentionBackendRegistry._backends, {math: counting}):
            guided(transformer)
        assert len(calls) == num_calls
    chosen = prepared(lambda one: use_own_attention(one, backend="_native_math"))
    assert chosen.transformer_blocks[0].attn2.processor._attention_backend == math
    assert table._AttentionBackendRegistry.get_active_backend()[0] != math
    with pytest.raises(ValueError, match="must be one of"):
        use_own_attention(small_transformer(), backend="fastest")


def test_own_blocks_refuse_what_they_do_not_know() -> None:
    transformer = prepared(use_own_blocks)
    block = transformer.transformer_blocks[0]
    with pytest.raises(ValueError, match="no ControlNet"):
        block(drawn(1, 2, 48), drawn(1, 2, 32), drawn(1, 48), controlnet_residual=drawn(1, 2, 48))
    stock = small_transformer()
    stock.transformer_blocks[1].before_proj = torch.nn.Identity()
    with pytest.raises(ValueError, match="ControlNet"):
        use_own_blocks(stock)
    hooked = small_transformer()
    hooked.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    use_own_blocks(hooked)  # these hooks sit on linear layers, which stay
    offloaded = small_transformer()
    offloaded.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1, offload_type="block_level")
    with pytest.raises(ValueError, match="before that"):
        use_own_blocks(offloaded)


def test_own_blocks_come_once() -> None:
    transformer = prepared(use_own_blocks, lambda one: use_own_blocks(one, is_fused=False, num_parts=4))
    for block in transformer.transformer_blocks:
        assert isinstance(block, Gen3CBlock)
        assert not isinstance(block.ff, Gen3CBlock)
        assert isinstance(block.attn1.processor, Gen3CAttnProcessor)
        assert (block.num_parts, block.is_fused, block.attn2.processor.is_fused) == (4, False, False)


def test_positions_are_computed_once_for_a_size() -> None:
    transformer = prepared(keep_positions)
    positions = transformer.learnable_pos_embed
    with mock.patch.object(KeptPositions, "_sum", autospec=True, side_effect=KeptPositions._sum) as made:
        guided(transformer)
        guided(transformer, size=2)
        assert made.call_count == 1
        with torch.no_grad():
            other = positions(torch.zeros(2, 1, 2, 4, 6))
        assert made.call_count == 2
    stock = small_transformer().learnable_pos_embed
    torch.testing.assert_close(other, stock(torch.zeros(1, 1, 2, 4, 6)))
    assert torch.equal(positions(torch.zeros(1, 1, 2, 4, 6)), other.detach())


def test_other_weights_bring_other_positions() -> None:
    transformer, other = prepared(keep_positions), draw_weights(small_transformer(), 0.3)
    guided(transformer)
    transformer.load_state_dict(other.state_dict())
    assert torch.equal(guided(transformer), guided(other))


def test_positions_can_be_trained() -> None:
    positions = prepared(keep_positions).learnable_pos_embed
    first = positions(torch.zeros(1, 1, 2, 4, 6))
    first.square().sum().backward()
    assert positions.pos_emb_t.grad is not None
    assert positions._kept is None


def test_legacy_rotation_is_off_as_measured_on_the_official_code() -> None:
    """Up to 0.15 rad in space and 0.026 rad in time at full size.

    Source: docs/reference/gen3c.md, "Rotary positions".
    """
    from diffusers.models.transformers.transformer_cosmos import CosmosRotaryPosEmbed

    rotation = CosmosRotaryPosEmbed(128, (128, 240, 240), (1, 2, 2), rope_scale=(2.0, 1.0, 1.0))
    video = torch.zeros(1, 1, 16, 88, 160)
    cosines, sines = rotation(video, fps=24)
    angles = legacy_angles(rotation, video, 24)
    assert angles.shape == cosines.shape
    exact = torch.atan2(sines, cosines)
    off = (torch.remainder(angles - exact + torch.pi, 2 * torch.pi) - torch.pi).abs()[:, :64]
    assert off[:, :22].max() == pytest.approx(0.026, abs=1e-3)
    assert off[:, 22:].max() == pytest.approx(0.15, abs=5e-3)


def test_legacy_rotation_reaches_the_network(expected: Tensor) -> None:
    transformer = prepared(lambda one: keep_positions(one, "bf16_legacy"))
    found = guided(transformer)
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.2 * expected.norm()
    keep_positions(transformer, "fp32")
    assert torch.equal(guided(transformer), expected)


@pytest.mark.slow
def test_fused_kernels_equal_torch() -> None:
    """In triton's interpreter, whose numbers are those of the compiled kernels but for rounding."""
    errors = json.loads(interpreted("gen3c_kernel_values.py"))
    assert set(errors) == {
        "add, gate, norm",
        "add, norm",
        "add, gate",
        "rotated",
        "not rotated",
        "rounded",
        "scales",
        "block",
    }
    assert max(errors.values()) < 1e-5, errors
