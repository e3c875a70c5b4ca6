"""`ns-lyra convert` and `ns-lyra fetch-lpips`: weights in, weights out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class Convert:
    """Turn a decoder checkpoint (official .pt or ours) into one safetensors file with its configuration."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """lyra_static.pt, lyra_dynamic.pt, a training checkpoint of the official code, or our safetensors."""
    output: Path
    """File to write, ending in .safetensors."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """How the weights are stored; they are computed with in float32 or bfloat16 all the same."""

    def run(self) -> None:
        """Write the file and name what it holds."""
        from lyra_ns.checkpoints import load_decoder, save_decoder

        decoder = load_decoder(self.checkpoint)
        save_decoder(decoder, self.output, dtype=self.dtype)
        num_parameters = sum(parameter.numel() for parameter in decoder.parameters())
        print(f"{self.output}: {num_parameters:,} parameters as {self.dtype}")


@dataclass
class FetchLpips:
    """Fetch the convolutional trunk of LPIPS into the user's cache, so that training can go offline."""

    net: Annotated[Literal["vgg", "alex"], tyro.conf.Positional] = "vgg"
    """VGG-16 (59 MB) is what the paper trains with; AlexNet ships with this package."""

    def run(self) -> None:
        """Fetch, check and convert the weights, then say where they are."""
        from lyra_ns.perceptual import fetch_lpips_trunk

        print(fetch_lpips_trunk(self.net))
