"""Train and test scenes: split by scene name, remembered beside the data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lyra_ns.data.atomic import write_whole

logger = logging.getLogger(__name__)

FILE_NAME = "splits.json"


@dataclass(frozen=True)
class SceneSplit:
    """Two disjoint lists of scene names, each sorted."""

    train: list[str]
    """Scenes to train on."""
    test: list[str]
    """Scenes held out."""


def split_scenes(
    names: Iterable[str],
    seed: int = 0,
    test_fraction: float = 0.1,
    folder: Path | None = None,
    given: Mapping[str, list[str]] | None = None,
) -> SceneSplit:
    """The split of `names`, which stays the same when scenes are added later.

    `given` (a manifest's splits) decides for the scenes it names; then comes what an earlier call with the
    same seed and fraction wrote into FOLDER/splits.json; other scenes are drawn by a hash of their name.
    At least one scene of several is held out. A folder that cannot be written to is only logged.
    """
    names = sorted(set(names))
    if not 0.0 <= test_fraction < 1.0:
        raise ValueError(f"test_fraction must be in [0, 1), found {test_fraction}: take for example 0.1")
    key = f"seed={seed} test_fraction={test_fraction:g}"
    stored = _read(folder) if folder else {}
    decided = _decisions(stored.get(key, {})) | _decisions(given or {})
    is_test = {name: decided.get(name, _draw(seed, name) < test_fraction) for name in names}
    if test_fraction > 0 and len(names) > 1 and not any(is_test.values()) and not decided:
        is_test[min(names, key=lambda name: _draw(seed, name))] = True
    split = SceneSplit(
        train=[name for name in names if not is_test[name]], test=[name for name in names if is_test[name]]
    )
    if folder and any(name not in decided for name in names):
        _write(folder, stored | {key: _merged(stored.get(key, {}), split)})
    return split


def _draw(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _decisions(split: Mapping[str, list[str]]) -> dict[str, bool]:
    train = dict.fromkeys(split.get("train", []), False)
    return train | dict.fromkeys(split.get("test", []), True)


def _merged(earlier: Mapping[str, list[str]], split: SceneSplit) -> dict[str, list[str]]:
    """The split with scenes of earlier calls that are absent now, so that they keep their place."""
    now = set(split.train + split.test)
    return {
        kind: sorted({*getattr(split, kind), *(name for name in earlier.get(kind, []) if name not in now)})
        for kind in ("train", "test")
    }


def _read(folder: Path) -> dict[str, dict[str, list[str]]]:
    path = folder / FILE_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("no mapping")
        return content
    except ValueError as error:
        raise ValueError(
            f"splits {path} must be JSON as `split_scenes` writes it, found damage ({error}): delete it to "
            "draw the split again"
        ) from error


def _write(folder: Path, content: dict[str, dict[str, list[str]]]) -> None:
    try:
        write_whole(folder / FILE_NAME, json.dumps(content, indent=1).encode())
    except OSError as error:
        logger.warning(
            "the scene split could not be stored in %s (%s): it holds for this run only", folder, error
        )
