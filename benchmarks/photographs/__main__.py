"""`python -m benchmarks.photographs`: what `generate` makes of photographs that nothing was trained on.

Each part is written as soon as it is measured, under the label of the code that it ran with; all else that
the file holds stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import tyro

from benchmarks.photographs.held_out import (
    EIGHT,
    FIVE,
    MOTORCYCLE,
    TEN,
    HeldOut,
    Picture,
    load_held_out,
)
from benchmarks.photographs.pack import packed, read_pack, write_pack
from benchmarks.photographs.result_file import RESULT_FILE, Row, write_rows
from benchmarks.photographs.scenes import SceneMaker

RESULTS = Path(__file__).resolve().parent.parent / "results"
"""Folder of the result files."""
Part = Literal["eight", "five", "right", "orbits"]
Way = Literal["default", "feed-forward"]
ARGUMENTS: dict[Way, tuple[str, ...]] = {"default": (), "feed-forward": ("--refine-steps", "0")}
"""Arguments of `one_scene` for each way of making scenes."""
SHIPPED = "lyra_tiny.safetensors"
"""The decoder that is measured unless another is given."""


@dataclass(frozen=True)
class Bench:
    """What all parts need."""

    held_out: Path | None
    """Folder of unpacked packages, or a packed file."""
    decoder: Path | None
    """Decoder of the part eight; None: the one that ships."""
    device: str
    """Where the part eight runs."""
    makers: Mapping[str, SceneMaker]
    """Ways of making scenes."""
    sheets: Path
    """Folder for orbit sheets."""

    def photographs(self, wanted: tuple[HeldOut, ...]) -> dict[str, Picture]:
        """The photographs by name."""
        return load_held_out(wanted, self.held_out)

    @property
    def packed_eight(self) -> dict[str, bytes]:
        """The photographs of the part eight."""
        if self.held_out is not None and self.held_out.is_file():
            return read_pack(self.held_out)
        return {name: packed(picture) for name, picture in self.photographs(EIGHT).items()}


def main(
    parts: tuple[Part, ...] = ("eight", "five", "right", "orbits"),
    held_out: Path | None = None,
    decoder: Path | None = None,
    label: str = "now",
    output: Path = RESULTS / RESULT_FILE,
    sheets: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("orbits"),
    scenes: Path | None = None,
    ways: tuple[Way, ...] = ("default", "feed-forward"),
    checkout: Path | None = None,
    device: str = "cpu",
    commit: str | None = None,
    pack_held_out: Path | None = None,
) -> None:
    """Measure `parts` and write them into the JSON file `output` under `label`, beside what it holds already.

    `held_out` is the folder where packages of pictures were unpacked, or a file of `pack_held_out`, which
    packs the photographs of the part eight for another machine and measures nothing. `decoder` and `device`
    are those of the part eight; all others are `generate` as it comes, on the CPU. `sheets` is the folder for
    the part orbits; `scenes` keeps what `generate` writes. `ways` are those in which scenes are made,
    `checkout` the package that makes them: of an older one, say, that knows of no refinement, the way default
    alone. `commit` names the code where git is missing or knows of another one.
    """
    with TemporaryDirectory() as temporary:
        made = scenes or Path(temporary)
        makers = {way: SceneMaker(made / way, ARGUMENTS[way], checkout) for way in ways}
        bench = Bench(held_out, decoder, device, makers, sheets)
        if pack_held_out is not None:
            write_pack(bench.packed_eight, pack_held_out)
            print(f"{pack_held_out}: {pack_held_out.stat().st_size / 1e6:.2f} MB")
            return
        for part in parts:
            print(f"== {part}", flush=True)
            load = round(os.getloadavg()[0], 1)
            rows, about = MEASURED[part](bench)
            where = device if part == "eight" else "cpu"
            write_rows(output, part, label, rows, device=where, commit=commit, load_before=load, **about)


def measure_eight(bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """A decoder's Gaussians against clips of eight photographs."""
    from benchmarks.photographs.eight import MEASURES, evaluate_photographs
    from lyra_ns.codec import load_codec
    from lyra_ns.decoder.checkpoints import load_decoder

    path = bench.decoder or Path(str(files("lyra_ns.weights") / SHIPPED))
    network = load_decoder(path).eval().to(bench.device)
    codec = load_codec("linear", bench.device)
    rows = evaluate_photographs(network, codec, bench.packed_eight, bench.device)
    for row in rows:
        print(f"{row['photograph']:<12}" + "  ".join(f"{key} {row[key]:.3f}" for key in MEASURES))
    return rows, {"decoder": path.name}


def measure_five(bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """`generate` on five photographs."""
    from benchmarks.photographs.five import five_rows
    from lyra_ns.ops.lpips import load_lpips

    return five_rows(bench.photographs(FIVE), bench.makers, load_lpips("alex")), {}


def measure_right(bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """The right photograph of the stereo pair from scenes of the left one."""
    from benchmarks.photographs.right import right_rows
    from lyra_ns.ops.lpips import load_lpips

    left = bench.photographs((MOTORCYCLE,))[MOTORCYCLE.name]
    return right_rows(left, bench.makers, MOTORCYCLE.name, load_lpips("alex")), {}


def draw_orbits(bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """Sheets to look at."""
    from benchmarks.photographs.orbits import DEGREES, write_orbits

    rows = write_orbits(bench.photographs(TEN), bench.makers, bench.sheets)
    return rows, {"degrees": DEGREES}


MEASURED: dict[Part, Callable[[Bench], tuple[list[Row], dict[str, Any]]]] = {
    "eight": measure_eight,
    "five": measure_five,
    "right": measure_right,
    "orbits": draw_orbits,
}
"""What measures each part: its rows, and what else is to be said of them."""


if __name__ == "__main__":
    tyro.cli(main)
