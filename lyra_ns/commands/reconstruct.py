"""`ns-lyra reconstruct`: one stored scene to a file of Gaussians in one feed-forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import tyro

from lyra_ns.commands.choices import DecoderChoice

if TYPE_CHECKING:
    from torch import Tensor

    from lyra_ns.cameras import CameraPath
    from lyra_ns.data.loaded import StoredScene
    from lyra_ns.data.store import LyraStore
    from lyra_ns.gaussians import Gaussians
    from lyra_ns.rendering.types import Response

SUFFIXES = (".ply", ".splat", ".html")
"""Kinds of files that are written."""


@dataclass(kw_only=True)
class Reconstruct(DecoderChoice):
    """Turn the latents and cameras of one stored scene into Gaussians: a .ply, a .splat or a web page.

    Positions are in the frame of the first camera of the first trajectory (OpenCV: y down, z forward).
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Folder in the official layout."""
    output: Path
    """File to write; .ply, .splat or .html decides what."""
    scene: str | None = None
    """Name of the scene; by default the first held-out one, or the first of all."""
    trajectories: tuple[int, ...] = (5, 0, 1, 2, 3, 4)
    """Trajectories to read, in this order."""
    time: float | None = None
    """Moment from 0 to 1 at which a dynamic scene is shown; by default its end."""

    def run(self) -> None:
        """Write the file; print how many Gaussians it holds and the seconds of each stage."""
        from lyra_ns.data.store import LyraStore

        if self.output.suffix not in SUFFIXES:
            raise ValueError(f"--output must end in {', '.join(SUFFIXES)}, found {self.output.name!r}")
        stages = _Stages()
        store = LyraStore(self.data)
        reconstruct = self.reconstructor(store.spec)
        stages.finish("decoder loaded")
        scene = stored_scene(store, self.scene)
        z, cameras = read_inputs(scene, self.trajectories)
        stages.finish("scene read")
        gaussians = reconstruct(z, cameras, self._target_time(scene)).to("cpu")
        stages.finish("decoded")
        response = self.render_settings(reconstruct).response
        assert response != "auto"
        write_gaussians(gaussians, self.output, cameras, scene.name, response)
        stages.finish("written")
        print(
            f"{self.output}: {gaussians.num:,} Gaussians of {scene.name} from trajectories "
            f"{', '.join(map(str, self.trajectories))} on {reconstruct.device}"
        )
        print(stages)

    def _target_time(self, scene: StoredScene) -> float | None:
        if not scene.is_dynamic and self.time is not None:
            raise ValueError(f"scene {scene.name} is static and has no moments: leave --time out")
        return (1.0 if self.time is None else self.time) if scene.is_dynamic else None


class _Stages:
    """Seconds of the stages of a command; printed as one line."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = perf_counter()

    def finish(self, stage: str) -> None:
        """Note what has passed since the last stage."""
        now = perf_counter()
        self._seconds[stage] = now - self._started
        self._started = now

    def __str__(self) -> str:
        return ", ".join(f"{stage} in {seconds:.2f} s" for stage, seconds in self._seconds.items())


def stored_scene(store: LyraStore, name: str | None = None) -> StoredScene:
    """The scene called `name` (default: the first held out, or the first); ValueError if there is none."""
    from lyra_ns.data.loaded import StoredScene

    held_out = store.manifest.splits.get("test", []) if store.manifest else []
    name = name or (held_out or store.names)[0]
    if name not in store.names:
        more = " ..." if len(store.names) > 5 else ""
        raise ValueError(
            f"{store.root} holds no scene {name!r}: give one of its {len(store.names)}, "
            f"{', '.join(store.names[:5])}{more}"
        )
    return StoredScene(store.scene(name), store.novel_clips(name), spec=store.spec)


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

    if path.suffix == ".html":
        from lyra_ns.export.html import save_html

        reference = relative_to(cameras, cameras.camera_to_world[0, 0])[0, 0]
        save_html(gaussians, path, reference, title, response=response)
    elif path.suffix == ".splat":
        from lyra_ns.export.splat import save_splat

        save_splat(gaussians, path)
    else:
        from lyra_ns.export.ply import save_ply

        save_ply(gaussians, path)
