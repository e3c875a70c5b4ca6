"""A stored scene by the path of its data set, and what a decoder reads of it.

Shape letters: V trajectories, L frames, C T h w latent.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath, stack_cameras
from lyra_ns.data.layout import in_reading_order
from lyra_ns.data.scenes import StoredScene
from lyra_ns.data.store import LyraClip, LyraStore
from lyra_ns.data.types import Scene

OFFICIAL_OUTPUT = "diffusion_output"
"""Folder in which official demonstration data keeps the numbered folders."""


def open_scene(root: Path, name: str | None = None) -> StoredScene:
    """The scene called `name` of a data set, or of the bare folder of one trajectory (pose/, latent/ ...).

    By default the first held-out one, or the first. FileNotFoundError or ValueError if there is none.
    """
    root = root.expanduser()
    if (root / "latent").is_dir() and (root / "pose").is_dir():
        return _scene_of_trajectory(root, name)
    inner = _official_output(root)
    scene = stored_scene(LyraStore(inner or root), name)
    if inner is None or inner.parent.name != "dynamic":
        return scene
    return replace(scene, scene=replace(scene.scene, is_dynamic=True))


def _scene_of_trajectory(folder: Path, name: str | None) -> StoredScene:
    """A scene of one trajectory, whose number is the folder's name if that is one, else 0."""
    names = sorted(path.stem for path in (folder / "pose").glob("*.npz") if not path.name.startswith("."))
    if not names:
        raise FileNotFoundError(
            f"{folder}/pose holds no CLIP.npz: expected the poses of the trajectory there"
        )
    name = chosen_name(names, name, folder)
    trajectory = int(folder.name) if folder.name.isdecimal() else 0
    clips = {trajectory: LyraClip(name, trajectory, folder)}
    return StoredScene(Scene(name, clips, is_dynamic=folder.parent.name == "dynamic"))


def _official_output(root: Path) -> Path | None:
    """The folder below `root` in which official demonstration data keeps its trajectories, if any."""
    folders = [root / OFFICIAL_OUTPUT, *(root / family / OFFICIAL_OUTPUT for family in ("static", "dynamic"))]
    found = [folder for folder in folders if folder.is_dir()]
    if len(found) > 1:
        raise ValueError(f"{root} holds both static and dynamic scenes: give {found[0]} or {found[1]}")
    return found[0] if found else None


def stored_scene(store: LyraStore, name: str | None = None) -> StoredScene:
    """The scene called `name` (default: the first held out, or the first); ValueError if there is none."""
    held_out = store.manifest.splits.get("test", []) if store.manifest else []
    name = chosen_name(store.names, name or next(iter(held_out), None), store.root)
    return StoredScene(store.scene(name), store.novel_clips(name), spec=store.spec)


def held_out_names(store: LyraStore, num_scenes: int | None = None) -> tuple[list[str], str]:
    """Names of the scenes to measure, and how they were chosen: the manifest's test split, or all."""
    if num_scenes is not None and num_scenes < 1:
        raise ValueError(f"--num-scenes must be at least 1, found {num_scenes}")
    held_out = store.manifest.splits.get("test", []) if store.manifest else []
    if held_out:
        return held_out[:num_scenes], "held out by the data's manifest"
    return store.names[:num_scenes], "from all of the data, because no manifest holds any out"


def chosen_name(names: list[str], wanted: str | None, root: Path) -> str:
    """`wanted`, or the first of the scenes of `root`; ValueError if it is none of them."""
    if wanted is None:
        return names[0]
    if wanted not in names:
        more = " ..." if len(names) > 5 else ""
        raise ValueError(
            f"{root} holds no scene {wanted!r}: give one of its {len(names)}, {', '.join(names[:5])}{more}"
        )
    return wanted


def chosen_trajectories(scene: StoredScene, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    """`wanted`, or all trajectories with latents, the usual ones first and in their usual order."""
    if wanted is not None:
        return wanted
    return tuple(in_reading_order(scene.input_ids))


def read_inputs(
    scene: StoredScene, trajectories: tuple[int, ...]
) -> tuple[Float[Tensor, "V C T h w"], CameraPath]:
    """Latents [V, C, T, h, w] in diffusion space and cameras [V, L] of these trajectories, as stored."""
    missing = [trajectory for trajectory in trajectories if trajectory not in scene.input_ids]
    if missing or not trajectories:
        raise ValueError(
            f"scene {scene.name} has latents of the trajectories {scene.input_ids}, found "
            f"{list(trajectories)} asked for: choose among them"
        )
    z = torch.stack([scene.latents(trajectory) for trajectory in trajectories])
    return z, stack_cameras([scene.cameras(trajectory) for trajectory in trajectories])
