"""Gaussians: activations in closed form, moving, choosing and pruning them."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lyra_ns.cameras import RayGrid
from lyra_ns.gaussians import (
    GaussianHeadConfig,
    Gaussians,
    activate_distance,
    activate_scale,
    concatenate,
    gaussians_from_raw,
    most_opaque,
    multiply_quaternions,
    num_kept,
    prune,
    quaternion_from_matrix,
)

OFFICIAL = GaussianHeadConfig()
seeds = st.integers(0, 2**31)
few = settings(max_examples=20, deadline=None, derandomize=True)


def random_gaussians(seed: int, *shape: int) -> Gaussians:
    """Gaussians of any shape and colour, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*last: int) -> Tensor:
        return torch.randn(*shape, *last, generator=generator, dtype=torch.float64)

    quats = torch.nn.functional.normalize(draw(4), dim=-1)
    return Gaussians(draw(3), quats, draw(3).exp(), draw().sigmoid(), draw(3).sigmoid())


def random_rotation(seed: int) -> Tensor:
    """A rotation matrix."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    return matrix * torch.linalg.det(matrix)


def matrix_from_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation matrices of unit quaternions w x y z, by turning the three axes."""
    axes = torch.eye(3, dtype=quaternion.dtype)
    pure = torch.cat([torch.zeros(3, 1, dtype=quaternion.dtype), axes], -1)
    conjugate = quaternion * torch.tensor([1.0, -1, -1, -1], dtype=quaternion.dtype)
    turned = multiply_quaternions(
        multiply_quaternions(quaternion[..., None, :], pure), conjugate[..., None, :]
    )
    return turned[..., 1:].transpose(-1, -2)


def covariances(gaussians: Gaussians) -> Tensor:
    """World covariance of each Gaussian."""
    half = matrix_from_quaternion(gaussians.quats) * gaussians.scales[..., None, :]
    return half @ half.transpose(-1, -2)


def raw_row(**channels: float) -> Tensor:
    """One row of raw channels [1, 1, 12], zero but for the named ones."""
    names = ["distance", "r", "g", "b", "sx", "sy", "sz", "w", "x", "y", "z", "opacity"]
    return torch.tensor([[[channels.get(name, 0.0) for name in names]]])


def one_ray() -> RayGrid:
    """A ray [1, 1, 1, 1, 1] from (1, 2, 3) along +z, through a cell of size 0.01."""
    origin, direction = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 1.0])
    return RayGrid(
        origin.view(1, 1, 1, 1, 1, 3), direction.view(1, 1, 1, 1, 1, 3), torch.full((1,) * 5, 0.01)
    )


def test_raw_zero() -> None:
    """The values of a raw zero in docs/reference/decoder.md, "Gaussian head"."""
    gaussians = gaussians_from_raw(raw_row(), one_ray(), OFFICIAL)
    assert gaussians.means[0, 0].tolist() == pytest.approx([1, 2, 3 + 80.64], abs=5e-3)
    assert gaussians.opacities.item() == pytest.approx(0.1192, abs=5e-5)
    assert gaussians.scales[0, 0].tolist() == pytest.approx([0.11036] * 3, abs=5e-6)
    assert gaussians.rgb[0, 0].tolist() == [0.5] * 3
    assert gaussians.quats[0, 0].tolist() == [0] * 4


@pytest.mark.parametrize(("raw", "distance"), [(-4.668, 1.0), (-2.965, 5.0)])
def test_listed_distances(raw: float, distance: float) -> None:
    """The raw distances in docs/reference/decoder.md, "Gaussian head"."""
    assert activate_distance(torch.tensor(raw), OFFICIAL).item() == pytest.approx(distance, rel=2e-3)


