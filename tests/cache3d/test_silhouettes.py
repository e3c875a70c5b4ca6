"""Triangles drawn span by span against rays against every triangle, and the sheet over torn silhouettes."""

from __future__ import annotations

import pytest
import torch

from lyra_ns.cache3d import splat
from lyra_ns.cache3d.splat import moved_pixels, nearest_triangle_depth, reliable_depth, sheet_depth
from tests.helpers.cache_scenes import (
    BOX_COLUMNS,
    BOX_ROWS,
    FOCAL,
    HEIGHT,
    WALL,
    WIDTH,
    box_before_wall,
    cameras_at,
    hill,
)

NOTHING_UNKNOWN = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)


def depth_by_rays(corners: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[H, W] by the ray through each pixel's centre (u, v, 1) against every triangle [N, 3, 3]."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([columns, rows, torch.ones_like(rows)], -1).double().reshape(-1, 3)
    origin, edge_a, edge_b = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    # ray z = origin + a edge_a + b edge_b, solved for (z, a, b).
    matrix = torch.stack(
        [
            rays[:, None].expand(-1, len(corners), -1),
            -edge_a.expand(len(rays), -1, -1),
            -edge_b.expand(len(rays), -1, -1),
        ],
        -1,
    )
    z, a, b = torch.linalg.solve(matrix, origin.expand(len(rays), -1, -1)).unbind(-1)
    inside = (a >= -1e-9) & (b >= -1e-9) & (a + b <= 1 + 1e-9) & (z > 0)
    return torch.where(inside, z, torch.inf).amin(1).reshape(height, width)


def random_triangles(num: int, height: int, width: int) -> torch.Tensor:
    """Homogeneous corners of triangles of all sizes, in and around the image."""
    generator = torch.Generator().manual_seed(3)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    centre = uniform(num, 1, 2) * 1.4 - 0.2
    size = 0.05 + 1.5 * uniform(num, 1, 1) ** 2
    pixels = (centre + size * (uniform(num, 3, 2) - 0.5)) * torch.tensor([width, height])
    z = 0.5 + 4 * uniform(num, 3, 1)
    return torch.cat([pixels * z, z], -1)


def test_triangles_are_what_rays_hit():
    corners = random_triangles(80, 24, 36)
    drawn = nearest_triangle_depth(corners, torch.zeros(80, dtype=torch.long), 1, (24, 36))[0]
    expected = depth_by_rays(corners, 24, 36)
    hit = torch.isfinite(expected)
    assert 0.5 < hit.double().mean() < 1
    assert torch.equal(torch.isfinite(drawn), hit)
    torch.testing.assert_close(drawn[hit], expected[hit], rtol=2e-3, atol=0)


def test_triangles_stay_in_their_images_and_pieces_change_nothing(monkeypatch):
    corners, image = random_triangles(80, 24, 36), torch.arange(80) % 3
    whole = nearest_triangle_depth(corners, image, 3, (24, 36))
    for k in range(3):
        single = nearest_triangle_depth(
            corners[image == k], torch.zeros((image == k).sum(), dtype=torch.long), 1, (24, 36)
        )
        assert torch.equal(single[0], whole[k])
    monkeypatch.setattr(splat, "PIECE", 7)
    assert torch.equal(nearest_triangle_depth(corners, image, 3, (24, 36)), whole)


def test_no_triangles_give_no_depth():
    depth = nearest_triangle_depth(torch.zeros(0, 3, 3), torch.zeros(0, dtype=torch.long), 2, (3, 4))
    assert depth.shape == (2, 3, 4)
    assert torch.isinf(depth).all()


def test_two_triangles_of_a_square_leave_no_gap():
    # Corners on odd fractions of a pixel, the diagonal through many of them.
    square = torch.tensor([[1.3, 1.1], [30.7, 1.1], [1.3, 20.9], [30.7, 20.9]], dtype=torch.float32)
    corners = torch.cat([square, torch.ones(4, 1)], 1)[torch.tensor([[0, 1, 2], [1, 3, 2]])]
    depth = nearest_triangle_depth(corners, torch.zeros(2, dtype=torch.long), 1, (24, 36))[0]
    expected = torch.zeros(24, 36, dtype=torch.bool)
    expected[1:21, 1:31] = True
    assert torch.equal(torch.isfinite(depth), expected)


def test_the_sheet_hangs_between_the_box_and_the_wall():
    depth, source = box_before_wall()[None], cameras_at([(0.0, 0.0, 0.0)])
    target = cameras_at([(0.2, 0.0, 0.0)])
    torn = ~reliable_depth(depth, 0.05)
    sheet = sheet_depth(moved_pixels(depth, source, target), NOTHING_UNKNOWN, torn, (HEIGHT, WIDTH))[0]
    # The gap that opens to the right of the box, in its middle row, is spanned from near to far.
    row = (BOX_ROWS.start + BOX_ROWS.stop) // 2
    gap = sheet[row, BOX_COLUMNS.stop - 10 : BOX_COLUMNS.stop - 5]
    assert torch.isfinite(gap).all()
    assert ((gap > 1) & (gap < WALL)).all()
    assert (gap.diff() > 0).all()
    assert torch.isinf(sheet[:4]).all()


@pytest.mark.parametrize("case", ["nothing torn", "all unknown", "behind the camera", "tiny image"])
def test_there_is_no_sheet(case):
    depth, source, size = box_before_wall()[None], cameras_at([(0.0, 0.0, 0.0)]), (HEIGHT, WIDTH)
    target = cameras_at([(0.0, 0.0, 3.0 if case == "behind the camera" else 0.0)])
    positions, known = moved_pixels(depth, source, target), NOTHING_UNKNOWN
    torn = ~reliable_depth(depth, 0.05)
    if case == "nothing torn":
        torn = ~reliable_depth(hill()[None], 0.05) & False
    if case == "all unknown":
        known = ~known
    if case == "tiny image":
        positions, known, torn, size = positions[..., :7, :7], known[:, :7, :7], ~torn[:, :7, :7], (7, 7)
    assert torch.isinf(sheet_depth(positions, known, torn, size)).all()


def test_the_sheet_of_a_slope_has_its_depth():
    # Where everything counts as torn the sheet is the surface itself.
    depth, source = hill()[None], cameras_at([(0.0, 0.0, 0.0)])
    sheet = sheet_depth(
        moved_pixels(depth, source, source), NOTHING_UNKNOWN, NOTHING_UNKNOWN, (HEIGHT, WIDTH)
    )[0]
    inner = (slice(4, -4), slice(4, -4))
    torch.testing.assert_close(sheet[inner], hill()[inner], rtol=0, atol=WALL / FOCAL / 4)
