"""GEN3C's official files into a folder that Gen3CPipeline loads.

Read are the network's `model.pt` (nvidia/GEN3C-Cosmos-7B) and the folder of the tokenizer, either the
TorchScript files of Cosmos-Tokenize1-CV8x8x8-720p with `mean_std.pt`, or diffusers' own form of it. The
network's configuration is read off the shapes of its tensors, and every tensor must have its place.

**The official files could not be had**: this is proven on files of the same names, shapes and containers.
No code inside a file is run; diffusers is imported when something is converted, not before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lyra_ns.generation.gen3c.files import is_released, read_network, read_script, read_statistics
from lyra_ns.generation.gen3c.names import (
    NOT_OF_THE_NETWORK,
    NOT_OF_THE_TOKENIZER,
    num_official_layers,
    rename,
    tokenizer_names,
    transformer_names,
)
from lyra_ns.generation.gen3c.transformer import LATENT_CHANNELS, PaddingForm, gen3c_config, num_buffers_of
from lyra_ns.generation.pretrained import missing_weights

STATISTICS_TOLERANCE = 1e-4
"""Largest difference between mean_std.pt and what diffusers knows as the tokenizer's statistics."""


@dataclass(frozen=True)
class ConvertedGen3C:
    """What `convert_gen3c` wrote."""

    folder: Path
    """Folder for Gen3CPipeline.from_pretrained."""
    num_weights: int
    """Weights of the network."""
    num_buffers: int
    """3D buffers that it reads."""
    is_released: bool
    """Whether the checkpoint is the released GEN3C-Cosmos-7B, by its md5."""
    is_released_network: bool
    """Whether the network has the released size."""


def convert_gen3c(
    checkpoint: str | Path, tokenizer: str | Path, output: str | Path, dtype: torch.dtype = torch.bfloat16
) -> ConvertedGen3C:
    """Writes the folder `output`, whole or not at all; the network as `dtype`, the tokenizer as stored.

    FileNotFoundError; FileExistsError if `output` is there already; ValueError if a file is damaged, holds
    more or less than its network's tensors, or has other latent statistics than the Cosmos tokenizer.
    """
    from lyra_ns.generation.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler

    checkpoint, output = Path(checkpoint), Path(output)
    if output.exists():
        raise FileExistsError(f"{output} is there already: give a folder that does not exist yet")
    autoencoder = load_tokenizer(tokenizer)
    transformer = build_transformer(read_network(checkpoint), dtype, str(checkpoint))
    with _whole_folder(output) as partial:
        Gen3CPipeline(transformer, autoencoder, gen3c_scheduler()).save_pretrained(partial)
    config = transformer.config
    released = gen3c_config()
    return ConvertedGen3C(
        output,
        sum(weight.numel() for weight in transformer.parameters()),
        num_buffers_of(config),
        is_released(checkpoint),
        all(_plain(config[name]) == _plain(value) for name, value in released.items()),
    )


def build_transformer(
    official: Mapping[str, Tensor],
    dtype: torch.dtype = torch.bfloat16,
    what: str = "the checkpoint",
    padding: PaddingForm = "folded",
) -> Any:
    """The CosmosTransformer3DModel of these tensors (names without `net.`), its configuration from them."""
    from diffusers import CosmosTransformer3DModel

    names = transformer_names(num_official_layers(official))
    tensors = rename(official, names, NOT_OF_THE_NETWORK, what)
    config = read_off_config(tensors, padding)
    num_buffers_of(config)
    with torch.device("meta"):  # 7 billion random weights would take longer than reading the stored ones
        transformer: Any = CosmosTransformer3DModel(**config)
    _check_shapes(what, tensors, transformer.state_dict())
    transformer.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    return transformer.eval().requires_grad_(False)


def read_off_config(tensors: Mapping[str, Tensor], padding: PaddingForm = "folded") -> dict[str, Any]:
    """The configuration of a network with these tensors, by diffusers' names; patches are 1 x 2 x 2."""
    first = "transformer_blocks.0"
    patch_size = gen3c_config()["patch_size"]
    cells = patch_size[0] * patch_size[1] * patch_size[2]
    width, head_dim = len(tensors["time_embed.norm.weight"]), len(tensors[f"{first}.attn1.norm_q.weight"])
    read = {
        "in_channels": tensors["patch_embed.proj.weight"].shape[1] // cells - (padding == "appended"),
        "out_channels": len(tensors["proj_out.weight"]) // cells,
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "num_layers": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("transformer_")),
        "mlp_ratio": len(tensors[f"{first}.ff.net.0.proj.weight"]) / width,
        "text_embed_dim": tensors[f"{first}.attn2.to_k.weight"].shape[1],
        "adaln_lora_dim": len(tensors[f"{first}.norm1.linear_1.weight"]),
        "max_size": tuple(
            len(tensors[f"learnable_pos_embed.pos_emb_{axis}"]) * patch
            for axis, patch in zip("thw", patch_size, strict=True)
        ),
    }
    return gen3c_config(padding=padding) | read


