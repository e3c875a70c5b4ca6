"""The gradients of our state scan on a GPU: as exact as mamba-ssm's, for any length, tiling and decay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.helpers.state_scans import Inputs, draw, exact, relative_error

pytest.importorskip("triton.tools.tensor_descriptor")

from lyra_ns.ops.ssd_triton_backward import ScanGradients, scan_with_gradient, ssd_backward
from lyra_ns.ops.ssd_triton_backward_kernels import HOPPER_BACKWARD_TILES, BackwardTiles

pytestmark = pytest.mark.gpu

NAMES = ScanGradients._fields
ONE_SEGMENT = replace(HOPPER_BACKWARD_TILES, walk=replace(HOPPER_BACKWARD_TILES.walk, num_segments=1))


@pytest.fixture(autouse=True)
def hopper() -> None:
    """The kernels use Hopper's copy engine and matrix instructions."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("the tiles are made for Hopper")


def grad_of(inputs: Inputs) -> Tensor:
    """A random gradient of the result."""
    generator = torch.Generator("cuda").manual_seed(3)
    shape, dtype = inputs["x"].shape, inputs["x"].dtype
    return torch.randn(shape, generator=generator, device="cuda").to(dtype)


def expected_gradients(inputs: Inputs, grad_y: Tensor) -> tuple[Tensor, ...]:
    """The chunked form of torch in float64."""
    leaves = {name: inputs[name].double().requires_grad_() for name in NAMES}
    return torch.autograd.grad(exact(leaves), list(leaves.values()), grad_y.double())


def errors(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> dict[str, float]:
    """Of each gradient by name."""
    return {name: relative_error(a, b) for name, a, b in zip(NAMES, found, expected, strict=True)}


@pytest.mark.parametrize("num_tokens", [1, 127, 129, 3000])
@pytest.mark.parametrize("tiles", [HOPPER_BACKWARD_TILES, ONE_SEGMENT])
def test_equals_chunked_form(num_tokens: int, tiles: BackwardTiles) -> None:
    """Any length and number of segments, up to the rounding of bfloat16."""
    inputs = draw(num_tokens)
    grad_y = grad_of(inputs)
    found = ssd_backward(grad_y, *(inputs[name] for name in NAMES), tiles=tiles)
    expected = expected_gradients(inputs, grad_y)
    # Rounding noise is all that is left of the decay's gradient if nothing fades.
    named = {name for name in NAMES if name != "decay" or num_tokens > 1}
    found_errors = {name: error for name, error in errors(found, expected).items() if name in named}
    assert max(found_errors.values()) < 5e-3, found_errors
    assert num_tokens > 1 or not found.decay.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "groups", "state"), [(16, 1, 256), (24, 2, 256), (4, 2, 128), (6, 2, 64)])
def test_other_sizes(heads: int, groups: int, state: int, dtype: torch.dtype) -> None:
    """Several sequences, other groupings, narrower states, both types."""
    inputs = draw(700, batch=3, heads=heads, groups=groups, state=state, dtype=dtype)
    grad_y = grad_of(inputs)
    found = ssd_backward(grad_y, *(inputs[name] for name in NAMES))
    found_errors = errors(found, expected_gradients(inputs, grad_y))
    assert max(found_errors.values()) < (6e-3 if dtype == torch.bfloat16 else 1e-3), found_errors


@pytest.mark.parametrize("slowness", [0.1, 1.0, 100.0])
def test_no_worse_than_mamba_ssm(slowness: float) -> None:
    """The same inputs through the backward kernels of mamba-ssm; sums over all tokens scatter."""
    ssd_combined = pytest.importorskip("mamba_ssm.ops.triton.ssd_combined")
    inputs = draw(6001, slowness=slowness)
    grad_y = grad_of(inputs)
    x, step, write, read, decay, skip, step_bias = (inputs[name] for name in NAMES)
    of_x, of_step, of_decay, of_write, of_read, of_skip, _, of_bias, _ = (
        ssd_combined._mamba_chunk_scan_combined_bwd(
            grad_y, x, step, decay, write, read, x, 256, D=skip, dt_bias=step_bias, dt_softplus=True
        )
    )
    expected = expected_gradients(inputs, grad_y)
    theirs = errors((of_x, of_step, of_write, of_read, of_decay, of_skip, of_bias), expected)
    ours = errors(ssd_backward(grad_y, *(inputs[name] for name in NAMES)), expected)
    assert all(ours[name] < 1.34 * theirs[name] + 1e-3 for name in NAMES), (ours, theirs)


def test_same_result_twice() -> None:
    """Nothing depends on the order in which programs run."""
    inputs = draw(3000)
    grad_y = grad_of(inputs)
    runs = [ssd_backward(grad_y, *(inputs[name] for name in NAMES)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def differentiated(inputs: Inputs) -> tuple[Tensor, ...]:
    """The result and its gradients through autograd, where the gradient of y is one number, expanded."""
    leaves = [inputs[name].detach().requires_grad_() for name in NAMES]
    y = scan_with_gradient(*leaves)
    return y.detach(), *torch.autograd.grad(y.sum(), leaves)


def test_is_an_operator_that_torch_can_trace() -> None:
    """Schema, shapes, strides and types as promised to torch.compile, from the kernels themselves."""
    inputs, operators = draw(200, heads=4), torch.ops.lyra_ns
    tensors, checks = [inputs[name] for name in NAMES], ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.scan_states.default, tuple(tensors), test_utils=checks)
    torch.library.opcheck(operators.scan_gradients.default, (grad_of(inputs), *tensors), test_utils=checks)


def test_takes_an_expanded_gradient() -> None:
    """That of a sum is one number in memory."""
    inputs = draw(300)
    _, *found = differentiated(inputs)
    expected = expected_gradients(inputs, torch.ones_like(inputs["x"]))
    assert max(errors(tuple(found), expected).values()) < 1e-2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_runs_on_another_than_the_current_device() -> None:
    """Both ways, with the same result to the bit."""
    inputs = draw(300)
    elsewhere = {name: tensor.to("cuda:1") for name, tensor in inputs.items()}
    assert torch.cuda.current_device() == 0
    here, there = differentiated(inputs), differentiated(elsewhere)
    assert all(tensor.device.index == 1 for tensor in there)
    assert all(torch.equal(a, b.to(a.device)) for a, b in zip(here, there, strict=True))
