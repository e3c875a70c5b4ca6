"""`python -m training.linear_codec DATA -o FILE`: the bases of the linear codec from frames of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.linear_codec.fit import fit_from_store


@dataclass
class FitCodec:
    """Fit the embedded linear codec's basis to the frames of a data set."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder in the official layout with rgb files."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write, ending in .safetensors."""
    num_scenes: int = 48
    """Scenes to read."""

    def run(self) -> None:
        """Write the codec and print what it loses on the same frames."""
        print(fit_from_store(self.data, self.output, self.num_scenes))


if __name__ == "__main__":
    tyro.cli(FitCodec).run()
