"""`ns-lyra reconstruct`: one stored scene to a file of Gaussians in one feed-forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lyra_ns.device import chosen_device
from lyra_ns.options import DecoderChoice

if TYPE_CHECKING:
    import torch

    from lyra_ns.cameras import CameraPath
    from lyra_ns.data.scenes import StoredScene
    from lyra_ns.gaussians import Gaussians
    from lyra_ns.memory import InferencePlan, MemoryEstimate
    from lyra_ns.rendering.types import Response


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
        from lyra_ns.export.files import SUFFIXES
        from lyra_ns.memory import explaining_exhaustion

        if self.output.suffix not in SUFFIXES:
            raise ValueError(f"--output must end in {', '.join(SUFFIXES)}, found {self.output.name!r}")
        self.check_decoder()
        if self.time is not None and not 0 <= self.time <= 1:
            raise ValueError(f"expected --time from 0 to 1, found {self.time}")
        device = chosen_device(self.device)
        with explaining_exhaustion(device):
            self._run(device)

    def _run(self, device: torch.device) -> None:
        from lyra_ns.data.open import chosen_trajectories, open_scene, read_inputs
        from lyra_ns.progress import StageMeter

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


def write_gaussians(
    gaussians: Gaussians, path: Path, cameras: CameraPath, title: str, response: Response
) -> None:
    """Write Gaussians, which lie in the frame of `cameras[0, 0]`, by the suffix of `path`."""
    from lyra_ns.cameras import relative_to

    reference = relative_to(cameras, cameras.camera_to_world[0, 0])[0, 0]
    gaussians.save(path, camera=reference, title=title, response=response)
