"""Our state scan on a GPU: as exact as the kernels of mamba-ssm, for any length, tiling and decay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.state_scans import draw, exact, relative_error

pytest.importorskip("triton.tools.tensor_descriptor")

from lyra_ns.ops.ssd_triton import HOPPER_TILES, ScanTiles, ssd_forward

pytestmark = pytest.mark.gpu

TWO_BLOCKS = replace(HOPPER_TILES, chunk=256)
ONE_SEGMENT = replace(HOPPER_TILES, num_segments=1)
ROUNDED = replace(HOPPER_TILES, exact_updates=False)


@pytest.fixture(autouse=True)
def hopper() -> None:
    """The kernels use Hopper's copy engine and matrix instructions."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the tiles are made for Hopper")


@pytest.mark.parametrize("num_tokens", [1, 127, 129, 5000])
@pytest.mark.parametrize("tiles", [HOPPER_TILES, TWO_BLOCKS, ONE_SEGMENT, ROUNDED])
def test_equals_chunked_form(num_tokens: int, tiles: ScanTiles) -> None:
    """Any length and tiling, up to the rounding of bfloat16."""
    inputs = draw(num_tokens)
    assert relative_error(ssd_forward(**inputs, tiles=tiles), exact(inputs)) < 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "groups", "state"), [(16, 1, 256), (24, 2, 256), (4, 2, 128), (6, 2, 64)])
def test_other_sizes(heads: int, groups: int, state: int, dtype: torch.dtype) -> None:
    """Several sequences, other groupings, narrower states, both types."""
    inputs = draw(700, batch=3, heads=heads, groups=groups, state=state, dtype=dtype)
    tolerance = 4e-3 if dtype == torch.bfloat16 else 6e-4
    assert relative_error(ssd_forward(**inputs), exact(inputs)) < tolerance


@pytest.mark.parametrize("slowness", [1e-4, 1.0, 100.0])
def test_no_worse_than_mamba_ssm(slowness: float) -> None:
    """The same inputs through the kernels of mamba-ssm; from decay at once to states that hardly fade."""
    ssd_combined = pytest.importorskip("mamba_ssm.ops.triton.ssd_combined")
    inputs = draw(6001, slowness=slowness)
    expected = exact(inputs)
    theirs = ssd_combined.mamba_chunk_scan_combined(
        inputs["x"],
        inputs["step"],
        inputs["decay"],
        inputs["write"],
        inputs["read"],
        chunk_size=256,
        D=inputs["skip"],
        dt_bias=inputs["step_bias"],
        dt_softplus=True,
    )
    ours = ssd_forward(**inputs)
    assert relative_error(ours, expected) <= 1.005 * relative_error(theirs, expected)


def test_same_result_twice() -> None:
    """Nothing depends on the order in which programs run."""
    inputs = draw(3000)
    assert torch.equal(ssd_forward(**inputs), ssd_forward(**inputs))


def test_refuses_float32() -> None:
    """Float32 has the torch forms."""
    with pytest.raises(ValueError, match="must share one of"):
        ssd_forward(**draw(64, dtype=torch.float32))
