"""`python -m benchmarks.refinement`: Gaussians of the full size refined against frames of a rendered scene.

    python -m benchmarks.refinement --prepare frames.tar   # on any machine: casts the frames, some 20 MB
    python -m benchmarks.refinement --frames frames.tar    # on a CUDA device: measures

The decoder that ships, made for smaller clips, gives the start. Steps see frames of the six paths; two camera
paths that no step sees judge. Every row is written as soon as it is measured.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import tyro
from torch import Tensor

from benchmarks.environment import describe_environment
from benchmarks.refinement_table import RESULT_FILE
from benchmarks.table_text import Row
from lyra_ns.cameras import CameraPath, relative_to, stack_cameras
from lyra_ns.codec import load_codec
from lyra_ns.data.atomic import write_whole
from lyra_ns.data.layout import READING_ORDER
from lyra_ns.data.open import stored_scene
from lyra_ns.data.scenes import StoredScene
from lyra_ns.data.store import LyraStore, write_clip
from lyra_ns.decoder.checkpoints import load_any_decoder
from lyra_ns.gaussians import Gaussians
from lyra_ns.generation.refining import chosen_frames, joined_views
from lyra_ns.ops.lpips import load_lpips
from lyra_ns.reconstruction import Reconstructor
from lyra_ns.refinement.config import RefinementConfig
from lyra_ns.refinement.run import covered_psnr, refine
from lyra_ns.refinement.views import RefinementViews
from lyra_ns.rendering import RenderSettings, render
from lyra_ns.synthetic.render import SceneRenderer
from lyra_ns.synthetic.scenes import make_scene
from lyra_ns.synthetic.textures import packaged_textures
from lyra_ns.synthetic.writer import FIRST_HELD_OUT, ClipSize, scene_cameras
from lyra_ns.teachers.base import latents_of_frames

RESULTS = Path(__file__).resolve().parent / "results" / RESULT_FILE
SETTINGS = RenderSettings(response="ewa")
"""How everything is drawn."""
SHOWN_PER_PATH, JUDGES_PER_PATH = 8, 5
"""Frames of each path that steps see, and of each held-out path that judge."""
PRUNE_RATIO = 0.05
"""Share of Gaussians that is dropped: two million stay of 25 frames of six paths."""
WAYS: dict[str, Row] = {
    "100 steps": {"num_steps": 100},
    "400 steps": {"num_steps": 400},
    "400 steps without LPIPS": {"num_steps": 400, "lpips": 0.0},
    "400 steps, a quarter more Gaussians": {"num_steps": 400, "densify": 1.25},
}
"""What differs from the defaults, by the name of the row."""
START = "feed-forward"
"""Row of the Gaussians as the decoder gave them."""


@dataclass(frozen=True)
class Bench:
    """What every row is measured with."""

    start: Gaussians
    """The Gaussians as the decoder gave them."""
    shown: RefinementViews
    """Frames of the six paths."""
    judges: RefinementViews
    """Frames of the two others."""


def main(
    prepare: Path | None = None,
    frames: Path | None = None,
    output: Path = RESULTS,
    num_frames: int = 25,
    height: int = 704,
    width: int = 1280,
    seed: int = 0,
    device: str = "cuda",
    steps_divided_by: int = 1,
    commit: str | None = None,
) -> None:
    """Write frames into the file `prepare`, or measure with those of the file `frames`.

    `steps_divided_by` makes all runs shorter, to try it. `commit` names the code where git is missing.
    """
    if prepare is not None:
        write_frames(prepare, ClipSize(num_frames, height, width), seed)
        print(f"{prepare}: {prepare.stat().st_size / 1e6:.1f} MB")
        return
    if frames is None:
        raise SystemExit("expected --prepare FILE, or --frames FILE that it wrote")
    bench = read_bench(frames, device)
    environment = describe_environment(device)
    environment["commit"] = environment["commit"] or commit
    size = {"height": bench.shown.cameras.height, "width": bench.shown.cameras.width}
    size |= {"frames_shown": bench.shown.num, "frames_held_out": bench.judges.num}
    rows = [{"way": START, **measured(bench, bench.start)}]
    for way, changes in WAYS.items():
        _write(output, environment, size, rows)
        changes = changes | {"num_steps": max(1, changes["num_steps"] // steps_divided_by)}
        rows.append({"way": way, **refined_row(bench, changes)})
    _write(output, environment, size, rows)


def _write(path: Path, environment: Row, size: Row, rows: list[Row]) -> None:
    """All rows so far, the last of which is printed."""
    print(rows[-1], flush=True)
    content = {"environment": environment, "size": size, "rows": rows}
    write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_frames(path: Path, size: ClipSize, seed: int) -> None:
    """A held-out sample scene along all its paths, as a tar in the official layout, frames alone."""
    scene = make_scene(seed, FIRST_HELD_OUT, packaged_textures(), held_out=True)
    with TemporaryDirectory() as folder:
        renderer = SceneRenderer(scene, "cuda" if torch.cuda.is_available() else "cpu")
        for (family, number), cameras in scene_cameras(seed, scene.name, scene.centre_depth, size).items():
            rgb = torch.cat(
                [renderer.render(cameras[frame : frame + 1]).rgb.cpu() for frame in range(len(cameras.times))]
            )
            write_clip(Path(folder) / family, scene.name, number, cameras, rgb=rgb)
            print(f"{family} {number}: {len(rgb)} frames", flush=True)
        with tarfile.open(path, "w") as archive:
            archive.add(folder, arcname=".")


def read_bench(path: Path, device: str) -> Bench:
    """Start, frames and judges from the file, in the frame of the first camera."""
    with TemporaryDirectory() as folder:
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        scene = stored_scene(LyraStore(Path(folder)))
        cameras = stack_cameras([scene.cameras(number) for number in READING_ORDER])
        first = cameras.camera_to_world[0, 0]
        shown = _views(scene, list(READING_ORDER), SHOWN_PER_PATH, first)
        judges = _views(scene, scene.novel_ids, JUDGES_PER_PATH, first)
        videos = [scene.rgb(number, range(cameras.shape[1])) for number in READING_ORDER]
        codec = load_codec("linear", device)
        z = torch.stack([latents_of_frames(codec, video, device) for video in videos])
    decoder = load_any_decoder("shipped", None).to(device).eval()
    start = Reconstructor(decoder, codec, PRUNE_RATIO)(z, cameras)
    return Bench(start, shown.to(device), judges.to(device))


def _views(scene: StoredScene, numbers: list[int], num: int, first: Tensor) -> RefinementViews:
    """Evenly spaced frames of some paths."""
    parts = []
    for number in numbers:
        path: CameraPath = relative_to(scene.cameras(number), first)
        frames = chosen_frames(path.shape[0], num, None)
        rgb = scene.rgb(number, frames).movedim(1, -1).float() / 255
        parts.append(RefinementViews(rgb, path[frames]))
    return joined_views(parts)


def refined_row(bench: Bench, changes: Row) -> Row:
    """One way of refining, measured; the judges choose the state that is kept."""
    judges = replace(bench.judges, held_back=tuple(range(bench.judges.num)))
    joined = joined_views([bench.shown, judges])
    held_back = tuple(range(bench.shown.num, joined.num))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    views = replace(joined, held_back=held_back)
    made = refine(bench.start, [views], RefinementConfig(render=SETTINGS, patience=1000, **changes))
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    row = measured(bench, made.gaussians) | {"seconds": made.seconds, "peak_gib": peak}
    return row | {"steps": made.num_steps, "held_back_psnr": made.held_back_psnr}


@torch.no_grad()
def measured(bench: Bench, gaussians: Gaussians) -> Row:
    """How close the Gaussians come to frames that were held out, and to those that were shown."""
    seen = torch.cat([render(gaussians, view.cameras, SETTINGS).rgb for view in _each(bench.judges)])
    images = (seen.clamp(0, 1).movedim(-1, 1), bench.judges.images.movedim(-1, 1))
    shown = [
        float(covered_psnr(render(gaussians, view.cameras, SETTINGS).rgb, view)[0])
        for view in _each(bench.shown)
    ]
    return {
        "psnr": float(covered_psnr(seen, bench.judges).mean()),
        "lpips": float(load_lpips("alex")(*images).mean()),
        "shown_psnr": sum(shown) / len(shown),
        "millions": gaussians.num / 1e6,
        "seconds": None,
        "peak_gib": None,
    }


def _each(views: RefinementViews) -> list[RefinementViews]:
    return [views[index] for index in range(views.num)]


if __name__ == "__main__":
    tyro.cli(main)
