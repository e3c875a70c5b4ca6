"""The stages as a table to read."""

from __future__ import annotations

from collections.abc import Sequence

from lyra_ns.curriculum.options import RunChoices
from lyra_ns.curriculum.stages import Scale, Stage

HEADINGS = (
    "#", "stage", "starts from", "size", "frames", "V", "targets", "law", "latents", "scenes/step", "steps",
    "in all", "pruned", "opacity", "times",
)  # fmt: skip


def stage_table(scale: Scale, stages: Sequence[Stage], choices: RunChoices) -> str:
    """One line per stage: what goes in, what is rendered, for how many steps, its own and those before."""
    rows = [HEADINGS, *(_row(scale, stage, choices) for stage in stages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(scale: Scale, stage: Stage, choices: RunChoices) -> tuple[str, ...]:
    return (
        str(scale.number(stage)),
        stage.name,
        stage.starts_from or "random",
        "x".join(map(str, stage.image_size)) if stage.image_size else "stored",
        str(stage.num_input_frames or "all"),
        "1" if stage.num_trajectories_max == 1 else f"1..{stage.num_trajectories_max}",
        _targets(stage, choices),
        "one moment" if stage.is_dynamic else stage.target_distribution,
        stage.inputs,
        f"{stage.scenes_per_step * choices.num_devices}",
        str(stage.num_steps),
        str(scale.cumulative_steps(stage)),
        f"{stage.prune_ratio:g}",
        f"{stage.opacity:g}",
        "yes" if stage.is_dynamic else "no",
    )


def _targets(stage: Stage, choices: RunChoices) -> str:
    if stage.is_dynamic:
        return "all views"
    views = "" if stage.num_trajectories_max == 1 else " x V"
    return f"{stage.num_target_frames}{views}" + (" anywhere" if choices.cross_view_targets else "")
