"""Official names and diffusers' names of GEN3C and its tokenizer: one to one, at full size."""

from __future__ import annotations

import re

import pytest
import torch

from lyra_ns.gen3c.convert import (
    NOT_OF_THE_NETWORK,
    NOT_OF_THE_TOKENIZER,
    num_official_layers,
    rename,
    tokenizer_names,
    transformer_names,
)
from lyra_ns.gen3c.transformer import gen3c_config, num_buffers_of


def test_the_network_has_the_official_tensors() -> None:
    from diffusers import CosmosTransformer3DModel

    with torch.device("meta"):
        tensors = CosmosTransformer3DModel(**gen3c_config()).state_dict()
    names = transformer_names(28)
    assert set(names.values()) == set(tensors)
    assert len(names) == len(set(names.values())) == 570
    shapes = {name: tuple(tensors[ours].shape) for name, ours in names.items()}
    assert shapes["x_embedder.proj.1.weight"] == (4096, 328)
    assert shapes["extra_pos_embedder.pos_emb_w"] == (120, 4096)
    assert shapes["blocks.block27.blocks.1.block.attn.to_k.0.weight"] == (4096, 1024)
    assert shapes["blocks.block27.blocks.1.block.attn.to_k.1.weight"] == (128,)
    assert shapes["blocks.block0.blocks.2.block.layer2.weight"] == (4096, 16384)
    assert sum(tensor.numel() for tensor in tensors.values()) == pytest.approx(7.2373e9, rel=1e-5)


def test_the_names_of_a_block() -> None:
    names = transformer_names(3)
    assert (
        names["blocks.block2.blocks.0.adaLN_modulation.1.weight"]
        == "transformer_blocks.2.norm1.linear_1.weight"
    )
    assert (
        names["blocks.block2.blocks.1.block.attn.to_q.1.weight"] == "transformer_blocks.2.attn2.norm_q.weight"
    )
    assert names["blocks.block2.blocks.2.block.layer1.weight"] == "transformer_blocks.2.ff.net.0.proj.weight"
    assert num_official_layers(names) == 3
    assert num_official_layers(["x_embedder.proj.1.weight"]) == 0


@pytest.mark.slow
def test_the_names_of_the_tokenizer() -> None:
    from diffusers import AutoencoderKLCosmos

    with torch.device("meta"):
        ours = AutoencoderKLCosmos().state_dict()
    names = tokenizer_names(ours)
    assert set(names.values()) == set(ours)
    assert len(names) == 310
    for official, expected in {
        "encoder.conv_in.0.conv3d.weight": "encoder.conv_in.conv_s.weight",
        "encoder.down.1.block.0.nin_shortcut.conv3d.bias": (
            "encoder.down_blocks.1.resnets.0.conv_shortcut.bias"
        ),
        "encoder.down.0.downsample.conv3.conv3d.weight": "encoder.down_blocks.0.downsamplers.0.conv3.weight",
        "decoder.up.2.block.1.conv2.1.conv3d.weight": "decoder.up_blocks.0.resnets.1.conv2.conv_t.weight",
        "decoder.up.1.upsample.conv1.conv3d.bias": "decoder.up_blocks.1.upsamplers.0.conv1.bias",
        "decoder.mid.attn_1.1.q.conv3d.weight": "decoder.mid_block.temp_attentions.0.to_q.weight",
        "encoder.mid.attn_1.0.proj_out.conv3d.bias": "encoder.mid_block.attentions.0.to_out.0.bias",
        "decoder.mid.block_2.norm1.norm.weight": "decoder.mid_block.resnets.1.norm1.norm.weight",
        "encoder.norm_out.norm.bias": "encoder.norm_out.norm.bias",
        "post_quant_conv.conv3d.weight": "post_quant_conv.weight",
    }.items():
        assert names[official] == expected


def test_only_what_is_no_weight_is_left_out() -> None:
    names = transformer_names(1)
    tensors = dict.fromkeys(names, 1)
    extra = dict.fromkeys(
        [
            "pos_embedder.seq",
            "pos_embedder.dim_spatial_range",
            "logvar.0.freqs",
            "conditioner.text.x",
            "blocks.block0.blocks.0.block.attn.attn_op._extra_state",
            "accum_iteration",
        ],
        2,
    )
    assert rename(tensors | extra, names, NOT_OF_THE_NETWORK, "it") == dict.fromkeys(names.values(), 1)
    for name in ("pos_embedder.other", "my_logvar.x", "blocks.block1.blocks.2.block.layer1.weight"):
        with pytest.raises(
            ValueError,
            match=re.escape(f"it must hold 30 tensors by their official names, found 1 unexpected ({name})"),
        ):
            rename(tensors | {name: 1}, names, NOT_OF_THE_NETWORK, "it")
    del tensors["affline_norm.weight"]
    with pytest.raises(ValueError, match=r"found 1 missing \(affline_norm\.weight\): download"):
        rename(tensors, names, NOT_OF_THE_NETWORK, "it")
    with pytest.raises(ValueError, match=r"30 missing \(.*, \.\.\.\) and 1 unexpected \(encoder\.weight\)"):
        rename({"encoder.weight": 1, "encoder.patcher.wavelets": 2}, names, NOT_OF_THE_TOKENIZER, "it")


def test_both_directions_are_inverse() -> None:
    names = transformer_names(2)
    back = {ours: official for official, ours in names.items()}
    tensors = {name: index for index, name in enumerate(names)}
    there = rename(tensors, names, NOT_OF_THE_NETWORK, "it")
    assert rename(there, back, NOT_OF_THE_NETWORK, "it") == tensors


@pytest.mark.parametrize("padding", ["folded", "appended"])
def test_the_number_of_buffers_is_read_from_the_channels(padding: str) -> None:
    config = gen3c_config(padding=padding)
    assert config["in_channels"] == {"folded": 82, "appended": 81}[padding]
    assert num_buffers_of(config) == 2
    assert num_buffers_of(gen3c_config(num_buffers=1, padding=padding)) == 1
    with pytest.raises(ValueError, match="found 17 and 16: give a GEN3C checkpoint"):
        num_buffers_of(config | {"in_channels": 17})
