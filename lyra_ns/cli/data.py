"""`ns-lyra sample-data`, `unpack` and `check-data`: making and checking data sets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lyra_ns.options import check_height_and_width


@dataclass
class SampleData:
    """Write procedural scenes with exact depth and poses in the official layout, latents included.

    The teacher of this data is a ray caster with a linear codec, not GEN3C with the Cosmos tokenizer.
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write; scenes that are already complete there are kept."""
    num_scenes: int = 16
    """Scenes to train on."""
    num_held_out: int = 4
    """Scenes that no training sees, with textures that no training scene uses."""
    height: int = 160
    """Image height in pixels, a multiple of 16."""
    width: int = 256
    """Image width in pixels, a multiple of 16."""
    num_frames: int = 17
    """Frames per trajectory, 8k + 1."""
    seed: int = 0
    """Every scene follows from the seed and its number."""
    dynamic: bool = False
    """Scenes in which things move, with the six reversed trajectories that 4D training needs."""
    device: str = "auto"
    """Where the scenes are rendered: auto, cpu or cuda."""
    num_workers: int = 0
    """Workers that encode and write; 0 takes one per core."""
    textures: Path | None = None
    """Pictures for the surfaces: a pack (.zip), a folder of png and jpg files or a texture atlas
    (.safetensors); by default the photographs of scikit-image."""
    focal_lengths: tuple[float, float] = (0.9, 0.9)
    """Shortest and longest focal length, in image widths; each scene has one of its own in between."""

    def run(self) -> None:
        """Write the data set and say how to use it."""
        from lyra_ns.synthetic import write_sample_data

        check_height_and_width(self.height, self.width)
        write_sample_data(
            self.output,
            num_scenes=self.num_scenes,
            num_held_out=self.num_held_out,
            height=self.height,
            width=self.width,
            num_frames=self.num_frames,
            seed=self.seed,
            dynamic=self.dynamic,
            device=self.device,
            num_workers=self.num_workers,
            textures=self.textures,
            focal_lengths=self.focal_lengths,
        )
        print(f"Train on it with: ns-train lyra-tiny --data {self.output}")


@dataclass
class Unpack:
    """Unpack the tars of a data set into the official layout; a call that was interrupted is repeated.

    Data in plain tars can also be read as it is: give the folder of the tars as the data.
    """

    tars: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Tars (.tar, .tar.gz, .tgz), or folders with some."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder that gets 0/ 1/ ..., below static or dynamic where the tars say which."""

    def run(self) -> None:
        """Write the files, with progress, and say how many."""
        from rich.progress import Progress

        from lyra_ns.data.tar import tars_of, unpack

        with Progress(transient=True) as progress:
            total = sum(path.stat().st_size for path, _ in tars_of(self.tars))
            task = progress.add_task("unpacking", total=total)
            report = unpack(
                self.tars,
                self.output,
                lambda path, size: progress.update(task, advance=size, description=path.name),
            )
        print(
            f"{self.output}: {report.num_written} files written, {report.num_kept} were there, "
            f"{len(report.strays)} outside the layout left out"
            + (
                f" ({', '.join(report.strays[:5])}{' ...' * (len(report.strays) > 5)})"
                if report.strays
                else ""
            )
        )
        print(f"Check them with: ns-lyra check-data {self.output}")


@dataclass
class CheckData:
    """Read every clip of a data set and name each bad one with the reason."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder in the official layout, or of its tars."""

    def run(self) -> None:
        """Print the report; the exit status is 1 if anything is wrong."""
        from lyra_ns.data.check import check_dataset

        report = check_dataset(self.data)
        print(report.as_text())
        if report.problems:
            sys.exit(1)
