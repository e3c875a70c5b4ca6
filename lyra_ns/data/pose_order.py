"""Are the poses of the time-reversed views stored backwards? (lyra_decoder.md 4.4 row 2, section 12)

Views 6 to 11 of dynamic scenes were generated on the reversed video and their frames turned back to
forward time, so their *last* frame should lie at the common start pose. The published script turns the
frames but not the saved poses; then the *first* pose lies there instead, and the poses must be reversed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

FlippedPoseOrder = Literal["auto", "as_is", "reverse"]
FIRST_FLIPPED_ID = 6
"""Trajectory ids from here on are time-reversed views of a dynamic scene."""
CLOSED_PATH_SHARE = 0.05
"""Below this share of the path's extent the two ends count as equally near (the spiral is closed)."""


def poses_are_reversed(flipped: Sequence[Float[Tensor, "_ 4 4"]], start: Float[Tensor, "4 4"]) -> bool | None:
    """Whether the flipped views begin at the start pose, where they should end; None if they do not tell.

    The views of one scene vote together, because closed paths (the spiral) look alike from both ends.
    """
    offsets = [(path[:, :3, 3] - start[:3, 3]).norm(dim=-1) for path in flipped]
    extent = max(float(offset.max()) for offset in offsets)
    lead = sum(float(offset[-1] - offset[0]) for offset in offsets)
    return None if abs(lead) <= CLOSED_PATH_SHARE * extent else lead > 0
