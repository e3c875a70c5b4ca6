"""Our state scan on a GPU: as exact as the kernels of mamba-ssm, for any length, tiling and decay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lyra_ns.ssd_states import chunked_states

pytest.importorskip("triton.tools.tensor_descriptor")

from lyra_ns.kernels.ssd_forward import HOPPER_TILES, ScanTiles, ssd_forward

pytestmark = pytest.mark.gpu

TWO_BLOCKS = replace(HOPPER_TILES, chunk=256)
ONE_SEGMENT = replace(HOPPER_TILES, num_segments=1)
ROUNDED = replace(HOPPER_TILES, exact_updates=False)

Inputs = dict[str, Tensor]


@pytest.fixture(autouse=True)
def hopper() -> None:
    """The kernels use Hopper's copy engine and matrix instructions."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the tiles are made for Hopper")


def draw(
    num_tokens: int,
    batch: int = 1,
    heads: int = 32,
    groups: int = 2,
    state: int = 256,
    slowness: float = 1.0,
    dtype: torch.dtype = torch.bfloat16,
) -> Inputs:
    """Inputs as a fresh decoder makes them: rates from 1 to 16, steps from 0.001 to 0.1, SiLU before."""
    torch.manual_seed(0)
    inner, shared = heads * 64, groups * state
    rows = functional.silu(torch.randn(batch, num_tokens, inner + 2 * shared, device="cuda")).to(dtype)
    x, write, read = rows.split([inner, shared, shared], -1)
    step_size = torch.exp(torch.empty(heads, device="cuda").uniform_(-6.9, -2.3))
    return {
        "x": x.unflatten(-1, (heads, 64)),
        "step": torch.randn(batch, num_tokens, heads, device="cuda").mul(0.3).to(dtype),
        "write": write.unflatten(-1, (groups, state)),
        "read": read.unflatten(-1, (groups, state)),
        "decay": -torch.empty(heads, device="cuda").uniform_(1, 16) / slowness,
        "skip": torch.randn(heads, device="cuda"),
        "step_bias": torch.log(torch.expm1(step_size)),
    }


def exact(inputs: Inputs) -> Tensor:
    """The chunked form of torch in float64: float32 itself would be a truth with tf32 or summing errors."""
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    step = functional.softplus(wide["step"] + wide["step_bias"])
    y = chunked_states(wide["x"], step, wide["decay"], wide["write"], wide["read"])
    return y + wide["skip"][:, None] * wide["x"]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference relative to the expected norm."""
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("num_tokens", [1, 127, 129, 5000])
@pytest.mark.parametrize("tiles", [HOPPER_TILES, TWO_BLOCKS, ONE_SEGMENT, ROUNDED])
def test_equals_chunked_form(num_tokens: int, tiles: ScanTiles) -> None:
    """Any length and tiling, up to the rounding of bfloat16."""
    inputs = draw(num_tokens)
    assert relative_error(ssd_forward(**inputs, tiles=tiles), exact(inputs)) < 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "groups", "state"), [(16, 1, 256), (4, 2, 128), (6, 2, 64)])
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
