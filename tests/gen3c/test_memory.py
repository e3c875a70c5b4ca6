"""Memory policies change where weights are, not what comes out; what cannot fit is refused with numbers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from lyra_ns.gen3c import memory
from lyra_ns.gen3c.layers import Gen3CBlock, KeptPositions
from lyra_ns.gen3c.memory import POLICIES, ClipSize, MemorySetup, apply_memory_policy, memory_needs
from lyra_ns.gen3c.transformer import Evaluation, gen3c_config
from lyra_ns.memory import DoesNotFit
from tests.gen3c.test_pipeline import t5
from tests.helpers.checked_types import unchecked
from tests.helpers.gen3c_speed_cases import latents_of, relative, small_pipeline

GIB = 2**30


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return latents_of(small_pipeline())


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_give_the_same_latents(policy: str, plain: Tensor) -> None:
    pipeline = small_pipeline()
    apply_memory_policy(pipeline, policy, "cpu")
    torch.testing.assert_close(latents_of(pipeline), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents_of(pipeline), plain, atol=1e-5, rtol=1e-4)
    assert pipeline.memory_policy == policy
    assert isinstance(pipeline.transformer.learnable_pos_embed, KeptPositions)
    assert isinstance(pipeline.transformer.transformer_blocks[0], Gen3CBlock)
    hooks = [hasattr(block, "_diffusers_hook") for block in pipeline.transformer.transformer_blocks]
    assert hooks == [policy == "low"] * 2
    assert pipeline.transformer.transformer_blocks[0].num_parts == (8 if policy == "low" else 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_texts_are_encoded_under_every_policy(policy: str) -> None:
    text_encoder, tokenizer = t5()
    pipeline = small_pipeline(text_encoder=text_encoder, tokenizer=tokenizer)
    expected = pipeline.encode_prompt(["a red room"])
    apply_memory_policy(pipeline, policy, "cpu")
    torch.testing.assert_close(pipeline.encode_prompt(["a red room"]), expected)
    is_fetched = any(hasattr(module, "_diffusers_hook") for module in text_encoder.modules())
    assert is_fetched == (policy != "fast")


@pytest.mark.parametrize("policy", ["balanced", "low"])
def test_eight_bits_change_latents_a_little(policy: str, plain: Tensor) -> None:
    pipeline = small_pipeline()
    apply_memory_policy(pipeline, policy, "cpu", eight_bits=True)
    assert 1e-4 < relative(latents_of(pipeline), plain) < 0.2


def test_both_views_in_one_batch_are_the_same(plain: Tensor) -> None:
    pipeline = small_pipeline()
    pipeline.evaluation = Evaluation(in_one_batch=True)
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(latents_of(pipeline), plain, atol=1e-5, rtol=1e-4)
    assert len(calls) == 3
    latents_of(pipeline, guidance=0.0)
    hook.remove()
    assert len(calls) == 6


def test_a_policy_is_chosen_once() -> None:
    pipeline = small_pipeline()
    apply_memory_policy(pipeline, "low", torch.device("cpu"))
    apply_memory_policy(pipeline, "low", "cpu")
    for options, message in [
        ({"policy": "fast"}, "set up with policy low, which cannot become fast: load it again"),
        ({"eight_bits": True}, "set up with eight_bits False, which cannot become True: load it again"),
        (
            {"rope_dtype": "bf16_legacy"},
            "set up with rope_dtype fp32, which cannot become bf16_legacy: load it again",
        ),
        ({"device": "meta", "policy": "fast"}, "policy low, .* fast, and device cpu, .* meta: load it again"),
    ]:
        with pytest.raises(ValueError, match=message):
            apply_memory_policy(pipeline, **{"policy": "low", "device": "cpu"} | options)
    with pytest.raises(ValueError, match="must be one of fast, balanced, low, found 'ultra'"), unchecked():
        apply_memory_policy(small_pipeline(), "ultra", "cpu")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def released() -> Any:
    """The sizes of the released parts, without their weights."""
    from diffusers import AutoencoderKLCosmos, CosmosTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler

    with torch.device("meta"):
        transformer = CosmosTransformer3DModel(**gen3c_config())
        autoencoder = AutoencoderKLCosmos()
        t5_11b = T5EncoderModel(
            T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128, vocab_size=32128)
        )
    pipeline = Gen3CPipeline(transformer, autoencoder, gen3c_scheduler())
    pipeline.text_encoder = t5_11b
    return pipeline


@pytest.mark.slow
def test_needs_are_those_of_the_released_sizes(released: Any) -> None:
    """13.5 GiB of weights, 20 GB to denoise; T5 adds 9 GiB (docs/reference/gen3c.md, "Memory and speed")."""
    fast, balanced, low = (memory_needs(released, policy, ClipSize()) for policy in POLICIES)
    assert 18 * GIB < balanced.denoising < 21 * GIB
    assert 8.5 * GIB < fast.denoising - balanced.denoising < 9.5 * GIB
    assert 4 * GIB < low.denoising < 7 * GIB
    assert low.text < balanced.text < 16 * GIB
    assert low.of_latents < balanced.of_latents < fast.of_latents
    assert 28e9 < low.decoding < 32e9
    eight = memory_needs(released, "balanced", ClipSize(), eight_bits=True)
    assert 6 * GIB < balanced.denoising - eight.denoising < 7 * GIB
    two = memory_needs(released, "low", ClipSize(num_clips=2))
    assert two.denoising - low.denoising == 10 * 56320 * 4096 * 2
    # Colours and mask of a warped video, in float32.
    both = memory_needs(released, "low", ClipSize(num_buffers=2))
    assert both.encoding - low.encoding == 121 * 704 * 1280 * 16


def test_what_does_not_fit_is_refused_with_numbers(
    released: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = torch.device("cuda")
    for policy, free, advice in (
        ("fast", 20, "take the policy balanced"),
        ("balanced", 16, "take the policy low"),
        ("low", 4, "store the weights in 8 bits"),
    ):
        monkeypatch.setattr(memory, "available_bytes", lambda _, free=free: free * GIB)
        with pytest.raises(
            DoesNotFit, match=rf"needs for 121 frames .* {free}.0 GiB of cuda are free: {advice}"
        ):
            apply_memory_policy(released, policy, device)  # type: ignore[arg-type]
        assert released.memory_policy is None
        assert not isinstance(released.transformer.transformer_blocks[0], Gen3CBlock)
    monkeypatch.setattr(memory, "available_bytes", lambda _: 20 * GIB)
    with caplog.at_level(logging.WARNING):
        memory._check_fit(released, MemorySetup("low", device), ClipSize())
    assert "latents can be made, but videos of this size not be decoded" in caplog.text


def test_the_size_is_checked_when_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, small = small_pipeline(), ClipSize(17, 32, 48)
    memory.check_memory(pipeline, ClipSize())
    pipeline.memory_setup = MemorySetup("low", torch.device("cuda"))
    monkeypatch.setattr(memory, "available_bytes", lambda _: memory_needs(pipeline, "low", small).of_latents)
    memory.check_memory(pipeline, small)
    apply_memory_policy(pipeline, "low", torch.device("cuda"), size=small)
    for size, what in (
        (ClipSize(25, 32, 48), "25 frames of 32x48"),
        (ClipSize(17, 32, 48, num_clips=10**6), "1000000 clips at once of 17 frames"),
        (ClipSize(17, 32, 48, num_buffers=2), "17 frames of 32x48"),
    ):
        with pytest.raises(DoesNotFit, match=f"the memory policy low needs for {what}"):
            memory.check_memory(pipeline, size)
    with pytest.raises(DoesNotFit, match="needs for 121 frames of 704x1280"):
        apply_memory_policy(pipeline, "low", torch.device("cuda"))


def test_t5_goes_beside_the_network_only_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[str] = []
    encoder, device = t5()[0], torch.device("cuda")
    monkeypatch.setattr(type(encoder), "to", lambda *_: placed.append("whole"))
    monkeypatch.setattr(memory, "_fetch_while_computing", lambda *given: placed.append(given[2]))
    num_bytes = sum(weight.numel() * 4 for weight in encoder.parameters()) + memory.TEXT_BYTES
    for policy, free, expected in (
        ("fast", num_bytes, "whole"),
        ("fast", num_bytes - 1, "leaf_level"),
        ("balanced", num_bytes, "leaf_level"),
        ("low", num_bytes, "leaf_level"),
    ):
        monkeypatch.setattr(memory, "available_bytes", lambda _, free=free: free)
        memory.place_text_encoder(encoder, policy, device)
        assert placed.pop() == expected
