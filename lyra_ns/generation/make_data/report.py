"""What a run of the data maker did, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lyra_ns.generation.make_data.failures import FILE_NAME, Failure


@dataclass(frozen=True)
class MakeDataReport:
    """What a run did."""

    root: Path
    """Folder of the data set."""
    num_made: int
    """Clips made by this run."""
    num_kept: int
    """Clips that were there."""
    num_scenes: int
    """Scenes that are complete now."""
    num_planned: int
    """Scenes that the data set will hold."""
    failures: dict[str, Failure]
    """What could not be made, by scene."""

    def as_text(self) -> str:
        """A few lines for the user."""
        lines = [
            f"{self.root}: {self.num_made} clips made, {self.num_kept} were there; {self.num_scenes} of "
            f"{self.num_planned} scenes complete"
        ]
        shown = list(self.failures.values())[:8]
        lines += [f"  {failure.scene}: {failure.message}" for failure in shown]
        if self.failures:
            rest = len(self.failures) - len(shown)
            more = f" (and {rest} more)" if rest else ""
            lines.append(
                f"{len(self.failures)} scenes failed{more}, see {self.root / FILE_NAME}; "
                "--retry-failed tries them again"
            )
        return "\n".join(lines)
