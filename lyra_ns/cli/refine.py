"""`ns-lyra refine`: Gaussians brought closer to frames with cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lyra_ns.device import chosen_device

if TYPE_CHECKING:
    import torch

    from lyra_ns.gaussians import Gaussians
    from lyra_ns.refinement.run import Refinement
    from lyra_ns.refinement.views import RefinementViews


@dataclass(kw_only=True)
class Refine:
    """Bring the Gaussians of a scene closer to frames with cameras; some frames are held back and judge.

    Prints how close the held-back frames are before and after.
    """

    scene: Annotated[Path, tyro.conf.Positional]
    """A .ply of Gaussians, or the folder that `ns-lyra generate` wrote."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write; .ply, .splat or .html decides what."""
    data: Path | None = None
    """Frames: a folder or tar in the official layout, whose first camera is where the Gaussians begin, or a
    folder with nerfstudio's transforms.json; by default the clips that `generate` wrote with the scene."""
    clip: str | None = None
    """Which scene of the data; by default the first held-out one, or the first of all."""
    trajectories: tuple[int, ...] | None = None
    """Trajectories to use, in this order; the first one's first camera is where the Gaussians begin."""
    frames_per_trajectory: int = 9
    """Frames of each trajectory, evenly spaced."""
    time: float | None = None
    """Moment from 0 to 1 of a moving scene that the Gaussians show."""
    held_back: int = 8
    """One frame in so many judges and is not learned; 0: none, and the last state is kept."""
    steps: int | None = None
    """Gradient steps at most; by default 100 on a CPU and 400 on a GPU."""
    seconds: float | None = None
    """Ends after so long, whatever the number of steps; the result then depends on the machine."""
    densify: float = 1.0
    """On a GPU: how many times as many Gaussians there may be in the end, made and dropped by gsplat."""
    max_pixels: int | None = None
    """Larger frames are made smaller; by default 512 x 320 pixels on a CPU and 1280 x 704 on a GPU."""
    codec: str = "auto"
    """Codec of latents without frames: linear, cosmos:PATH, or auto, which takes what the manifest names."""
    response: Literal["auto", "ewa", "ray3d"] = "auto"
    """How Gaussians answer pixels; auto is ewa, as viewers draw them."""
    seed: int = 0
    """Order of the frames."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def run(self) -> None:
        """Write the file."""
        ply, data = self._checked()
        device = chosen_device(self.device)
        if self.densify > 1 and device.type != "cuda":
            raise ValueError("--densify needs a GPU, since gsplat makes the Gaussians: leave it out")
        from lyra_ns.export.ply import load_ply
        from lyra_ns.memory import explaining_exhaustion

        gaussians = load_ply(ply)
        views = self._views(data, device)
        size = f"{views.cameras.width} x {views.cameras.height}"
        print(f"{views.num} frames of {size}, {len(views.held_back)} of them held back")
        with explaining_exhaustion(device):
            made = self._refined(gaussians.to(device), views)
        made.gaussians.save(self.output, camera=views.cameras[0], title=ply.stem, response=self._response)
        for name, step in (("before", 0), ("after", made.best_step)):
            if made.held_back_psnr:
                print(f"held-back frames {name}: {made.held_back_psnr[step]:.2f} dB")
        print(f"{self.output}: {made.gaussians.num:,} Gaussians; {made}")

    @property
    def _response(self) -> Literal["ewa", "ray3d"]:
        return "ewa" if self.response == "auto" else self.response

    def _checked(self) -> tuple[Path, Path]:
        """The file of Gaussians and the data; ValueError or FileNotFoundError for what cannot be done."""
        from lyra_ns.export.files import SUFFIXES

        if self.output.suffix not in SUFFIXES:
            raise ValueError(f"--output must end in {', '.join(SUFFIXES)}, found {self.output.name!r}")
        if self.frames_per_trajectory < 1 or self.held_back < 0 or self.densify < 1:
            raise ValueError(
                "expected --frames-per-trajectory and --densify of 1 or more and --held-back of 0 or more, "
                f"found {self.frames_per_trajectory}, {self.densify:g} and {self.held_back}"
            )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"expected --steps of 1 or more, found {self.steps}")
        if self.time is not None and not 0 <= self.time <= 1:
            raise ValueError(f"expected --time from 0 to 1, found {self.time}")
        scene = self.scene.expanduser()
        ply = scene / "scene.ply" if scene.is_dir() else scene
        if not ply.is_file():
            raise FileNotFoundError(f"{ply} does not exist: give a .ply, or the folder of `ns-lyra generate`")
        data = (scene / "latents" if self.data is None else self.data).expanduser()
        if not data.exists():
            raise FileNotFoundError(
                f"{data} does not exist: give frames with cameras as --data (official layout, or "
                "transforms.json)"
            )
        return ply, data

    def _views(self, data: Path, device: torch.device) -> RefinementViews:
        from lyra_ns.data.layout import in_reading_order
        from lyra_ns.data.open import open_scene
        from lyra_ns.generation.refining import TRANSFORMS, holding_back, stored_views, transforms_views
        from lyra_ns.refinement.config import usual_pixels

        num_pixels = self.max_pixels or usual_pixels(device.type)
        transforms = data if data.name.endswith(".json") else data / TRANSFORMS
        if transforms.is_file():
            return holding_back(transforms_views(transforms, num_pixels), self.held_back)
        scene = open_scene(data, self.clip)
        if scene.is_dynamic != (self.time is not None):
            advice = "moving: say which moment with" if scene.is_dynamic else "static: leave out"
            raise ValueError(f"scene {scene.name} is {advice} --time")
        trajectories = self.trajectories or in_reading_order(scene.input_ids or scene.target_ids)
        views = stored_views(
            scene, trajectories, self.frames_per_trajectory, num_pixels, self.codec, self.time
        )
        return holding_back(views, self.held_back)

    def _refined(self, gaussians: Gaussians, views: RefinementViews) -> Refinement:
        from lyra_ns.progress import steps_shown
        from lyra_ns.refinement.config import RefinementConfig, usual_steps
        from lyra_ns.refinement.run import RefinementStep, refine
        from lyra_ns.rendering import RenderSettings

        steps = self.steps or usual_steps(gaussians.means.device.type)
        config = RefinementConfig(
            num_steps=steps,
            seconds=self.seconds,
            seed=self.seed,
            densify=self.densify,
            render=RenderSettings(response=self._response),
        )
        with steps_shown("refined") as on_step:

            def tell(step: RefinementStep) -> None:
                on_step(step.step, steps, str(step))

            return refine(gaussians, [views], config, tell)
