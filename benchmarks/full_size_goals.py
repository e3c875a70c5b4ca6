"""What speed was aimed at for the paper's size, beside what was measured.

Source: docs/reference/performance.md, "Aims".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.table_text import Row, origin, table

OFFICIAL_WAY = "as the official code computes"
"""The way of the forward pass that ours is compared with."""
MOST_VIEWS = 6
"""Trajectories of a whole scene."""
KEPT_GAUSSIANS = 3_000_000
"""A scene with fewer is a pruned one."""

Rows = list[Row]


@dataclass(frozen=True)
class Goal:
    """One aim."""

    title: str
    """What is measured."""
    part: str
    """Part of the result file that it is found in."""
    find: Callable[[Rows], float | None]
    """The measured value; None where it was not measured."""
    limit: float
    """The aim."""
    unit: str
    """Unit of both."""
    at_least: bool = False
    """Whether more is better."""

    def line(self, rows: Rows) -> list[str] | None:
        """Title, aim, value and verdict; None without a value."""
        value = self.find(rows)
        if value is None:
            return None
        reached = value >= self.limit if self.at_least else value <= self.limit
        relation = "at least" if self.at_least else "at most"
        return [
            self.title,
            f"{relation} {self.limit:g} {self.unit}".rstrip(),
            f"{_short(value)} {self.unit}".rstrip(),
            "yes" if reached else "**no**",
        ]


def forward_milliseconds(rows: Rows, way: str, num_views: int = MOST_VIEWS) -> float | None:
    """Time of one way of the forward pass."""
    return first_value(rows, "ms", way=way, num_views=num_views)


def forward_ratio(rows: Rows) -> float | None:
    """How many times as fast as the official way our exact one is."""
    official, ours = (forward_milliseconds(rows, way) for way in (OFFICIAL_WAY, "fast"))
    return official / ours if official and ours else None


def error_ratio(rows: Rows) -> float | None:
    """Error of our exact way relative to that of the official one."""
    official, ours = (first_value(rows, "relative_error", way=way) for way in (OFFICIAL_WAY, "fast"))
    return ours / official if official and ours else None


def other_than_attention(rows: Rows) -> float | None:
    """Milliseconds that do not grow with the square of the sequence, for a whole scene.

    From the line b + a V that fits the times per trajectory best: attention is a V^2, all else b V.
    An estimate: kernels that use the device better at one length than at another bend the line.
    """
    times = {row["num_views"]: row["ms"] for row in rows if row["way"] == "fast"}
    if len(times) < 2 or MOST_VIEWS not in times:
        return None
    mean_views = sum(times) / len(times)
    per_view = {views: milliseconds / views for views, milliseconds in times.items()}
    mean_time = sum(per_view.values()) / len(times)
    slope = sum((views - mean_views) * (time - mean_time) for views, time in per_view.items()) / sum(
        (views - mean_views) ** 2 for views in times
    )
    return MOST_VIEWS * (mean_time - slope * mean_views)


def frames_per_second(rows: Rows) -> float | None:
    """Images per second of the pruned scene, drawn by 3DGUT."""
    times = [
        row["ms"] for row in rows if row["response"] == "ray3d" and row["num_gaussians"] < KEPT_GAUSSIANS
    ]
    return 1000 / times[0] if times else None


def first_value(rows: Rows, key: str, **wanted: object) -> float | None:
    """The value of the first row that has all that is wanted."""
    found = (row[key] for row in rows if wanted.items() <= row.items() and key in row)
    return next(found, None)


GOALS = (
    Goal(
        "forward pass of six trajectories, exact",
        "forward",
        lambda rows: forward_milliseconds(rows, "fast"),
        1050,
        "ms",
    ),
    Goal(
        "the same, compared with the way the official code computes",
        "forward",
        forward_ratio,
        1.33,
        "times",
        True,
    ),
    Goal("its error in raw outputs, as a share of the official way's", "errors", error_ratio, 1, ""),
    Goal("forward pass without attention (fitted, see below)", "forward", other_than_attention, 150, "ms"),
    Goal(
        "cameras of six trajectories to ray latents",
        "plucker",
        lambda rows: first_value(rows, "ms", what="fast encoder, six views, as many as fit at once"),
        2500,
        "ms",
    ),
    Goal(
        "training step, six trajectories, 54 targets, 80 % pruned",
        "training",
        lambda rows: first_value(rows, "step_s", way="fast", V=6, targets=54, prune=0.8),
        4.5,
        "s",
    ),
    Goal(
        "training step, one trajectory, 9 targets",
        "training",
        lambda rows: first_value(rows, "step_s", way="fast", V=1, targets=9),
        0.45,
        "s",
    ),
    Goal("images of the pruned scene, 3DGUT", "rendering", frames_per_second, 250, "per second", True),
    Goal("PLY of the pruned scene", "writing", lambda rows: first_value(rows, "seconds"), 2, "s"),
)
"""The aims, set for one NVIDIA H100."""


def goals_table(parts: Mapping[str, Row]) -> str:
    """All aims whose part was measured; empty if there is none."""
    lines, origins = [], []
    for goal in GOALS:
        line = goal.line(parts[goal.part]["rows"]) if goal.part in parts else None
        if line is not None:
            lines.append(line)
            origins.append(origin(parts[goal.part]))
    if not lines:
        return ""
    notes = fit_note(parts["forward"]["rows"]) if "forward" in parts else ""
    text = table(["what", "aim", "measured", "reached"], lines)
    return "\n\n".join([text, notes + " ".join(dict.fromkeys(origins))])


def fit_note(rows: Rows) -> str:
    """How attention's share of the forward pass was found; empty without its times."""
    rest, whole = other_than_attention(rows), forward_milliseconds(rows, "fast")
    if rest is None or whole is None:
        return ""
    return (
        "Fitted: time = a V² + b V over the numbers V of trajectories; the first term is attention, the "
        "only part that grows so: "
        f"{100 * (1 - rest / whole):.0f} % of the forward pass of six trajectories.\n\n"
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
