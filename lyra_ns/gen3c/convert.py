"""GEN3C's official files into a folder that Gen3CPipeline loads.

Read are the network's `model.pt` (nvidia/GEN3C-Cosmos-7B) and the folder of the tokenizer, either the
TorchScript files of Cosmos-Tokenize1-CV8x8x8-720p with `mean_std.pt`, or diffusers' own form of it. The
network's configuration is read off the shapes of its tensors. Official names of tensors and those of
diffusers correspond one to one (docs/reference/gen3c.md, "Names of tensors" and "Tokenizer"): a missing,
unexpected or doubled name is an error, and only what is listed here as no weight of the network is left out.

**The official files could not be had**: this is proven on files of the same names, shapes and containers. No
code inside a file is run; diffusers is imported when something is converted, not before.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lyra_ns.gen3c.transformer import LATENT_CHANNELS, PaddingForm, gen3c_config, num_buffers_of
from lyra_ns.pretrained import missing_weights

RELEASED_MD5 = "38644bf823aa5272acef60cfad8bc0f7"
"""md5 of model.pt in nvidia/GEN3C-Cosmos-7B (docs/reference/gen3c.md, "Names of tensors")."""
CONTAINERS = ("model", "state_dict", "module")
"""Keys under which a checkpoint may keep its tensors."""
BLOCK_BYTES = 2**20


def is_released(path: Path) -> bool:
    """Whether the file is the released GEN3C-Cosmos-7B, by its content."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == RELEASED_MD5


def read_network(path: str | Path) -> dict[str, Tensor]:
    """Tensors by official names without `net.`, mapped from the file where its format allows.

    They may lie at the top or under one of CONTAINERS. What is known as no weight (NOT_OF_THE_NETWORK) is
    left out. FileNotFoundError; ValueError if anything else is no tensor or this is no checkpoint of GEN3C.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give the path of GEN3C's model.pt")
    content = _plain_content(path)
    for container in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
            break
    if not isinstance(content, dict) or not num_official_layers(_short(name) for name in content):
        found = [str(name) for name in content][:3] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is no checkpoint of GEN3C: expected names like net.blocks.block0..., at the top or "
            f"under {', '.join(CONTAINERS)}, found {found}"
        )
    values = {_short(name): value for name, value in content.items()}
    if len(values) < len(content):
        raise ValueError(f"{path} holds a name with and without `net.`: keep one of the two")
    kept = {name: value for name, value in values.items() if not NOT_OF_THE_NETWORK.search(name)}
    odd = [name for name, value in kept.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(f"{path} holds something that is no tensor as {odd[0]}: download it again")
    return kept


def read_script(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript file; its program is loaded and not run."""
    try:
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot be read as TorchScript ({_first_line(error)}): download it again"
        ) from error


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Means and deviations [256] of mean_std.pt: channel x latent frame of a clip of 121 frames."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: put the tokenizer's mean_std.pt beside its .jit files")
    content = _plain_content(path)
    pair = tuple(content) if isinstance(content, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair) or pair[0].shape != pair[1].shape:
        raise ValueError(
            f"{path} must hold two tensors of one shape, means and deviations: download it again"
        )
    mean, std = (part.float().flatten() for part in pair)
    return mean, std


def _plain_content(path: Path) -> Any:
    """What torch.save wrote; TransformerEngine's states are byte streams, which are let through."""
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a bad file
        raise ValueError(
            f"{path} cannot be read as a file of plain tensors ({_first_line(error)}): download it again, "
            "and do not trust a file that holds code"
        ) from error


def _is_archive(path: Path) -> bool:
    """Whether torch can map the file: it is a zip, as torch writes since 1.6."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _short(name: Any) -> str:
    return str(name).removeprefix("net.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


Value = TypeVar("Value")

NOT_OF_THE_NETWORK = re.compile(
    r"^logvar\.|^conditioner\.|^accum_|(^|\.)_extra_state$"
    r"|^pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)$"
)
"""What a checkpoint of GEN3C holds beside weights: training's state and what is computed anew."""
NOT_OF_THE_TOKENIZER = re.compile(r"\.(wavelets|_arange|patch_size_buffer)$")
"""Constants of the Haar transform, which diffusers computes."""
NUM_LISTED = 4
"""Names that an error lists before it says how many more there are."""

