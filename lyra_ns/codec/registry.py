"""Codecs by name."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from lyra_ns.codec.base import VideoCodec, VideoLatentSpec
from lyra_ns.codec.cosmos import load_cosmos_codec
from lyra_ns.codec.learned import load_learned_codec
from lyra_ns.codec.linear import load_linear_codec

logger = logging.getLogger(__name__)


def load_codec(name: str, device: torch.device | str = "cpu") -> VideoCodec:
    """The codec called `linear`, `learned:FILE` or `cosmos:PATH` (a folder or hub id), frozen, on `device`.

    ValueError for an unknown name, FileNotFoundError when the weights are missing.
    """
    if name == "linear":
        logger.info("codec: embedded linear 8x8x8 transform (no network; not the Cosmos tokenizer)")
        return load_linear_codec().to(device)
    kind, _, location = name.partition(":")
    if kind == "learned":
        return load_learned_codec(Path(location).expanduser() if location else None, device)
    if kind == "cosmos" and location:
        return load_cosmos_codec(location, device)
    raise ValueError(
        f"codec must be 'linear', 'learned:FILE' or 'cosmos:PATH', found {name!r}: choose one of the three"
    )


def codec_for(latents: VideoLatentSpec, device: torch.device | str = "cpu", name: str = "auto") -> VideoCodec:
    """The codec that made a data set's latents (`LyraStore.spec`), or the one called `name`, on `device`.

    ValueError if neither says which codec that is, or if the latents were made with other weights, from
    which they would decode to garbage. Latents without a digest (official data, older data) pass.
    """
    chosen = latents.codec if name == "auto" else name
    if chosen == "unknown":
        raise ValueError(
            "the data has no manifest that names the codec of its latents: name it, cosmos:PATH (official "
            "data) or linear"
        )
    codec = load_codec(chosen, device)
    if latents.digest and latents.digest != codec.spec.digest:
        raise ValueError(
            f"the data's latents were made with the codec {latents.codec} of digest {latents.digest}, as its "
            f"manifest says, found the codec {chosen} of digest {codec.spec.digest or 'unknown'}: write the "
            "data again (`ns-lyra sample-data`), or use the version of lyra-ns that wrote it"
        )
    return codec
