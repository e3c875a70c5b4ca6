"""The scenes of an input: pictures, videos, ViPE's output, prompts, or clips that have cameras."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lyra_ns.data.atomic import Source
from lyra_ns.data.images import SUFFIXES as IMAGE_SUFFIXES
from lyra_ns.data.store import LyraClip, LyraStore
from lyra_ns.data.video import SUFFIXES as VIDEO_SUFFIXES
from lyra_ns.depth.vipe import vipe_clips
from lyra_ns.teachers.replay import CAMERA_SUFFIXES, ClipOnDisk, VideoClip, clips_on_disk

logger = logging.getLogger(__name__)

SourceKind = Literal["image", "video", "vipe", "prompt", "clips"]
MOVING_KINDS: tuple[SourceKind, ...] = ("video", "vipe")
"""Sources of dynamic scenes; of clips it is the data set that says so."""
PROMPT_SUFFIXES = (".txt",)
KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *PROMPT_SUFFIXES)
"""Of files that are no surprise in a folder of sources."""
LONGEST_NAME = 150
"""Bytes of a scene's name; files take more, and file systems no more than 255."""
DIGEST_DIGITS = 32
DIGEST_BYTES = 2**23
"""Of a longer file only so many bytes at either end, and its length, go into the digest."""


@dataclass(frozen=True)
class FoundScene:
    """One scene of an input, before it is planned."""

    name: str
    """What the source calls it."""
    kind: SourceKind
    """What it is made from."""
    source: str
    """File below the input, name of the clip in it, or the prompt itself."""
    digest: str
    """Fingerprint of the content, from which all random draws of the scene follow."""
    prompt: str | None = None
    """Prompt of its own: the prompt, or the text file beside a picture or video."""
    trajectories: tuple[int, ...] | None = None
    """Trajectories that the source itself has; None where the settings choose them."""


@dataclass(frozen=True)
class FoundScenes:
    """What `find_scenes` found."""

    scenes: list[FoundScene]
    """Scenes by name."""
    is_dynamic: bool
    """Whether things move in them."""
    splits: dict[str, list[str]]
    """Splits that the source already decided."""


def find_scenes(source: Path, as_clips: bool = False, is_dynamic: bool = False) -> FoundScenes:
    """The scenes of a folder or a file of prompts, sorted by name; each content once.

    `as_clips` takes videos with camera files, and ViPE's output, for finished clips instead of sources, and
    `is_dynamic` says that things move in them, which such files do not tell. FileNotFoundError if there is
    no such path, ValueError if it holds no scene, still pictures beside videos, or no dynamic scenes.
    """
    found = _found(source, as_clips, is_dynamic)
    for scene in found.scenes:
        if not _is_text(scene.source):
            raise ValueError(f"expected names in UTF-8, found {scene.source!r} in {str(source)!r}: rename it")
    if is_dynamic and not found.is_dynamic:
        raise ValueError(
            f"expected scenes in which something moves, found still ones in {source}: --dynamic is for clips "
            "of `--teacher replay` that are no data set; leave it out"
        )
    return found


def _found(source: Path, as_clips: bool, is_dynamic: bool) -> FoundScenes:
    if not source.exists():
        raise FileNotFoundError(
            f"input {source} does not exist: give a folder of images or videos, ViPE's output, a data set, "
            "or a file of prompts"
        )
    if as_clips or (source.is_dir() and _is_dataset(source)):
        return _of_clips(source, is_dynamic)
    if source.is_file():
        return _of_file(source)
    if _is_vipe(source):
        return FoundScenes(_without_doubles(_vipe_scenes(source)), True, {})
    return _of_folder(source)


def file_scene_digest(kind: SourceKind, source: str, root: Path) -> str:
    """The fingerprint of a scene's content as it is now; FileNotFoundError if a file of it is gone."""
    if kind == "prompt":
        return _digest_of_text(source)
    if kind == "vipe":
        return _content_digest(_vipe_files(root, source))
    return _content_digest([root if root.is_file() else root / source])


def clips_digest(clips: Iterable[ClipOnDisk]) -> str:
    """The fingerprint of a scene of finished clips as it is now."""
    return _content_digest(path for clip in clips for path in _clip_files(clip))


def _of_file(path: Path) -> FoundScenes:
    suffix = path.suffix.lower()
    if suffix in PROMPT_SUFFIXES:
        return FoundScenes(_without_doubles(_prompt_scenes(path)), False, {})
    if suffix not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        raise ValueError(
            f"input {path} must be an image, a video or a file of prompts ({', '.join(PROMPT_SUFFIXES)}), "
            f"found {suffix or 'no ending'}: rename it, or give its folder"
        )
    kind: SourceKind = "image" if suffix in IMAGE_SUFFIXES else "video"
    return FoundScenes([_file_scene(path, kind)], kind in MOVING_KINDS, {})


def _of_folder(folder: Path) -> FoundScenes:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if images and videos:
        raise ValueError(
            f"input {folder} must hold images or videos, found {len(images)} and {len(videos)}: put them in "
            "folders of their own, since still and moving scenes make data sets of their own"
        )
    if not images and not videos:
        raise ValueError(
            f"input {folder} must hold images ({', '.join(IMAGE_SUFFIXES)}), videos "
            f"({', '.join(VIDEO_SUFFIXES)}), ViPE's output or a data set, found {len(files)} other files: "
            "give another folder"
        )
    kind: SourceKind = "image" if images else "video"
    others = [path for path in files if path.suffix.lower() not in KNOWN_SUFFIXES]
    if others:
        logger.warning("left out, being no %ss: %s", kind, _some([path.name for path in others]))
    scenes = (_file_scene(path, kind, folder) for path in images or videos)
    return FoundScenes(_without_doubles(scenes), kind in MOVING_KINDS, {})


