"""`ns-lyra reconstruct`: one stored scene to a file of Gaussians in one feed-forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lyra_ns.commands.choices import DecoderChoice, chosen_device
from lyra_ns.data.reading_order import in_reading_order

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lyra_ns.cameras import CameraPath
    from lyra_ns.data.loaded import StoredScene
    from lyra_ns.data.store import LyraStore
    from lyra_ns.gaussians import Gaussians
    from lyra_ns.memory_estimate import InferencePlan, MemoryEstimate
    from lyra_ns.rendering.types import Response

SUFFIXES = (".ply", ".splat", ".html")
"""Kinds of files that are written."""
OFFICIAL_OUTPUT = "diffusion_output"
"""Folder in which official demonstration data keeps the numbered folders."""


@dataclass(kw_only=True)
class Reconstruct(DecoderChoice):
    """Turn the latents and cameras of one stored scene into Gaussians: a .ply, a .splat or a web page.

    Positions are in the frame of the first camera of the first trajectory (OpenCV: y down, z forward).
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Folder or tar in the official layout, or the folder of one trajectory with pose/ and latent/."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write; .ply, .splat or .html decides what."""
    scene: str | None = None
    """Name of the scene; by default the first held-out one, or the first of all."""
    trajectories: tuple[int, ...] | None = None
    """Trajectories to read, in this order; by default those of 5 0 1 2 3 4 with latents, then all others."""
    time: float | None = None
    """Moment from 0 to 1 at which a dynamic scene is shown; by default its end."""
    memory: Literal["auto", "whole", "chunked"] = "auto"
    """Hold the scene whole or in chunks, which takes less memory; auto: whole if the estimate fits."""

    def run(self) -> None:
        """Write the file; print the memory estimate before, and seconds and memory of each stage after."""
        from lyra_ns.memory_limits import explaining_exhaustion

        if self.output.suffix not in SUFFIXES:
            raise ValueError(f"--output must end in {', '.join(SUFFIXES)}, found {self.output.name!r}")
        self.check_decoder()
        if self.time is not None and not 0 <= self.time <= 1:
            raise ValueError(f"expected --time from 0 to 1, found {self.time}")
        device = chosen_device(self.device)
        with explaining_exhaustion(device):
            self._run(device)

    def _run(self, device: torch.device) -> None:
        from lyra_ns.stage_meter import StageMeter

        meter = StageMeter(device)
        with meter.stage("scene found"):
            scene = open_scene(self.data, self.scene)
            trajectories = chosen_trajectories(scene, self.trajectories)
        with meter.stage("decoder loaded"):
            reconstruct = self.reconstructor(scene.spec)
            reconstruct.memory = self.memory
        with meter.stage("scene read"):
            z, cameras = read_inputs(scene, trajectories)
        gaussians = reconstruct(z, cameras, self._target_time(scene), meter, self._announce)
        with meter.stage("written"):
            response = self.render_settings(reconstruct).response
            assert response != "auto"
            write_gaussians(gaussians, self.output, cameras, scene.name, response)
        print(
            f"{self.output}: {gaussians.num:,} Gaussians of {scene.name} from trajectories "
            f"{', '.join(map(str, trajectories))} on {reconstruct.device}"
        )
        print(meter)

    def _announce(self, plan: InferencePlan, estimate: MemoryEstimate) -> None:
        way = "in chunks" if plan.is_chunked else "whole"
        print(f"memory estimate, {way}: {estimate}", flush=True)

    def _target_time(self, scene: StoredScene) -> float | None:
        if not scene.is_dynamic and self.time is not None:
            raise ValueError(f"scene {scene.name} is static and has no moments: leave --time out")
        return (1.0 if self.time is None else self.time) if scene.is_dynamic else None


def open_scene(root: Path, name: str | None = None) -> StoredScene:
    """The scene called `name` of a data set, or of the bare folder of one trajectory (pose/, latent/ ...).

    By default the first held-out one, or the first. FileNotFoundError or ValueError if there is none.
    """
    from lyra_ns.data.store import LyraStore

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
    from lyra_ns.data.loaded import StoredScene
    from lyra_ns.data.store import LyraClip
    from lyra_ns.data.types import Scene

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
    from lyra_ns.data.loaded import StoredScene

    held_out = store.manifest.splits.get("test", []) if store.manifest else []
    name = chosen_name(store.names, name or next(iter(held_out), None), store.root)
    return StoredScene(store.scene(name), store.novel_clips(name), spec=store.spec)


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


def read_inputs(scene: StoredScene, trajectories: tuple[int, ...]) -> tuple[Tensor, CameraPath]:
    """Latents [V, C, T, h, w] in diffusion space and cameras [V, L] of these trajectories, as stored."""
    import torch

    from lyra_ns.cameras import stack_cameras

    missing = [trajectory for trajectory in trajectories if trajectory not in scene.input_ids]
    if missing or not trajectories:
        raise ValueError(
            f"scene {scene.name} has latents of the trajectories {scene.input_ids}, found "
            f"{list(trajectories)} asked for: choose among them with --trajectories"
        )
    z = torch.stack([scene.latents(trajectory) for trajectory in trajectories])
    return z, stack_cameras([scene.cameras(trajectory) for trajectory in trajectories])


def write_gaussians(
    gaussians: Gaussians, path: Path, cameras: CameraPath, title: str, response: Response
) -> None:
    """Write Gaussians, which lie in the frame of `cameras[0, 0]`, by the suffix of `path`."""
    from lyra_ns.cameras import relative_to

    reference = relative_to(cameras, cameras.camera_to_world[0, 0])[0, 0]
    write_scene(gaussians, path, reference, title, response)


def write_scene(
    gaussians: Gaussians, path: Path, reference: CameraPath, title: str, response: Response
) -> None:
    """Write Gaussians by the suffix of `path`; a web page starts at the single camera `reference`."""
    if path.suffix == ".html":
        from lyra_ns.export.html import save_html

        save_html(gaussians, path, reference, title, response=response)
    elif path.suffix == ".splat":
        from lyra_ns.export.splat import save_splat

        save_splat(gaussians, path)
    else:
        from lyra_ns.export.ply import save_ply

        save_ply(gaussians, path)
