"""plan.json: which scenes a data set will hold, decided once, so that every run and worker makes the same.

    ROOT/plan.json    settings, their digest, and per scene its source, digest, trajectories and split

A rerun with more sources adds their scenes; a rerun with other settings is refused. Work is handed out in
jobs: the clips of one scene that are still missing, or some of them. A clip is there when its pose file is,
since writers put that last; so the folders say what is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.data.atomic import write_whole
from lyra_ns.data.layout import FAMILIES
from lyra_ns.data.pose_order import FIRST_FLIPPED_ID
from lyra_ns.data.splits import split_scenes
from lyra_ns.data.store import FILE_NAME as MANIFEST_NAME
from lyra_ns.data.store import list_clips
from lyra_ns.make_data.failures import forget_failures, read_failures
from lyra_ns.make_data.settings import MakeDataSettings, settings_as_json, settings_digest
from lyra_ns.make_data.sources import DIGEST_DIGITS, FoundScene, FoundScenes, SourceKind

FORMAT = "lyra_ns plan 1"
FILE_NAME = "plan.json"
SHORT_DIGEST = 8
PICTURE_FOLDER = "inputs"
"""Folder of the data set with the pictures that were made from prompts."""


@dataclass(frozen=True)
class PlannedScene:
    """One scene of the data set."""

    name: str
    """Its name on disk."""
    kind: SourceKind
    """What it is made from."""
    source: str
    """File below the input, name of the clip in it, or the prompt itself."""
    digest: str
    """Fingerprint of the content, from which its random draws follow."""
    trajectories: tuple[int, ...]
    """Numbers of its clips, ascending; from 6 on those of the reversed video."""
    split: Literal["train", "test"]
    """What it is for."""
    prompt: str | None = None
    """Prompt of its own; None takes that of the settings."""


@dataclass(frozen=True)
class Plan:
    """What a data set will hold."""

    settings: MakeDataSettings
    """How its clips are made."""
    is_dynamic: bool
    """Whether things move in its scenes."""
    scenes: dict[str, PlannedScene] = field(default_factory=dict)
    """Scenes by name."""

    @property
    def family(self) -> str:
        """Folder of its clips."""
        return "dynamic" if self.is_dynamic else "static"

    @property
    def splits(self) -> dict[str, list[str]]:
        """Names by split."""
        return {
            split: sorted(name for name, scene in self.scenes.items() if scene.split == split)
            for split in ("train", "test")
        }


def extended_plan(root: Path, settings: MakeDataSettings, found: FoundScenes) -> Plan:
    """The plan of an earlier run with the scenes of `found` added, or a new one; written to ROOT/plan.json.

    What is planned does not depend on the order of `found`. ValueError if the earlier run had other
    settings or other kinds of scenes, or if ROOT holds a data set without a plan.
    """
    plan = _earlier_plan(root, settings, found.is_dynamic)
    added = _named(found.scenes, plan.scenes)
    names = [*plan.scenes, *added]
    given = {
        split: sorted({*plan.splits[split], *_decided(added, found.splits.get(split, []))})
        for split in ("train", "test")
    }
    split = split_scenes(names, settings.seed, settings.test_fraction, given=given)
    test = set(split.test)
    scenes = dict(plan.scenes)
    for name, scene in added.items():
        scenes[name] = PlannedScene(
            name=name,
            kind=scene.kind,
            source=scene.source,
            digest=scene.digest,
            trajectories=scene.trajectories or _trajectories(settings, plan.is_dynamic),
            split="test" if name in test else "train",
            prompt=scene.prompt,
        )
    plan = replace(plan, scenes=dict(sorted(scenes.items())))
    write_plan(root, plan)
    return plan


def chosen_scenes(plan: Plan, found: Iterable[FoundScene]) -> list[PlannedScene]:
    """The planned scenes whose content is among `found`, with the place where it was found now."""
    here = {scene.digest: scene for scene in found}
    return [
        replace(scene, source=here[scene.digest].source)
        for scene in plan.scenes.values()
        if scene.digest in here
    ]


def write_plan(root: Path, plan: Plan) -> Path:
    """Writes ROOT/plan.json whole and returns its path."""
    content = {
        "format": FORMAT,
        "settings_digest": settings_digest(plan.settings),
        "settings": settings_as_json(plan.settings),
        "is_dynamic": plan.is_dynamic,
        "scenes": {
            name: {key: value for key, value in asdict(scene).items() if key != "name"}
            for name, scene in plan.scenes.items()
        },
    }
    path = root / FILE_NAME
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False).encode())
    return path


def is_unused(root: Path) -> bool:
    """Whether a plan could be taken back: nothing was made by it, and nothing failed."""
    return _holds_nothing(root) and not read_failures(root)


def _earlier_plan(root: Path, settings: MakeDataSettings, is_dynamic: bool) -> Plan:
    path = root / FILE_NAME
    if not path.is_file():
        _check_free(root)
        return Plan(settings, is_dynamic)
    content = _read(path)
    is_same = content["settings_digest"] == settings_digest(settings)
    if not (is_same and content["is_dynamic"] == is_dynamic) and _holds_nothing(root):
        # Nothing was made by that plan, as after a mistake in the options.
        forget_failures(root)
        return Plan(settings, is_dynamic)
    if not is_same:
        differences = _differences(content["settings"], settings_as_json(settings))
        raise ValueError(
            f"{root} was planned with {differences}: give the same options, or another output folder"
        )
    if content["is_dynamic"] != is_dynamic:
        kinds = ["still", "moving"]
        raise ValueError(
            f"{root} was planned for {kinds[content['is_dynamic']]} scenes, now the input has "
            f"{kinds[is_dynamic]} ones: take another output folder"
        )
    known = {item.name for item in fields(PlannedScene)}
    scenes = {
        name: PlannedScene(
            name=name,
            **{key: _frozen(value) for key, value in scene.items() if key in known},
        )
        for name, scene in content["scenes"].items()
    }
    return Plan(settings, is_dynamic, scenes)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if content.get("format") != FORMAT:
            raise ValueError(f"format {content.get('format')!r}")
        if not {"settings_digest", "settings", "is_dynamic", "scenes"} <= content.keys():
            raise ValueError("entries are missing")
        return content
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"plan {path} must be JSON as `ns-lyra make-data` writes it, found damage ({error}): take "
            "another output folder"
        ) from error


def _check_free(root: Path) -> None:
    """ValueError if the folder holds clips that nobody planned."""
    holds = [name for name in (MANIFEST_NAME, "static", "dynamic", "0") if (root / name).exists()]
    if holds:
        raise ValueError(
            f"output {root} must be empty or a folder of `ns-lyra make-data`, found {', '.join(holds)} "
            f"without {FILE_NAME}: take another output folder"
        )


def _holds_nothing(root: Path) -> bool:
    return not any((root / name).exists() for name in (*FAMILIES, PICTURE_FOLDER))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings that changed, in words; those of the teacher one by one."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        earlier, later = before.get(key), now.get(key)
        if earlier == later:
            continue
        if isinstance(earlier, dict) and isinstance(later, dict):
            found.append(_differences(earlier, later))
        else:
            found.append(f"{key} = {json.dumps(earlier)}, now {json.dumps(later)}")
    return " and ".join(found) or "another version of lyra-ns"


def _named(found: Iterable[FoundScene], planned: dict[str, PlannedScene]) -> dict[str, FoundScene]:
    """New scenes by a name that no other scene has, in small letters either, as some disks want it.

    What has a name twice gets some of its digest, and all of it where that is still not enough: of 60,000
    pictures with one name two are likely to share some.
    """
    known = {scene.digest for scene in planned.values()}
    left = [scene for scene in found if scene.digest not in known]
    named: dict[str, FoundScene] = {}
    for num_digits in (0, SHORT_DIGEST):
        names = [_with_digest(scene, num_digits) for scene in left]
        counts = Counter(name.casefold() for name in (*planned, *named, *names))
        has_name = [counts[name.casefold()] == 1 for name in names]
        named |= {name: scene for name, scene, has in zip(names, left, has_name, strict=True) if has}
        left = [scene for scene, has in zip(left, has_name, strict=True) if not has]
    return named | {_with_digest(scene, DIGEST_DIGITS): scene for scene in left}


def _with_digest(scene: FoundScene, num_digits: int) -> str:
    return f"{scene.name}-{scene.digest[:num_digits]}" if num_digits else scene.name


def _decided(added: dict[str, FoundScene], sources: Iterable[str]) -> list[str]:
    """Names in the data set of scenes that are in a split of the source, where they may have others."""
    wanted = set(sources)
    return [name for name, scene in added.items() if scene.source in wanted]


def _trajectories(settings: MakeDataSettings, is_dynamic: bool) -> tuple[int, ...]:
    forward = tuple(sorted(settings.trajectories))
    if not (is_dynamic and settings.flipped):
        return forward
    return (*forward, *(FIRST_FLIPPED_ID + number for number in forward))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Job:
    """Work for one worker."""

    scene: PlannedScene
    """The scene."""
    trajectories: tuple[int, ...]
    """Clips to make, ascending; they share depth and cache."""


@dataclass(frozen=True)
class JobResult:
    """What became of a job."""

    job: Job
    """The job."""
    failure: str | None = None
    """One sentence if it could not be done."""
    is_fatal: bool = False
    """Whether every other job would end like this one, so that the run stops."""
    is_worker_lost: bool = False
    """Whether its worker can do nothing more; the job, and what that worker would have done, is left."""
    codec: VideoLatentSpec | None = None
    """Codec of the latents that were made."""


@dataclass(frozen=True)
class Shard:
    """One of several equal parts of the scenes, for machines that do not know of each other."""

    index: int = 0
    """Number of the part, from 0."""
    count: int = 1
    """How many parts there are."""

    @staticmethod
    def parse(text: str) -> Shard:
        """The shard of a text such as 0/4; ValueError for others."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or not int(found[1]) < int(found[2]):
            raise ValueError(f"expected a shard such as 0/4 (the first of four), found {text!r}")
        return Shard(int(found[1]), int(found[2]))

    def holds(self, scene: PlannedScene) -> bool:
        """Whether a scene is in this part, by its content."""
        digest = hashlib.sha256(scene.digest.encode()).digest()
        return int.from_bytes(digest[:8], "little") % self.count == self.index


def finished_clips(folder: Path) -> dict[str, set[int]]:
    """Numbers of the clips that are there, by scene; `folder` holds the numbered ones."""
    return {name: set(ids) for name, ids in list_clips(folder).items()} if folder.is_dir() else {}


def missing_jobs(
    scenes: Iterable[PlannedScene], finished: Mapping[str, set[int]], clips_per_job: int = 0
) -> Iterator[Job]:
    """Jobs for all clips that are not finished, scene by scene; 0 clips per job makes one job of a scene."""
    for scene in scenes:
        missing = [number for number in scene.trajectories if number not in finished.get(scene.name, ())]
        size = clips_per_job or max(len(missing), 1)
        for first in range(0, len(missing), size):
            yield Job(scene, tuple(missing[first : first + size]))
