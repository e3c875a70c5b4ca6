"""The gap rule of the early stages: which frames go in, and from which stretch targets come."""

from __future__ import annotations

import pytest
import torch

from lyra_ns.data.view_sampling import draw_frame_span

OFFICIAL_GAPS = (45, 121)


def spans(num_frames, num_inputs, num_targets, limits=OFFICIAL_GAPS, count=400):
    generator = torch.Generator().manual_seed(0)
    return [draw_frame_span(num_frames, num_inputs, num_targets, limits, generator) for _ in range(count)]


@pytest.mark.parametrize(("num_inputs", "shortest"), [(17, 45), (49, 49)])
def test_official_stretches(num_inputs, shortest):
    """Both ends are inputs, the others lie between, ascending and without repetition."""
    found = spans(121, num_inputs, num_inputs)
    for span in found:
        first, last = span.inputs[0], span.inputs[-1]
        assert span.candidates == list(range(first, last + 1))
        assert 0 <= first < last <= 120
        assert len(span.inputs) == num_inputs
        assert span.inputs == sorted(set(span.inputs))
    gaps = [span.inputs[-1] - span.inputs[0] for span in found]
    assert min(gaps) == shortest
    assert max(gaps) == 120
    # Of the 77 gaps from 45 to 121, those up to the shortest that is possible are drawn as that one.
    expected = sum(min(max(gap, shortest), 120) for gap in range(45, 122)) / 77
    assert sum(gaps) / len(gaps) == pytest.approx(expected, abs=3.5)
    assert {span.inputs[0] for span in found} >= {0, 10, 20}


def test_a_stretch_holds_inputs_and_targets():
    assert all(len(span.candidates) >= 60 for span in spans(121, 17, 60))
    assert all(span.inputs == list(range(17)) for span in spans(17, 17, 3, count=20))
    assert [span.inputs for span in spans(1, 1, 1, count=2)] == [[0], [0]]


def test_short_clips_run_forth_and_back():
    found = spans(5, 9, 5, count=60)
    for span in found:
        steps = torch.tensor(span.inputs).diff().abs()
        assert len(span.inputs) == 9
        assert (steps == 1).all()
        assert span.candidates == [0, 1, 2, 3, 4]
    assert {span.inputs[0] for span in found} == {0, 1, 2, 3, 4}
