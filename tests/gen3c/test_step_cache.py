"""Predicted steps: exact where nothing may be left out, close where it may, apart for each view and clip."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lyra_ns.gen3c.layers import use_own_blocks
from lyra_ns.gen3c.parallel import split_tokens
from lyra_ns.gen3c.step_cache import StepCache, StepCacheSettings, remove_step_cache
from lyra_ns.gen3c.transformer import Evaluation
from tests.helpers.gen3c_speed_cases import CELLS, latents_of, relative, small_pipeline
from tests.helpers.small_gen3c import drawn, small_transformer

NUM_STEPS = 12


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return latents_of(small_pipeline(), NUM_STEPS)


def cached(**settings: Any) -> tuple[Any, StepCache]:
    pipeline = small_pipeline()
    use_own_blocks(pipeline.transformer)
    cache = StepCache(pipeline.transformer, StepCacheSettings(**settings))
    pipeline.evaluation = Evaluation(step_cache=cache)
    return pipeline, cache


def counted(pipeline: Any) -> list[int]:
    """Numbers of the blocks whose second attention runs."""
    calls: list[int] = []
    for index, block in enumerate(pipeline.transformer.transformer_blocks):
        block.attn2.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    return calls


def test_nothing_is_kept_when_a_clip_is_done() -> None:
    pipeline, cache = cached(threshold=1e6)
    kept: list[weakref.ref[Tensor]] = []
    through = cache.through

    def watched(index: int, stream: Tensor, work: Any) -> Tensor:
        result = through(index, stream, work)
        kept.extend(weakref.ref(branch.first) for branch in cache._branches.values())
        return result

    cache.through = watched  # type: ignore[method-assign]
    latents_of(pipeline, 6)
    assert kept
    assert not any(reference() is not None for reference in kept)
    assert cache.num_skipped > 0


@pytest.mark.slow
def test_threshold_zero_computes_everything(plain: Tensor) -> None:
    pipeline, cache = cached(threshold=0.0)
    assert torch.equal(latents_of(pipeline, NUM_STEPS), plain)
    assert (cache.num_computed, cache.num_skipped) == (2 * NUM_STEPS, 0)


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1])
def test_skipped_steps_run_the_first_block_alone(order: int, plain: Tensor) -> None:
    pipeline, cache = cached(threshold=1e6, order=order, num_first=3, num_last=2, most_in_a_row=2)
    calls = counted(pipeline)
    found = latents_of(pipeline, NUM_STEPS)
    # Steps 3 to 9 may be left out, two in a row: 3 4 . 6 7 . 9, in both views.
    assert (cache.num_skipped, cache.num_computed) == (2 * 5, 2 * 7)
    assert (calls.count(0), calls.count(1)) == (2 * NUM_STEPS, 2 * 7)
    assert 1e-4 < relative(found, plain) < 0.5
    again = latents_of(pipeline, NUM_STEPS)
    assert torch.equal(again, found)
    remove_step_cache(pipeline.transformer)
    pipeline.evaluation = Evaluation()
    assert torch.equal(latents_of(pipeline, NUM_STEPS), plain)


@pytest.mark.slow
def test_a_smaller_threshold_is_closer(plain: Tensor) -> None:
    errors = []
    for threshold in (1e6, 0.05, 0.01):
        pipeline, _ = cached(threshold=threshold, order=0)
        errors.append(relative(latents_of(pipeline, NUM_STEPS), plain))
    assert errors[0] > errors[1] >= errors[2]


def run_blocks(cache: StepCache, name: str, noise_label: float, values: list[float]) -> float:
    """The stream behind blocks of which each would add its own value to zero."""
    stream = torch.zeros(1, 1, 1)
    with cache.branch(name, noise_label):
        for index, value in enumerate(values):
            stream = cache.through(index, stream, lambda stream=stream, value=value: stream + value)
    return stream.item()


def own_network() -> Any:
    transformer = small_transformer()
    use_own_blocks(transformer)
    return transformer


def test_order_one_follows_the_line() -> None:
    """What is added by later blocks lies on a line over the noise label: it is predicted exactly."""
    settings = {"threshold": 1.0, "num_first": 2, "num_last": 0}
    for order, expected in ((0, 1 + 9.0), (1, 1 + 8.0)):
        cache = StepCache(own_network(), StepCacheSettings(order=order, **settings))  # type: ignore[arg-type]
        cache.start(4)
        run_blocks(cache, "conditional", 1.0, [1.0, 10.0])
        run_blocks(cache, "conditional", 0.5, [1.0, 9.0])
        assert run_blocks(cache, "conditional", 0.0, [1.0, 1e9]) == pytest.approx(expected)


def test_views_do_not_mix_and_clips_start_anew() -> None:
    cache = StepCache(own_network(), StepCacheSettings(threshold=1.0, order=0, num_first=1, num_last=0))
    cache.start(3)
    assert run_blocks(cache, "conditional", 1.0, [1.0, 10.0]) == 11
    assert run_blocks(cache, "unconditional", 1.0, [1.0, 20.0]) == 21
    assert run_blocks(cache, "conditional", 0.5, [1.0, 0.0]) == 11
    assert run_blocks(cache, "unconditional", 0.5, [1.0, 0.0]) == 21
    # A first block that has changed more than the threshold is followed by the others.
    assert run_blocks(cache, "conditional", 0.2, [3.0, 0.0]) == 3
    cache.start(3)
    assert run_blocks(cache, "conditional", 0.5, [1.0, 5.0]) == 6


def test_several_clips_together_are_refused(plain: Tensor) -> None:
    """One would decide for the others; both views of one clip may go in one batch."""
    pipeline, cache = cached(threshold=0.0)
    image, buffers = drawn(2, 3, 32, 48).clamp(-1, 1), drawn(2, 64, *CELLS, seed=2)
    with pytest.raises(ValueError, match=r"decides for one clip .*, found 2 together: make one at a time"):
        pipeline(image, buffers, num_inference_steps=2)
    pipeline.evaluation = Evaluation(step_cache=cache, in_one_batch=True)
    torch.testing.assert_close(latents_of(pipeline, NUM_STEPS), plain, atol=1e-5, rtol=1e-4)


def test_wrong_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = own_network()
    cache = StepCache(transformer)
    with pytest.raises(ValueError, match=r"call start"), cache.branch("conditional", 0.0):
        pass
    with pytest.raises(ValueError, match="use_own_blocks first"):
        StepCache(small_transformer())
    with pytest.raises(ValueError, match="threshold from 0 on"):
        StepCacheSettings(threshold=-1.0)
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 2)
    with pytest.raises(ValueError, match="call remove_step_cache first"):
        split_tokens(transformer, torch.device("cpu"))
    transformer._parallel_config = object()
    with pytest.raises(ValueError, match="would decide differently"):
        StepCache(transformer)
    transformer._parallel_config = None
    del transformer.transformer_blocks[1]
    with pytest.raises(ValueError, match="at least two blocks"):
        StepCache(transformer)