def official_network(transformer: Any) -> dict[str, Tensor]:
    """The network's tensors under their official names with `net.`: the way back of `build_transformer`."""
    tensors = transformer.state_dict()
    names = transformer_names(transformer.config.num_layers)
    back = {ours: f"net.{official}" for official, ours in names.items()}
    return rename(tensors, back, NOT_OF_THE_NETWORK, "the network")


def load_tokenizer(folder: str | Path, **config: Any) -> Any:
    """The AutoencoderKLCosmos of a folder: official TorchScript files, or what diffusers saved.

    Official are `autoencoder.jit`, or `encoder.jit` with `decoder.jit`, and `mean_std.pt`, whose statistics
    must be the Cosmos tokenizer's. `config` replaces the released tokenizer's sizes.
    """
    from diffusers import AutoencoderKLCosmos

    folder = Path(folder)
    scripts = [folder / "autoencoder.jit"]
    if not scripts[0].is_file():
        scripts = [folder / "encoder.jit", folder / "decoder.jit"]
    if all(script.is_file() for script in scripts):
        tensors = {name: tensor for script in scripts for name, tensor in read_script(script).items()}
        statistics = read_statistics(folder / "mean_std.pt")
        return build_tokenizer(tensors, statistics, str(folder), **config)
    place = next((place for place in (folder, folder / "vae") if (place / "config.json").is_file()), None)
    if place is None:
        raise FileNotFoundError(
            f"no Cosmos tokenizer in {folder}: expected encoder.jit, decoder.jit and mean_std.pt of "
            "Cosmos-Tokenize1-CV8x8x8-720p, or config.json and weights of AutoencoderKLCosmos"
        )
    try:
        autoencoder: Any = AutoencoderKLCosmos.from_pretrained(place)
    except OSError as error:
        raise FileNotFoundError(f"{place} holds no weights of AutoencoderKLCosmos ({error})") from error
    if missing := missing_weights(autoencoder):
        raise ValueError(
            f"{place} lacks {len(missing)} tensors of AutoencoderKLCosmos, the first is {missing[0]}: "
            "download it again"
        )
    if (folder / "mean_std.pt").is_file():
        check_statistics(read_statistics(folder / "mean_std.pt"), autoencoder.config)
    return autoencoder


def build_tokenizer(
    official: Mapping[str, Tensor],
    statistics: tuple[Tensor, Tensor],
    what: str = "the tokenizer",
    **config: Any,
) -> Any:
    """The AutoencoderKLCosmos of these tensors and statistics, whose values its configuration gets."""
    from diffusers import AutoencoderKLCosmos

    autoencoder: Any = AutoencoderKLCosmos(**config)
    check_statistics(statistics, autoencoder.config)
    mean, std = (values.flatten().tolist() for values in statistics)
    autoencoder.register_to_config(latents_mean=mean, latents_std=std)
    expected = autoencoder.state_dict()
    tensors = rename(official, tokenizer_names(expected), NOT_OF_THE_TOKENIZER, what)
    _check_shapes(what, tensors, expected)
    autoencoder.load_state_dict(tensors, assign=True)
    return autoencoder.eval().requires_grad_(False)


def official_tokenizer(autoencoder: Any) -> dict[str, Tensor]:
    """The tokenizer's tensors under their official names: the way back of `build_tokenizer`."""
    tensors = autoencoder.state_dict()
    back = {ours: official for official, ours in tokenizer_names(tensors).items()}
    return rename(tensors, back, NOT_OF_THE_TOKENIZER, "the tokenizer")


def check_statistics(statistics: tuple[Tensor, Tensor], config: Any) -> None:
    """ValueError unless the statistics are those that diffusers knows for the Cosmos tokenizer."""
    for name, found, known in zip(
        ("means", "deviations"), statistics, (config.latents_mean, config.latents_std), strict=True
    ):
        expected = torch.tensor(known)
        if len(found) != len(expected):
            raise ValueError(
                f"mean_std.pt holds {len(found)} {name}, the Cosmos tokenizer has {len(expected)} "
                f"({LATENT_CHANNELS} channels for each latent frame): take the file of CV8x8x8-720p"
            )
        difference = (found - expected).abs().max().item()
        if not difference <= STATISTICS_TOLERANCE:
            raise ValueError(
                f"the {name} in mean_std.pt differ from the Cosmos tokenizer's by up to {difference:.2g}, "
                f"more than {STATISTICS_TOLERANCE}: these latents would not be those that GEN3C was trained "
                "on; take the file of CV8x8x8-720p"
            )


def _check_shapes(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    odd = [name for name in expected if found[name].shape != expected[name].shape]
    if odd:
        raise ValueError(
            f"{what}: {len(odd)} tensors have another shape than their network, the first is {odd[0]} with "
            f"{list(found[odd[0]].shape)} instead of {list(expected[odd[0]].shape)}: download it again"
        )


def _plain(value: Any) -> Any:
    """Lists and tuples alike: a configuration may have been through JSON."""
    return tuple(value) if isinstance(value, list) else value


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A folder under a temporary name, which gets its true one if nothing fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