_OUTER_NAMES = {
    "x_embedder.proj.1.weight": "patch_embed.proj.weight",
    "extra_pos_embedder.pos_emb_t": "learnable_pos_embed.pos_emb_t",
    "extra_pos_embedder.pos_emb_h": "learnable_pos_embed.pos_emb_h",
    "extra_pos_embedder.pos_emb_w": "learnable_pos_embed.pos_emb_w",
    "t_embedder.1.linear_1.weight": "time_embed.t_embedder.linear_1.weight",
    "t_embedder.1.linear_2.weight": "time_embed.t_embedder.linear_2.weight",
    "affline_norm.weight": "time_embed.norm.weight",
    "final_layer.adaLN_modulation.1.weight": "norm_out.linear_1.weight",
    "final_layer.adaLN_modulation.2.weight": "norm_out.linear_2.weight",
    "final_layer.linear.weight": "proj_out.weight",
}
_ATTENTION_NAMES = {
    "to_q.0.weight": "to_q.weight",
    "to_q.1.weight": "norm_q.weight",
    "to_k.0.weight": "to_k.weight",
    "to_k.1.weight": "norm_k.weight",
    "to_v.0.weight": "to_v.weight",
    "to_out.0.weight": "to_out.0.weight",
}
_FEEDFORWARD_NAMES = {"layer1.weight": "ff.net.0.proj.weight", "layer2.weight": "ff.net.2.weight"}

_TOKENIZER_RULES = [
    (r"^encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1."),
    (r"\.mid_block\.resnets\.0\.", r".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", r".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", r".mid.attn_1.0."),
    (r"\.mid_block\.temp_attentions\.0\.", r".mid.attn_1.1."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.attentions\.(\d+)\.", r".attn.\1.0."),
    (r"\.temp_attentions\.(\d+)\.", r".attn.\1.1."),
    (r"\.(down|up)samplers\.0\.conv([123])\.", r".\1sample.conv\2.conv3d."),
    (r"\.conv_s\.", r".0.conv3d."),
    (r"\.conv_t\.", r".1.conv3d."),
    (r"\.conv_shortcut\.", r".nin_shortcut.conv3d."),
    (r"\.to_([qkv])\.", r".\1.conv3d."),
    (r"\.to_out\.0\.", r".proj_out.conv3d."),
    (r"^((?:post_)?quant_conv)\.", r"\1.conv3d."),
]
"""From diffusers' names to the official ones, applied one after the other."""


def transformer_names(num_layers: int) -> dict[str, str]:
    """What diffusers calls each official name, without `net.`, of a network with so many blocks."""
    names = dict(_OUTER_NAMES)
    for layer in range(num_layers):
        theirs, ours = f"blocks.block{layer}.blocks", f"transformer_blocks.{layer}"
        for part in range(3):
            for linear in (1, 2):
                modulation = f"{theirs}.{part}.adaLN_modulation.{linear}.weight"
                names[modulation] = f"{ours}.norm{part + 1}.linear_{linear}.weight"
        for part in range(2):
            for official, name in _ATTENTION_NAMES.items():
                names[f"{theirs}.{part}.block.attn.{official}"] = f"{ours}.attn{part + 1}.{name}"
        for official, name in _FEEDFORWARD_NAMES.items():
            names[f"{theirs}.2.block.{official}"] = f"{ours}.{name}"
    return names


def num_official_layers(official_names: Iterable[str]) -> int:
    """How many blocks a checkpoint with these names (without `net.`) has; 0 if it is no such checkpoint."""
    found = (re.match(r"blocks\.block(\d+)\.", name) for name in official_names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def tokenizer_names(diffusers_names: Iterable[str]) -> dict[str, str]:
    """What diffusers calls each official name of the tokenizer, given all of diffusers' names."""
    ours = list(diffusers_names)
    levels = {int(match[1]) for name in ours if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))}
    names = {_official_tokenizer_name(name, len(levels)): name for name in ours}
    assert len(names) == len(ours)
    return names


def _official_tokenizer_name(name: str, num_levels: int) -> str:
    def counted_from_the_end(match: re.Match[str]) -> str:
        return f"decoder.up.{num_levels - 1 - int(match[1])}."

    name = re.sub(r"^decoder\.up_blocks\.(\d+)\.", counted_from_the_end, name)
    for pattern, replacement in _TOKENIZER_RULES:
        name = re.sub(pattern, replacement, name)
    return name


def rename(
    tensors: Mapping[str, Value], names: Mapping[str, str], left_out: re.Pattern[str], what: str
) -> dict[str, Value]:
    """The same values under new names; ValueError unless the old ones are exactly those of `names`.

    Names that `left_out` finds are none of the network's. `what` begins the error's sentence.
    """
    found = {name: value for name, value in tensors.items() if not left_out.search(name)}
    missing, unexpected = sorted(names.keys() - found.keys()), sorted(found.keys() - names.keys())
    problems = [
        f"{len(some)} {kind} ({', '.join(some[:NUM_LISTED])}{', ...' if len(some) > NUM_LISTED else ''})"
        for kind, some in (("missing", missing), ("unexpected", unexpected))
        if some
    ]
    if problems:
        raise ValueError(
            f"{what} must hold {len(names)} tensors by their official names, found {' and '.join(problems)}: "
            "download it again, or convert it with the version that knows its network"
        )
    return {names[name]: value for name, value in found.items()}


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
    from lyra_ns.gen3c.pipeline import Gen3CPipeline, gen3c_scheduler

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
