"""`ns-lyra convert`: weights in, weights out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lyra_ns.decoder.checkpoints import MethodName, OfficialFile


@dataclass
class Convert:
    """Turn official weights into our form: a decoder into one safetensors file, GEN3C into a folder.

    The decoder's file brings its configuration. The folder of GEN3C is a pipeline of diffusers, made of
    the 7 B network and the Cosmos tokenizer; both are read strictly, no tensor more and none less.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """lyra_static.pt, lyra_dynamic.pt, a training checkpoint of the official code or nerfstudio, or ours;
    with `--config gen3c` the model.pt of nvidia/GEN3C-Cosmos-7B."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """File to write, ending in .safetensors; for GEN3C a folder that does not exist yet."""
    config: Literal["lyra", "lyra-dynamic", "lyra-tiny", "gen3c"] | None = None
    """Network that the file holds; needed where neither its configuration nor its md5 tells, and GEN3C."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """How the weights are stored; they are computed with in float32 or bfloat16 all the same."""
    config_file: Path | None = None
    """Also write the configuration, which is inside the safetensors too, as JSON to this file."""
    tokenizer: Path | None = None
    """For GEN3C: folder with the tokenizer's encoder.jit, decoder.jit and mean_std.pt, or diffusers' form."""

    def run(self) -> None:
        """Write what was asked for and name what it holds."""
        if self.config == "gen3c":
            self._convert_gen3c()
        else:
            self._convert_decoder(self.config)

    def _convert_decoder(self, config: MethodName | None) -> None:
        from lyra_ns.data.atomic import write_whole
        from lyra_ns.decoder.checkpoints import config_to_json, load_any_decoder, save_decoder

        if self.tokenizer:
            raise ValueError("--tokenizer belongs to --config gen3c: leave it out for a decoder")
        official = self._official_file()
        decoder = load_any_decoder(self.checkpoint, config)
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

    def _convert_gen3c(self) -> None:
        import torch

        from lyra_ns.gen3c.convert import convert_gen3c

        if not self.tokenizer:
            raise ValueError(
                "GEN3C works on latents of the Cosmos tokenizer: give --tokenizer FOLDER with encoder.jit, "
                "decoder.jit and mean_std.pt of Cosmos-Tokenize1-CV8x8x8-720p, or with what diffusers saved"
            )
        if self.config_file:
            raise ValueError(
                "--config-file is for decoders: GEN3C's is in transformer/config.json of the output"
            )
        kind = getattr(torch, self.dtype)
        found = convert_gen3c(self.checkpoint, self.tokenizer, self.output, kind)
        print(
            f"{found.folder}: a GEN3C network of {found.num_weights:,} weights that reads "
            f"{found.num_buffers} 3D buffers, as {self.dtype}, with its tokenizer"
        )
        print(
            f"{self.checkpoint} is "
            + ("" if found.is_released else "not the released ")
            + "nvidia/GEN3C-Cosmos-7B"
            + ("" if found.is_released_network else ", and of another size")
        )

    def _official_file(self) -> OfficialFile | None:
        """The released file that this is; ValueError where nothing tells what it is, or two things differ."""
        from lyra_ns.decoder.checkpoints import recognise

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
