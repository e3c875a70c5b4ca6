"""Codecs by name."""

from __future__ import annotations

import logging

import torch

from lyra_ns.codec.cosmos import load_cosmos_codec
from lyra_ns.codec.interface import VideoCodec
from lyra_ns.codec.linear import load_linear_codec

logger = logging.getLogger(__name__)


def load_codec(name: str, device: torch.device | str = "cpu") -> VideoCodec:
    """The codec called `linear` or `cosmos:PATH` (a folder or hub id), frozen, on `device`.

    ValueError for an unknown name, FileNotFoundError when the weights are missing.
    """
    if name == "linear":
        logger.info("codec: embedded linear 8x8x8 transform (no network; not the Cosmos tokenizer)")
        return load_linear_codec().to(device)
    kind, _, location = name.partition(":")
    if kind == "cosmos" and location:
        return load_cosmos_codec(location, device)
    raise ValueError(f"codec must be 'linear' or 'cosmos:PATH', found {name!r}: choose one of the two")