def test_channels_in_their_order() -> None:
    """Each raw channel reaches the quantity it stands for, and no other."""
    raw = raw_row(r=2.0, g=-1.0, sx=3.0, sz=-2.0, w=3.0, y=4.0, opacity=2.0)
    gaussians = gaussians_from_raw(raw, one_ray(), OFFICIAL)
    assert gaussians.rgb[0, 0].tolist() == pytest.approx([0.5 + 0.5 * math.tanh(c) for c in (2, -1, 0)])
    expected_scales = [0.3, 0.3 / math.e, 0.3 * math.exp(-3)]  # exp(raw - 1) 0.3, capped at 0.3
    assert gaussians.scales[0, 0].tolist() == pytest.approx(expected_scales)
    assert gaussians.quats[0, 0].tolist() == pytest.approx([0.6, 0, 0.8, 0])
    assert gaussians.opacities.item() == 0.5


def test_stabilised_head() -> None:
    """Logarithmic distances, scales tied to the footprint, rotation from the identity."""
    head = GaussianHeadConfig(
        near=1.0,
        far=16.0,
        distance_law="logarithmic",
        distance_shift=0.0,
        scale_law="footprint",
        footprint_gain=0.5,
        identity_rotation=True,
    )
    gaussians = gaussians_from_raw(raw_row(), one_ray(), head)
    assert gaussians.means[0, 0, 2].item() == pytest.approx(3 + 4.0)  # geometric mean of 1 and 16
    assert gaussians.scales[0, 0].tolist() == pytest.approx([0.5 * 4.0 * 0.01] * 3)
    assert gaussians.quats[0, 0].tolist() == [1, 0, 0, 0]
    wide = activate_scale(torch.tensor([50.0, -50.0, 0.0]), torch.tensor([1.0]), head)
    assert wide.tolist() == pytest.approx([0.5 * math.exp(1.2), 0.5 * math.exp(-3), 0.5])
    bounded = activate_scale(
        torch.tensor([50.0, 0.0, 0.1]), torch.tensor([1.0]), replace(head, footprint_limit=0.4)
    )
    assert bounded.tolist() == pytest.approx([0.5 * math.exp(0.4), 0.5, 0.5 * math.exp(0.1)])


@few
@given(raw=st.lists(st.floats(-60, 60, width=32), min_size=12, max_size=12), stabilised=st.booleans())
def test_any_raw_gives_valid_gaussians(raw: list[float], stabilised: bool) -> None:
    """Whatever the network says, all quantities stay in their ranges."""
    head = GaussianHeadConfig(
        distance_law="logarithmic" if stabilised else "linear",
        scale_law="footprint" if stabilised else "capped",
    )
    gaussians = gaussians_from_raw(torch.tensor(raw).view(1, 1, 12), one_ray(), head)
    distance = gaussians.means[0, 0, 2].item() - 3
    assert 0.0999 <= distance <= 500.01
    assert 0 <= gaussians.opacities.item() <= 1
    assert 0 <= gaussians.rgb.min() <= gaussians.rgb.max() <= 1
    assert (gaussians.scales >= 0).all()
    assert gaussians.scales.max() <= (distance * 0.01 * 0.6 * 3.33 if stabilised else 0.3001)


@few
@given(seed=seeds)
def test_quaternion_of_a_matrix(seed: int) -> None:
    """The quaternion turns as the matrix does, and is the one of the two with w >= 0."""
    rotation = random_rotation(seed)
    quaternion = quaternion_from_matrix(rotation)
    assert quaternion[0] >= 0
    torch.testing.assert_close(matrix_from_quaternion(quaternion), rotation)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quaternion_of_half_turns(axis: int) -> None:
    """Half turns, where the usual formula divides by zero."""
    rotation = -torch.eye(3, dtype=torch.float64)
    rotation[axis, axis] = 1.0
    quaternion = quaternion_from_matrix(rotation)
    assert quaternion[1 + axis].abs().item() == pytest.approx(1.0)
    torch.testing.assert_close(matrix_from_quaternion(quaternion), rotation)


@few
@given(first=seeds, second=seeds)
def test_quaternion_product(first: int, second: int) -> None:
    """Multiplying quaternions is multiplying matrices."""
    left, right = random_rotation(first), random_rotation(second)
    product = multiply_quaternions(quaternion_from_matrix(left), quaternion_from_matrix(right))
    torch.testing.assert_close(matrix_from_quaternion(product), left @ right)


