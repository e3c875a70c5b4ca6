"""The official names of GEN3C's and the Cosmos tokenizer's tensors and those of diffusers, one to one.

Source: docs/reference/gen3c.md, "Names of tensors" and "Tokenizer". Every tensor must have its partner: a
missing, unexpected or doubled name is an error, and only what is listed here as no weight of the network is
left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

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
