"""Pipelines and language models of the real classes at a size for tests: few channels, random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tests.helpers.small_gen3c import draw_weights

LETTERS = list("abcdefghijklmnopqrstuvwxyz ,.")


def word_tokenizer(words: Sequence[str], **special_tokens: str) -> Any:
    """A tokenizer whose tokens are words, without any file: what it does not know is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special_tokens = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "</s>"} | special_tokens
    vocabulary = {word: index for index, word in enumerate([*special_tokens.values(), *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special_tokens["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def letter_clip_tokenizer() -> Any:
    """A CLIP tokenizer that knows single letters."""
    from transformers import CLIPTokenizer

    names = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    vocabulary = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def small_stable_diffusion() -> Any:
    """Stable Diffusion with thin layers: pictures of 32 x 32 by default, in latent cells of 8 x 8 pixels."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = letter_clip_tokenizer()
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def small_wan_vace() -> Any:
    """Wan VACE with thin layers; every weight drawn, since diffusers leaves the control's at zero."""
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanVACEPipeline,
        WanVACETransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=32,
        vace_layers=[0],
        vace_in_channels=96,
    )
    tokenizer = word_tokenizer(["a", "red", "room", "green", "field"])
    text = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return WanVACEPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=draw_weights(transformer, 0.2).eval(),
    )


def small_sana_wm() -> Any:
    """SANA-WM with thin layers; every weight drawn, since diffusers leaves those of the cameras at zero."""
    from diffusers import (
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        SanaWMPipeline,
        SanaWMTransformer3DModel,
    )
    from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaTokenizer

    torch.manual_seed(0)
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    tokenizer = GemmaTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])
    text = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = SanaWMTransformer3DModel(
        in_channels=8,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        caption_channels=16,
    )
    autoencoder = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    return SanaWMPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2ForCausalLM(text).eval(),
        vae=autoencoder.eval(),
        transformer=draw_weights(transformer, 0.1).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def small_language_model(sayings: Sequence[str]) -> tuple[Any, Any]:
    """A GPT-2 with thin layers that says any of the sayings at random, and its tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokenizer = word_tokenizer(sayings)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=512,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config).eval(), tokenizer