@few
@given(seed=seeds)
def test_transform_moves_and_turns(seed: int) -> None:
    """Centres follow the motion and covariances R C R^T; the rest stays."""
    gaussians, rotation = random_gaussians(seed, 2, 5), random_rotation(seed + 1)
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, :3], motion[:3, 3] = rotation, torch.tensor([1.0, -2.0, 3.0])
    moved = gaussians.transform(motion)
    torch.testing.assert_close(moved.means, gaussians.means @ rotation.T + motion[:3, 3])
    torch.testing.assert_close(covariances(moved), rotation @ covariances(gaussians) @ rotation.T)
    for name in ("scales", "opacities", "rgb"):
        assert torch.equal(getattr(moved, name), getattr(gaussians, name))


def test_prune_keeps_the_most_opaque() -> None:
    """The kept ones are exactly the most opaque, in falling order, and whole."""
    gaussians = random_gaussians(0, 2, 50)
    kept = prune(gaussians, 0.8)
    assert kept.num == 9  # int(50 (1 - 0.8)) in float64
    order = gaussians.opacities.argsort(dim=-1, descending=True)[:, :9]
    for field in fields(Gaussians):
        for scene in range(2):
            expected = getattr(gaussians, field.name)[scene][order[scene]]
            assert torch.equal(getattr(kept, field.name)[scene], expected)
    assert prune(gaussians, 0.0) is gaussians


def test_prune_decides_ties_by_position() -> None:
    """Equal opacities, of which bfloat16 gives many: the first ones stay, always the same."""
    gaussians = random_gaussians(1, 1000)
    tied = Gaussians(**{**vars(gaussians), "opacities": torch.full((1000,), 0.5, dtype=torch.float64)})
    assert torch.equal(prune(tied, 0.75).means, tied.means[:250])


@few
@given(
    seed=seeds,
    num=st.integers(0, 60),
    levels=st.sampled_from([1, 2, 5, 1000]),
    has_nan=st.booleans(),
    batch=st.sampled_from([(), (3,), (2, 2)]),
)
def test_most_opaque_is_the_stable_sort(
    seed: int, num: int, levels: int, has_nan: bool, batch: tuple[int, ...]
) -> None:
    """The front of a stable descending argsort, with few levels and so many ties, with NaN, for batches."""
    generator = torch.Generator().manual_seed(seed)
    opacities = torch.randint(levels, (*batch, 60), generator=generator) / levels
    if has_nan:
        opacities[..., torch.randint(60, (4,), generator=generator)] = torch.nan
    expected = opacities.argsort(dim=-1, descending=True, stable=True)[..., :num]
    assert torch.equal(most_opaque(opacities, num), expected)


def test_num_kept() -> None:
    """The official rounding: one less than a fifth."""
    assert num_kept(10_222_080, 0.8) == 2_044_415
    assert num_kept(2176, 0.8) == 435


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
def test_prune_ratio_out_of_range(ratio: float) -> None:
    """A ratio that keeps all, none or more is refused."""
    with pytest.raises(ValueError, match="prune ratio"):
        prune(random_gaussians(2, 10), ratio)


def test_gradients_reach_what_is_kept() -> None:
    """Choosing does not cut gradients, and the ones left out get zero."""
    gaussians = random_gaussians(3, 20)
    means = gaussians.means.clone().requires_grad_()
    prune(Gaussians(**{**vars(gaussians), "means": means}), 0.5).means.sum().backward()
    assert means.grad is not None
    assert means.grad.sum(-1).count_nonzero() == 10


def test_concatenate_and_scene() -> None:
    """Parts keep their order; one scene of a batch has no leading axis."""
    first, second = random_gaussians(4, 2, 3), random_gaussians(5, 2, 4)
    both = concatenate([first, second])
    assert both.num == 7
    assert torch.equal(both.opacities[:, 3:], second.opacities)
    assert torch.equal(both.scene(1).means[:3], first.means[1])
