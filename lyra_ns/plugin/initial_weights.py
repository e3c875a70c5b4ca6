"""Where a decoder's first weights come from, and which weights it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.resources import as_file, files
from pathlib import Path

from torch import Tensor

from lyra_ns.checkpoints import load_decoder
from lyra_ns.decoder import LatentGaussianDecoder
from lyra_ns.decoder_config import DecoderConfig
from lyra_ns.plugin.errors import CheckpointMismatch

SHIPPED_DECODER = "lyra_tiny.safetensors"
"""File in `lyra_ns.weights` of the decoder that ships with the package."""

RUN_TIME_CHOICES = {"parity", "trunk_dtype", "ssd_backend", "attention", "recompute", "init"}
"""Fields of DecoderConfig that change how the weights are computed with, not what they mean."""


def load_initial_weights(decoder: LatentGaussianDecoder, init_from: str) -> None:
    """Fill `decoder` from `shipped`, a file, or (`none`) leave it as it is.

    FileNotFoundError if there is no such file, ValueError if its network is another one.
    """
    if init_from == "none":
        return
    if init_from != "shipped":
        _copy_weights(decoder, Path(init_from), init_from)
        return
    resource = files("lyra_ns.weights") / SHIPPED_DECODER
    if not resource.is_file():
        raise FileNotFoundError(
            f"this installation has no {SHIPPED_DECODER}: install a released version, "
            "or train from random weights with --pipeline.model.init-from none"
        )
    with as_file(resource) as path:
        _copy_weights(decoder, path, "the decoder that ships with this package")


def _copy_weights(decoder: LatentGaussianDecoder, path: Path, name: str) -> None:
    source = load_decoder(path)
    found = source.config
    if decoder.config.use_time:
        # A static decoder has the time embeddings too, untrained; dynamic training starts from one.
        found = replace(found, use_time=True)
    differing = differing_fields(found, decoder.config)
    if differing:
        raise ValueError(
            f"{name} is another network than --pipeline.model.decoder asks for: {', '.join(differing)}; "
            "give the same values, or train from random weights with --pipeline.model.init-from none"
        )
    decoder.load_state_dict(source.state_dict())


def differing_fields(found: DecoderConfig, wanted: DecoderConfig) -> list[str]:
    """Fields that two decoders must share for their weights to mean the same, where they do not."""
    return [
        f"{field.name} {getattr(found, field.name)} instead of {getattr(wanted, field.name)}"
        for field in fields(DecoderConfig)
        if field.name not in RUN_TIME_CHOICES and getattr(found, field.name) != getattr(wanted, field.name)
    ]


def refuse_other_network(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """CheckpointMismatch unless `given` has the names and shapes of `own`, the weights of the network."""
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    reshaped = [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    if missing or unexpected or reshaped:
        raise CheckpointMismatch(
            f"the checkpoint belongs to another network: missing {missing[:5]}, "
            f"unexpected {unexpected[:5]}, of another shape {sorted(reshaped)[:5]}; "
            "give the --pipeline.model.decoder options that it was trained with"
        )
