"""The Triton kernels of the norms around the Mamba-2 scan, in triton's interpreter on the CPU."""

from __future__ import annotations

import pytest

from tests.ops.test_convolution_triton import kernel_errors


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_numbers"), [("gated_norm", 4), ("branch_norm", 4)])
def test_norm_equals_torch(name: str, num_numbers: int) -> None:
    """Results and gradients: batches, odd lengths, one token, channels that fill no block."""
    for case in kernel_errors(name):
        assert len(case) == num_numbers
        assert max(case.values()) < 1e-5, case


@pytest.mark.slow
@pytest.mark.parametrize("name", ["added_norm", "chain"])
def test_added_norm_equals_torch(name: str) -> None:
    """Stream and norm of the fused addition; and a whole trunk that runs as a chain of branches."""
    for case in kernel_errors(name):
        assert max(case.values()) < 1e-5, case
