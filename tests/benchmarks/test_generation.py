"""The benchmark of GEN3C's network, at a size that a CPU can compute, and its tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.full_size.inputs import Size
from benchmarks.full_size.measure import Measured
from benchmarks.generation import network, policies, sampler
from benchmarks.generation.__main__ import main
from benchmarks.generation.network import PLAIN_WAY, Bench
from benchmarks.generation.result_file import ResultFile
from benchmarks.generation_tables import GENERATION_TABLES, RESULT_FILE, TABLE_OF_PART
from tests.benchmarks.test_tables import cells
from tests.helpers.small_gen3c import small_autoencoder, small_config

TINY = Size(num_frames=17, height=32, width=48)


def measured_once(work: Callable[[], Any], *_: int, **__: int) -> Measured:
    """Does the work, and says that it took two milliseconds."""
    work()
    return Measured(2.0, 1.5, 0.25)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Bench]:
    for module in (network, policies):
        monkeypatch.setattr(module, "measure", measured_once)
    monkeypatch.setattr(network, "with_cudnn", lambda work: work)
    monkeypatch.setattr(sampler, "with_cudnn", lambda work: work)

    def make(part: str) -> Bench:
        file = ResultFile(tmp_path / RESULT_FILE, part, vars(TINY), "abc", "cpu")
        return Bench(file, TINY, "cpu", small_config(), 1)

    return make


def rows(bench: Bench) -> dict[str, Any]:
    content = json.loads(bench.file.path.read_text())["parts"][bench.file.part]
    assert "Random weights" in content["note"]
    return {row.pop("way"): row for row in content["rows"]}


@pytest.mark.slow
def test_evaluations_put_more_and_more_of_ours_in(bench: Callable[[str], Bench]) -> None:
    one = bench("evaluations")
    network.evaluation_rows(one)
    found = rows(one)
    assert not [row for row in found.values() if "failed" in row]
    assert next(iter(found)) == PLAIN_WAY
    assert found[PLAIN_WAY]["deviation"] == 0
    assert found["and own blocks with fused kernels"]["deviation"] < 0.02
    assert 0 < found["own blocks, 8-bit products"]["deviation"] < 0.3
    assert found["a predicted evaluation (step cache)"]["skipped"] == 1
    table = cells(TABLE_OF_PART["evaluations"](one.file.content["parts"]))
    assert table[1] == [PLAIN_WAY, "0.00", "–", "1.5", "0.0e+00"]
    assert table[2][2] == "1.00x"
    assert len(table) == 1 + len(found)


@pytest.mark.slow
def test_deviations_are_those_of_whole_runs(bench: Callable[[str], Bench]) -> None:
    one = bench("deviations")
    sampler.deviation_rows(one, 9, 7)
    found = rows(one)
    assert not [row for row in found.values() if "failed" in row]
    assert found["own blocks with fused kernels"]["deviation"] < 0.02
    assert 1e-4 < found["8-bit weights"]["deviation"] < 0.5
    cached = found["step cache, threshold 0.2, order 1"]
    assert cached["evaluations"] == 14
    assert "frames" in TABLE_OF_PART["deviations"](one.file.content["parts"])


@pytest.mark.slow
def test_errors_are_against_float32(bench: Callable[[str], Bench]) -> None:
    one = bench("errors")
    sampler.error_rows(one, 9)
    found = rows(one)
    assert 1e-4 < found[PLAIN_WAY]["error"] < 0.05
    assert found["8-bit products"]["error"] > found[PLAIN_WAY]["error"]
    assert cells(TABLE_OF_PART["errors"](one.file.content["parts"]))[1][0] == PLAIN_WAY


@pytest.mark.slow
def test_guidance_is_measured_both_ways(bench: Callable[[str], Bench]) -> None:
    one = bench("guidance")
    network.guidance_rows(one)
    assert list(rows(one)) == ["two passes", "one batch"]
    assert len(cells(TABLE_OF_PART["guidance"](one.file.content["parts"]))) == 3


@pytest.mark.slow
def test_policies_and_tokenizer_are_measured(
    bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "random_autoencoder", lambda: small_autoencoder().bfloat16().float())
    one = bench("policies")
    policies.policy_rows(one, with_text=False)
    other = bench("codec")
    policies.codec_rows(other)
    found = rows(one)
    assert list(found) == ["fast", "balanced", "low", "low, 8-bit weights"]
    assert list(rows(other))[-1] == "decode one clip"
    assert not [row for row in [*found.values(), *rows(other).values()] if "failed" in row]


@pytest.mark.slow
def test_rows_are_kept_made_again_after_failure_and_resumed(bench: Callable[[str], Bench]) -> None:
    def fail() -> Any:
        raise RuntimeError("out of memory")

    one = bench("codec")
    one.file.row("first", fail)
    one.file.row("second", lambda: {"ms": 1000.0, "peak_gib": 3.0})
    assert rows(one)["first"]["failed"] == "RuntimeError: out of memory"
    assert cells(TABLE_OF_PART["codec"](one.file.content["parts"]))[1:] == [
        ["first", "–", "–"],
        ["second", "1.00", "3.0"],
    ]
    again = bench("codec")
    assert again.file.row("second", fail)["ms"] == 1000.0
    assert again.file.row("first", lambda: {"ms": 2000.0})["ms"] == 2000.0
    assert list(rows(again)) == ["second", "first"]
    other = ResultFile(again.file.path, "codec", vars(TINY), "another commit", "cpu")
    # Where git says what the commit is, the one that was given does not count.
    assert (other.rows == []) == (other.commit == "another commit")


def test_tables_are_empty_without_their_part(tmp_path: Path, bench: Callable[[str], Bench]) -> None:
    assert {make(tmp_path / "nowhere") for make in GENERATION_TABLES.values()} == {""}
    one = bench("policies")
    row = {"ms": 4000.0, "peak_gib": 20.0, "estimate_gib": 21.0, "text_ms": 100.0, "text_peak_gib": 10.0}
    one.file.row("fast", lambda: row)
    assert GENERATION_TABLES["generation_codec"](tmp_path) == ""
    text = GENERATION_TABLES["generation_policies"](tmp_path)
    assert cells(text)[1] == ["fast", "4.00", "20.0", "21.0", "0.10", "10.0"]
    assert "commit" in text


def test_it_wants_a_cuda_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit, match="on a CUDA device"):
        main()
