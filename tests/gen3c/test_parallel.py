"""GEN3C on two processes: guidance's views, one video's tokens, and clips side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lyra_ns.gen3c import parallel
from lyra_ns.gen3c.parallel import GuidanceHalves, in_order, run_on_processes, share_of, split_tokens
from lyra_ns.gen3c.transformer import Evaluation
from tests.helpers.gen3c_processes import everything, fail_on_second
from tests.helpers.gen3c_speed_cases import guided, latents_of, small_pipeline
from tests.helpers.small_gen3c import small_transformer

CLIPS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def both() -> list[dict[str, Any]]:
    return run_on_processes(everything, 2, CLIPS, device_type="cpu")


@pytest.mark.slow
def test_guidance_on_two_processes_is_the_same(both: list[dict[str, Any]]) -> None:
    expected = latents_of(small_pipeline())
    for found in both:
        torch.testing.assert_close(found["halves"], expected, atol=1e-5, rtol=1e-4)
        assert found["calls"] == 3 + 3  # each computes one view of three steps, twice
    assert torch.equal(both[0]["halves"], both[1]["halves"])


def test_noise_without_a_seed_is_agreed_on(both: list[dict[str, Any]]) -> None:
    for way in ("without_seed", "tokens_without_seed"):
        assert torch.equal(both[0][way], both[1][way])


def test_tokens_on_two_processes_give_the_same(both: list[dict[str, Any]]) -> None:
    for found in both:
        torch.testing.assert_close(found["tokens"]["one"], guided(small_transformer()), atol=1e-5, rtol=1e-4)
        expected = guided(small_transformer(), size=2)
        torch.testing.assert_close(found["tokens"]["two"], expected, atol=1e-5, rtol=1e-4)
        assert set(found["tokens"]["seen"]) == {3 * 2 * 3 // 2}


def test_clips_are_dealt_out_and_come_back_in_order(both: list[dict[str, Any]]) -> None:
    shares = [found["own_clips"] for found in both]
    assert shares == [["a", "c", "e"], ["b", "d"]]
    assert in_order(shares) == CLIPS
    assert in_order([share_of(CLIPS[:1], rank, 3) for rank in range(3)]) == ["a"]
    with pytest.raises(ValueError, match="a process from 0 to 1, found 2"):
        share_of(CLIPS, 2, 2)


@pytest.mark.slow
def test_what_a_process_raises_is_told() -> None:
    with pytest.raises(Exception, match="no room left on this one"):
        run_on_processes(fail_on_second, 2, device_type="cpu")


def test_too_few_devices_are_told() -> None:
    with pytest.raises(ValueError, match="999 processes need as many CUDA devices"):
        run_on_processes(fail_on_second, 999)


def test_wrong_numbers_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda *_: 3)
    with pytest.raises(ValueError, match="two views for two processes, found 3"):
        GuidanceHalves()
    with pytest.raises(ValueError, match="2 heads cannot be split over 3"):
        split_tokens(small_transformer(), torch.device("cpu"))
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda *_: 2)
    with pytest.raises(ValueError, match="call use_own_attention"):
        split_tokens(small_transformer(), torch.device("cpu"))
    with pytest.raises(ValueError, match="choose one of them"):
        Evaluation(in_one_batch=True, halves=GuidanceHalves())
