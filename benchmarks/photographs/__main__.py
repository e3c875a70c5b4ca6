"""`python -m benchmarks.photographs`: what `generate` makes of photographs that nothing was trained on.

Each part is written as soon as it is measured, under the label of the code that it ran with.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.photographs.held_out import (
    EIGHT,
    HeldOut,
    Picture,
    load_held_out,
    pack_photographs,
    unpack_photographs,
)
from benchmarks.photographs.result_file import RESULT_FILE, write_rows

RESULTS = Path(__file__).resolve().parent.parent / "results"
"""Folder of the result files."""
Part = Literal["eight"]
SHIPPED = "lyra_tiny.safetensors"
"""The decoder that is measured unless another is given."""


def main(
    parts: tuple[Part, ...] = ("eight",),
    held_out: Path | None = None,
    decoder: Path | None = None,
    label: str = "now",
    output: Path = RESULTS / RESULT_FILE,
    device: str = "cpu",
    commit: str | None = None,
    pack_held_out: Path | None = None,
) -> None:
    """Measure `parts` and write them into the JSON file `output` under `label`, beside what it holds already.

    `held_out` is the folder where packages of pictures were unpacked, or a file of `pack_held_out`, which
    packs the photographs of the part eight for another machine and measures nothing.
    """
    if pack_held_out is not None:
        from benchmarks.photographs.warped_clips import prepared

        pictures = {name: prepared(picture) for name, picture in photographs(EIGHT, held_out).items()}
        pack_photographs(pictures, pack_held_out)
        print(f"{pack_held_out}: {pack_held_out.stat().st_size / 1e6:.2f} MB, {', '.join(pictures)}")
        return
    measure_eight(photographs(EIGHT, held_out), decoder, device, output, label, commit)


def photographs(wanted: tuple[HeldOut, ...], held_out: Path | None) -> Mapping[str, Picture]:
    """The photographs by name, from a folder of unpacked packages or a packed file."""
    if held_out is not None and held_out.is_file():
        return unpack_photographs(held_out)
    return load_held_out(wanted, held_out)


def measure_eight(
    pictures: Mapping[str, Picture],
    decoder: Path | None,
    device: str,
    output: Path,
    label: str,
    commit: str | None,
) -> None:
    """The part eight: a decoder's Gaussians against clips of the photographs."""
    from benchmarks.photographs.eight import MEASURES, evaluate_photographs
    from lyra_ns.checkpoints import load_decoder
    from lyra_ns.codec import load_codec

    path = decoder or Path(str(files("lyra_ns.weights") / SHIPPED))
    rows = evaluate_photographs(
        load_decoder(path).eval().to(device), load_codec("linear", device), pictures, device
    )
    for row in rows:
        print(f"{row['photograph']:<12}" + "".join(f"{key} {row[key]:<8.3f}" for key in MEASURES))
    write_rows(output, "eight", label, rows, device=device, commit=commit, decoder=path.name)


if __name__ == "__main__":
    tyro.cli(main)
