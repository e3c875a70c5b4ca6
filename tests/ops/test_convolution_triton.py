"""The Triton kernel of both directions' convolution, in triton's interpreter on the CPU."""

from __future__ import annotations

import json

import pytest

from tests.helpers.interpreter import interpreted


def kernel_errors(name: str) -> list[dict[str, float]]:
    """Relative errors by result and gradient, for each case of the script."""
    pytest.importorskip("triton")
    return json.loads(interpreted("mamba_kernel_values.py", name).splitlines()[-1])


@pytest.mark.slow
def test_convolution_equals_torch() -> None:
    """Five results, three gradients: batches, odd lengths, fewer tokens than taps, cut blocks, other taps."""
    cases = kernel_errors("convolution")
    assert len(cases) == 4
    for case in cases:
        assert len(case) == 8
        assert max(case.values()) < 1e-5, case
