"""`ns-lyra convert` and `ns-lyra fetch-lpips`: weights in, weights out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lyra_ns.checkpoints import OfficialFile


@dataclass
class Convert:
    """Turn a decoder checkpoint (official .pt or ours) into one safetensors file with its configuration."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """lyra_static.pt, lyra_dynamic.pt, a training checkpoint of the official code or nerfstudio, or ours."""
    output: Path
    """File to write, ending in .safetensors."""
    config: Literal["lyra", "lyra-dynamic", "lyra-tiny"] | None = None
    """Method whose network the file holds; needed where neither its configuration nor its md5 tells."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """How the weights are stored; they are computed with in float32 or bfloat16 all the same."""
    config_file: Path | None = None
    """Also write the configuration, which is inside the safetensors too, as JSON to this file."""

    def run(self) -> None:
        """Write the file and name what it holds."""
        from lyra_ns.checkpoints import config_to_json, save_decoder
        from lyra_ns.commands.any_decoder import load_any_decoder
        from lyra_ns.data.files import write_whole

        official = self._official_file()
        decoder = load_any_decoder(self.checkpoint, self.config)
        change = largest_change(decoder.state_dict(), self.dtype)
        save_decoder(decoder, self.output, dtype=self.dtype)
        if self.config_file:
            write_whole(self.config_file, config_to_json(decoder.config).encode())
        if official:
            print(f"{self.checkpoint}: this is nvidia/Lyra's {official.name}")
        num_parameters = sum(parameter.numel() for parameter in decoder.parameters())
        kind = "dynamic" if decoder.config.use_time else "static"
        print(
            f"{self.output}: a {kind} decoder of {num_parameters:,} parameters as {self.dtype}, "
            + (f"rounded by at most {change:.2g} of a weight" if change else "no weight changed")
        )
        if not decoder.codec_digest:
            print(
                "The digest of the tokenizer is left empty, because the checkpoint does not name the "
                "tokenizer of its latents: `--codec` is not checked against these weights."
            )

    def _official_file(self) -> OfficialFile | None:
        """The released file that this is; ValueError where nothing tells what it is, or two things differ."""
        from lyra_ns.checkpoints import recognise

        if self.checkpoint.suffix == ".safetensors" or not self.checkpoint.exists():
            return None
        official = recognise(self.checkpoint) if self.checkpoint.is_file() else None
        if official is None and self.config is None:
            raise ValueError(
                f"{self.checkpoint} is none of nvidia/Lyra's released files and does not say which network "
                "it holds (static and dynamic have the same tensors): give --config lyra or lyra-dynamic"
            )
        if official is not None and self.config not in (
            None,
            "lyra-dynamic" if official.use_time else "lyra",
        ):
            raise ValueError(
                f"{self.checkpoint} is nvidia/Lyra's {official.name}, found --config {self.config}: leave "
                "--config out"
            )
        return official


def largest_change(tensors: Mapping[str, Tensor], dtype: str) -> float:
    """How far storing as `dtype` moves a weight, as a share of it; ValueError if one gets infinite."""
    import torch

    kind, largest = getattr(torch, dtype), 0.0
    for name, tensor in tensors.items():
        stored = tensor.to(kind).to(tensor.dtype)
        if not stored.isfinite().all():
            raise ValueError(
                f"{name} does not fit into {dtype}, or is not finite: take --dtype bfloat16, or get the "
                "checkpoint again"
            )
        share = (stored - tensor).abs() / tensor.abs().clamp_min(torch.finfo(tensor.dtype).tiny)
        largest = max(largest, float(share.max()))
    return largest


@dataclass
class FetchLpips:
    """Fetch the convolutional trunk of LPIPS into the user's cache, so that training can go offline."""

    net: Annotated[Literal["vgg", "alex"], tyro.conf.Positional] = "vgg"
    """VGG-16 (59 MB) is what the paper trains with; AlexNet ships with this package."""

    def run(self) -> None:
        """Fetch, check and convert the weights, then say where they are."""
        from lyra_ns.perceptual import fetch_lpips_trunk

        print(fetch_lpips_trunk(self.net))