def _of_clips(root: Path, is_dynamic: bool) -> FoundScenes:
    by_scene: dict[str, list[ClipOnDisk]] = {}
    for clip in clips_on_disk(root):
        by_scene.setdefault(clip.scene, []).append(clip)
    _check_each_once(root, by_scene)
    scenes = [
        FoundScene(
            name=_cleaned(name),
            kind="clips",
            source=name,
            digest=clips_digest(clips),
            trajectories=tuple(clip.trajectory for clip in clips),
        )
        for name, clips in sorted(by_scene.items())
    ]
    if not _is_dataset(root):
        return FoundScenes(_without_doubles(scenes), is_dynamic, {})
    store = LyraStore(root)
    return FoundScenes(scenes, store.is_dynamic, dict(store.manifest.splits) if store.manifest else {})


def _check_each_once(root: Path, by_scene: Mapping[str, list[ClipOnDisk]]) -> None:
    """ValueError for two files of one clip, as hall.mp4 beside hall.mov."""
    for name, clips in by_scene.items():
        number, count = Counter(clip.trajectory for clip in clips).most_common(1)[0]
        if count > 1:
            raise ValueError(
                f"expected every clip of {root} once, found trajectory {number} of scene {name} {count} "
                "times: give its files other names"
            )


def _file_scene(path: Path, kind: SourceKind, folder: Path | None = None) -> FoundScene:
    source = path.name if folder is None else path.relative_to(folder).as_posix()
    return FoundScene(_cleaned(path.stem), kind, source, _content_digest([path]), _text_beside(path))


def _vipe_scenes(root: Path) -> Iterator[FoundScene]:
    for name in vipe_clips(root):
        prompt = _text_beside(root / "rgb" / f"{name}.mp4")
        yield FoundScene(name, "vipe", name, _content_digest(_vipe_files(root, name)), prompt)


def _prompt_scenes(path: Path) -> Iterator[FoundScene]:
    from lyra_ns.text.prompts import read_prompts

    for prompt in read_prompts(path):
        words = "_".join(re.findall(r"\w+", prompt.lower())[:6])[:40]
        digest = _digest_of_text(prompt)
        yield FoundScene(f"{words or 'prompt'}-{digest[:8]}", "prompt", prompt, digest, prompt)


def _without_doubles(scenes: Iterable[FoundScene]) -> list[FoundScene]:
    """Scenes by name; of several with one content only the first."""
    kept: dict[str, FoundScene] = {}
    doubles = []
    for scene in sorted(scenes, key=lambda scene: (scene.name, scene.source)):
        if kept.setdefault(scene.digest, scene) is not scene:
            doubles.append(f"{scene.source} ({kept[scene.digest].source})")
    if doubles:
        logger.warning("left out, having the content of others: %s", _some(doubles))
    return list(kept.values())


def _is_vipe(folder: Path) -> bool:
    return (folder / "rgb").is_dir() and any((folder / "pose").glob("*.npz"))


def _is_dataset(folder: Path) -> bool:
    candidates = (folder, folder / "static", folder / "dynamic")
    return any((folder / "0" / "pose").is_dir() for folder in candidates)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _text_beside(path: Path) -> str | None:
    """The prompt in the text file of the same name."""
    text = path.with_suffix(".txt")
    content = text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""
    return " ".join(content.split()) or None


def _vipe_files(root: Path, name: str) -> list[Path]:
    kinds = (("pose", ".npz"), ("intrinsics", ".npz"), ("rgb", ".mp4"), ("depth", ".zip"))
    return [path for kind, suffix in kinds if (path := root / kind / f"{name}{suffix}").is_file()]


def _clip_files(clip: ClipOnDisk) -> list[Source]:
    if isinstance(clip.clip, LyraClip):
        kinds = ("pose", "intrinsics", "rgb", "latent", "depth")
        return [clip.clip.path(kind) for kind in kinds if clip.clip.has(kind)]
    assert isinstance(clip.clip, VideoClip), "there are two kinds of clips on disk"
    beside = [clip.clip.video.with_suffix(suffix) for suffix in (*CAMERA_SUFFIXES, ".zip")]
    return [clip.clip.video, *(path for path in beside if path.is_file())]


def _cleaned(stem: str) -> str:
    """A name that is safe in every path."""
    name = re.sub(r"[^\w.\-]+", "_", stem).strip("._")
    return name.encode()[:LONGEST_NAME].decode(errors="ignore") or "scene"


def _is_text(name: str) -> bool:
    """Whether a name can be written down; Linux takes any bytes for one."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _some(names: list[str]) -> str:
    """The first few of a list."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _digest_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


def _content_digest(files: Iterable[Source]) -> str:
    """Fingerprint of what files hold, whatever they are called."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            head = file.read(DIGEST_BYTES)
            length = file.seek(0, 2)
            file.seek(max(len(head), length - DIGEST_BYTES))
            digest.update(f"{length}/".encode())
            digest.update(head)
            digest.update(file.read())
    return digest.hexdigest()[:DIGEST_DIGITS]
