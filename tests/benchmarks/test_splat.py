"""The benchmark of the 3D cache, at a size that a CPU can run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.splat import WAYS, main


def test_every_way_has_a_time_and_shows_what_the_plain_loop_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "splat.json"
    main("cpu", num_views=2, num_frames=2, height=32, width=48, repetitions=1, output=output)
    rows = json.loads(output.read_text())["rows"]
    assert [row["way"] for row in rows] == list(WAYS)
    assert all(row["ms_per_frame"] > 0 for row in rows)
    for row in rows:
        if row["way"] in ("at once, soft", "at once, hard"):
            assert row["same_mask"] > 0.995
            assert row["colour_difference"] < 1e-3
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(WAYS)
