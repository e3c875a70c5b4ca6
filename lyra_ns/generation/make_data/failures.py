"""failures.json: what could not be made, why, and in how many runs it was tried."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lyra_ns.data.files import write_whole

FORMAT = "lyra_ns failures 1"
FILE_NAME = "failures.json"


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
    """Failures by scene; ValueError if the file is damaged."""
    path = root / FILE_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        return {
            item["scene"]: Failure(
                item["scene"], tuple(item["trajectories"]), item["message"], int(item["attempts"])
            )
            for item in content["failures"]
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"failures {path} must be JSON as `ns-lyra make-data` writes it, found damage ({error}): delete "
            "it, then what failed is tried again"
        ) from error


def add_failure(root: Path, failure: Failure) -> None:
    """Lists a failure, together with what failed of the same scene before."""
    failures = read_failures(root)
    _write(root, {**failures, failure.scene: _joined(failures.get(failure.scene), failure)})


def remove_failures(root: Path, scene: str, trajectories: Iterable[int]) -> None:
    """Forgets that clips failed, since they are made now; the file goes when nothing is left in it."""
    failures = read_failures(root)
    earlier = failures.pop(scene, None)
    if earlier is None:
        return
    left = tuple(sorted({*earlier.trajectories} - {*trajectories}))
    _write(root, {**failures, scene: replace(earlier, trajectories=left)} if left else failures)


def _write(root: Path, failures: dict[str, Failure]) -> None:
    path = root / FILE_NAME
    if not failures:
        path.unlink(missing_ok=True)
        return
    items = [asdict(failure) for _, failure in sorted(failures.items())]
    write_whole(
        path, json.dumps({"format": FORMAT, "failures": items}, indent=1, ensure_ascii=False).encode()
    )


def _joined(earlier: Failure | None, failure: Failure) -> Failure:
    if earlier is None:
        return failure
    trajectories = tuple(sorted({*earlier.trajectories, *failure.trajectories}))
    return Failure(failure.scene, trajectories, failure.message, max(earlier.attempts, failure.attempts))
