"""What a run of the data maker did, and what could not be made, why, and in how many runs it was tried.

ROOT/failures/N/SCENE.json    one per clip N of a scene: runs and machines never write into each other's
ROOT/failures.json            all of them by scene, for people; written when a run ends
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lyra_ns.data.atomic import write_whole

FORMAT = "lyra_ns failures 1"
FILE_NAME = "failures.json"
FOLDER = "failures"


@dataclass(frozen=True)
class Failure:
    """One scene that could not be made, or not wholly."""

    scene: str
    """Name of the scene."""
    trajectories: tuple[int, ...]
    """Clips that could not be made."""
    message: str
    """One sentence: why."""
    attempts: int = 1
    """Runs in which it was tried."""


def read_failures(root: Path) -> dict[str, Failure]:
    """Failures by scene, with the message of its first clip; ValueError if a file is damaged."""
    failures: dict[str, Failure] = {}
    for path in sorted(_files(root), key=lambda path: int(path.parent.name)):
        found = _read(path)
        if found is not None:
            failures[found.scene] = _joined(failures.get(found.scene), found)
    return dict(sorted(failures.items()))


def add_failure(root: Path, failure: Failure) -> None:
    """Lists a failure, together with what failed of the same scene before."""
    for number in failure.trajectories:
        entry = {"scene": failure.scene, "message": failure.message, "attempts": failure.attempts}
        write_whole(_path(root, failure.scene, number), _as_bytes(entry))


def remove_failures(root: Path, scene: str, trajectories: Iterable[int]) -> None:
    """Forgets that clips failed, since they are made now."""
    for number in trajectories:
        _path(root, scene, number).unlink(missing_ok=True)


def forget_failures(root: Path) -> None:
    """Forgets everything that failed."""
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    (root / FILE_NAME).unlink(missing_ok=True)


def write_summary(root: Path) -> dict[str, Failure]:
    """Writes ROOT/failures.json, or removes it where nothing failed, and returns the failures by scene."""
    failures, path = read_failures(root), root / FILE_NAME
    if failures:
        items = [asdict(failure) for failure in failures.values()]
        write_whole(path, _as_bytes({"format": FORMAT, "failures": items}))
    else:
        path.unlink(missing_ok=True)
    return failures


def _files(root: Path) -> list[Path]:
    """The files of all clips that failed, whole ones only."""
    files = (root / FOLDER).glob("*/*.json")
    return [path for path in files if path.parent.name.isdecimal() and not path.name.startswith(".")]


def _path(root: Path, scene: str, trajectory: int) -> Path:
    return root / FOLDER / str(trajectory) / f"{scene}.json"


def _as_bytes(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def _read(path: Path) -> Failure | None:
    """The failure of one clip; None if another run removed it meanwhile."""
    try:
        content = json.loads(path.read_bytes())
        number = int(path.parent.name)
        return Failure(content["scene"], (number,), content["message"], int(content["attempts"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"failure {path} must be JSON as `ns-lyra make-data` writes it, found damage ({error}): delete "
            "it, then what failed is tried again"
        ) from error


def _joined(earlier: Failure | None, failure: Failure) -> Failure:
    if earlier is None:
        return failure
    trajectories = (*earlier.trajectories, *failure.trajectories)
    return Failure(earlier.scene, trajectories, earlier.message, max(earlier.attempts, failure.attempts))


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
