"""`ns-lyra demo`: from nothing to a looked-at scene, through the commands that a user would type."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import tyro

from lyra_ns.data.layout import READING_ORDER

if TYPE_CHECKING:
    from lyra_ns.cameras import CameraPath
    from lyra_ns.data.scenes import StoredScene
    from lyra_ns.gaussians import Gaussians
    from lyra_ns.reconstruction import Reconstructor

DEMO_SEED = 2026
"""Seed of the demo's scenes; the decoder that ships was trained on those of seed 0."""
LOOP_FRAMES = 72
"""Frames of the turn-table video, three seconds."""


@dataclass
class Demo:
    """Make scenes that the shipped decoder has never seen; reconstruct, fine-tune, measure, export, look."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("demo")
    """Folder for everything; data and results that are there already are written again."""
    num_scenes: int = 8
    """Scenes to fine-tune on."""
    num_held_out: int = 4
    """Scenes to measure on, papered with textures that no training scene has."""
    height: int = 160
    """Image height in pixels, a multiple of 16."""
    width: int = 256
    """Image width in pixels, a multiple of 16."""
    fine_tune_steps: int = 80
    """Training steps; 80 take one to five minutes on two cores."""
    photo: bool = True
    """Also check a real photograph against a real second one."""

    def run(self) -> None:
        """Run every stage and print where its results are."""
        started = perf_counter()
        data = self._make_data()
        self._reconstruct(data, "shipped", self.output / "feed_forward.ply")
        run_folder = self._fine_tune(data)
        self._measure(data, run_folder)
        self._export(run_folder)
        self._picture(data, run_folder)
        if self.photo:
            self._check_photo(run_folder)
        _heading(f"Done in {(perf_counter() - started) / 60:.1f} minutes")
        print("\n".join(self._results(run_folder)))

    def _make_data(self) -> Path:
        from lyra_ns.synthetic import write_sample_data

        _heading(f"1. Making {self.num_scenes} scenes to train on and {self.num_held_out} held-out ones")
        print("The teacher is a ray caster with a linear codec, not GEN3C with the Cosmos tokenizer.")
        data = self.output / "data"
        write_sample_data(
            data,
            self.num_scenes,
            num_held_out=self.num_held_out,
            height=self.height,
            width=self.width,
            seed=DEMO_SEED,
        )
        return data

    def _reconstruct(self, data: Path, checkpoint: str, path: Path) -> None:
        from lyra_ns.cli.reconstruct import Reconstruct

        _heading("2. Reconstructing a held-out scene in one feed-forward pass")
        Reconstruct(data=data, output=path, checkpoint=checkpoint).run()

    def _fine_tune(self, data: Path) -> Path:
        _heading(f"3. Fine-tuning for {self.fine_tune_steps} steps: ns-train lyra-tiny")
        folder = self.output / "outputs" / "demo" / "lyra-tiny" / "fine-tuned"
        shutil.rmtree(folder, ignore_errors=True)
        sampling = "--pipeline.datamanager.sampling"
        _nerfstudio(
            "ns-train", "lyra-tiny", "--data", data, "--output-dir", self.output / "outputs",
            "--experiment-name", "demo", "--timestamp", "fine-tuned", "--vis", "tensorboard",
            "--max-num-iterations", self.fine_tune_steps, "--steps-per-eval-batch", 0,
            "--steps-per-eval-image", 0, "--steps-per-eval-all-images", 0,
            f"{sampling}.num-trajectories-max", 3, f"{sampling}.num-target-trajectories", 3,
            "--optimizers.decoder.optimizer.lr", 3e-5,
            log=self.output / "train.log",
        )  # fmt: skip
        return folder

    def _measure(self, data: Path, run_folder: Path) -> None:
        from lyra_ns.cli.evaluate import Evaluate

        _heading("4. Measuring on the held-out scenes: ns-eval, then the protocol with baselines")
        config = run_folder / "config.yml"
        result = self.output / "ns_eval.json"
        _nerfstudio("ns-eval", "--load-config", config, "--output-path", result, log=self.output / "eval.log")
        for name, checkpoint in (("as shipped", "shipped"), ("fine-tuned", str(run_folder))):
            print(f"\nThe decoder {name}, held-out scenes against true images:")
            path = self.output / f"held_out_{name.replace(' ', '_')}.json"
            Evaluate(data=data, checkpoint=checkpoint, num_trajectories=(1, 6), output=path).run()

    def _export(self, run_folder: Path) -> None:
        _heading("5. Exporting with the unchanged ns-export gaussian-splat")
        _nerfstudio(
            "ns-export", "gaussian-splat", "--load-config", run_folder / "config.yml",
            "--output-dir", self.output / "export", log=self.output / "export.log",
        )  # fmt: skip

    def _picture(self, data: Path, run_folder: Path) -> None:
        from lyra_ns.cli.reconstruct import write_gaussians
        from lyra_ns.data.open import read_inputs, stored_scene
        from lyra_ns.data.store import LyraStore
        from lyra_ns.options import DecoderChoice

        _heading("6. Drawing a contact sheet, a turn-table video and a page to look around in")
        store = LyraStore(data)
        reconstruct = DecoderChoice(checkpoint=str(run_folder)).reconstructor(store.spec)
        scene = stored_scene(store)
        z, cameras = read_inputs(scene, READING_ORDER)
        gaussians = reconstruct(z, cameras).to("cpu")
        write_gaussians(gaussians, self.output / "scene.html", cameras, scene.name, "ewa")
        write_turntable(gaussians, cameras, self.output / "turntable.mp4")
        write_contact_sheet(reconstruct, scene, self.output / "contact_sheet.png")

    def _check_photo(self, run_folder: Path) -> None:
        from lyra_ns.cli.evaluate import PhotoCheck

        _heading("7. Checking a real photograph against a real second one")
        PhotoCheck(checkpoint="shipped", output=self.output / "photo").run()

    def _results(self, run_folder: Path) -> list[str]:
        names = (
            "contact_sheet.png", "turntable.mp4", "scene.html", "export/splat.ply", "feed_forward.ply",
            "held_out_fine-tuned.json", "ns_eval.json", "photo/photo_check.png",
        )  # fmt: skip
        lines = [f"  {self.output / name}" for name in names if (self.output / name).exists()]
        return [*lines, f"Look around in it with: ns-viewer --load-config {run_folder / 'config.yml'}"]


def write_turntable(gaussians: Gaussians, cameras: CameraPath, path: Path) -> None:
    """A video of the scene from a closed loop of cameras near the given paths [V, L]."""
    import torch
    from torch.nn import functional

    from lyra_ns.cameras import relative_to
    from lyra_ns.export.html import centre_depth
    from lyra_ns.export.video import save_video, turntable_path
    from lyra_ns.rendering import RenderSettings, render

    relative = relative_to(cameras, cameras.camera_to_world[0, 0])
    depth = centre_depth(gaussians, relative[0, 0])
    loop = turntable_path(relative, depth, LOOP_FRAMES)
    with torch.no_grad():
        frames = render(gaussians, loop, RenderSettings(response="ewa", views_at_once=8)).rgb
    # Drawn at the size that the decoder was trained for: single Gaussians show as strokes in a larger one.
    frames = functional.interpolate(frames.movedim(-1, 1), scale_factor=2, mode="bicubic").clamp(0, 1)
    save_video(frames.movedim(1, -1), path)


def write_contact_sheet(reconstruct: Reconstructor, scene: StoredScene, path: Path) -> None:
    """A picture with views as rows: truth, teacher, ours, depth, true depth; unseen paths at the bottom."""
    import torch

    from lyra_ns.camera_paths import TRAJECTORIES
    from lyra_ns.data.batch import evaluation_batch
    from lyra_ns.data.types import NOVEL_FIRST_ID
    from lyra_ns.pictures import contact_sheet, save_picture
    from lyra_ns.rendering import RenderSettings, render

    batch = evaluation_batch(scene, reconstruct.codec, frames=(scene.num_frames - 1,))
    taught = evaluation_batch(
        scene, reconstruct.codec, frames=(scene.num_frames - 1,), target_frames="latents"
    )
    gaussians = reconstruct(batch.latents[0], batch.cameras[0])
    with torch.no_grad():
        rendered = render(gaussians, batch.target_cameras[0], RenderSettings(response="ewa"))
    assert batch.target_ids is not None
    assert batch.target_depth is not None
    rows = [
        f"unseen path {trajectory - NOVEL_FIRST_ID}"
        if trajectory >= NOVEL_FIRST_ID
        else TRAJECTORIES[trajectory].name
        for trajectory, _ in batch.target_ids[0]
    ]
    teacher = taught.target_rgb[0].clone()
    # Unseen paths have no latents, so there is nothing that the codec could have decoded.
    teacher[[trajectory >= NOVEL_FIRST_ID for trajectory, _ in batch.target_ids[0]]] = 1.0
    columns = {
        "true image": batch.target_rgb[0],
        "teacher (codec)": teacher,
        "ours": rendered.rgb.clamp(0, 1),
        "our depth": rendered.depth,
        "true depth": batch.target_depth[0].float(),
    }
    sheet = contact_sheet(columns, rows, f"{scene.name}, last frame of each path")
    save_picture(sheet, path)


def _nerfstudio(command: str, *arguments: object, log: Path) -> None:
    """Run one of nerfstudio's commands of this environment; ValueError, naming the log, if it fails."""
    program = Path(sys.executable).parent / command
    line = [str(program), *map(str, arguments)]
    print(" ".join([command, *line[1:]]), flush=True)
    with log.open("w") as file:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        shown = set()
        for output in process.stdout:
            file.write(output)
            # nerfstudio draws its table anew with every line: show each step once.
            if ("%)" in output or "lyra:" in output) and output not in shown:
                shown.add(output)
                print(output, end="", flush=True)
    if process.wait():
        raise ValueError(f"{command} ended with status {process.returncode}: its output is in {log}")


def _heading(text: str) -> None:
    print(f"\n{text}", flush=True)
