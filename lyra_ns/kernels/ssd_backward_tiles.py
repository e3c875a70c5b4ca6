"""How the kernels of `ssd_backward` cut their work."""

from __future__ import annotations

from dataclasses import dataclass

from lyra_ns.kernels.ssd_forward import HOPPER_TILES, ScanTiles


@dataclass(frozen=True)
class BackwardTiles:
    """How the kernels cut their work; the result depends on it by rounding only."""

    walk: ScanTiles = HOPPER_TILES
    """The walks along states and their gradients; chunks of one block."""
    written_warps: int = 8
    """Warps of a program that computes gradients of x."""
    written_stages: int = 2
    """Heads in flight there."""
    product_warps: int = 4
    """Warps of a program that takes a quarter of the pairs of a chunk."""
    product_stages: int = 3
    """Heads in flight there."""
    sum_state: int = 128
    """State columns for which one program sums over heads."""
    sum_warps: int = 8
    """Warps of that program."""
    sum_stages: int = 3
    """Heads in flight there."""

    def __post_init__(self) -> None:
        if self.walk.chunk != self.walk.block_rows:
            raise ValueError(
                f"a chunk must be one block of rows, found chunk {self.walk.chunk} and block_rows "
                f"{self.walk.block_rows}: change one"
            )


HOPPER_BACKWARD_TILES = BackwardTiles()
"""For 16-bit tokens, 64 channels and 256 states on an H100 or H200."""
