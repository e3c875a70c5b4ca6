"""Which source of depth a word means: an estimator by its name, or what is there on this machine."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from lyra_ns.depth import base
from lyra_ns.depth.base import DepthEstimator, PlaneDepth
from lyra_ns.depth.moge import CHECKPOINTS, Version, load_moge
from lyra_ns.depth.transformers import DEPTH_PRO, load_transformers_depth

NAMES = ("auto", "small", "moge", "moge-v2", "depth-pro", "plane")
"""Words that are understood; everything else is a file, or a model of transformers by hub name or folder."""
MOGE_VERSIONS: dict[str, Version] = {"moge": "v1", "moge-v2": "v2"}
"""Versions of MoGe by their words."""
MOGE_WEIGHTS = "model.pt"
"""File of MoGe's weights on the hub."""


@dataclass(frozen=True)
class ChosenDepth:
    """An estimator, and why it is this one."""

    estimator: DepthEstimator
    """Source of depth."""
    reason: str
    """What to tell the user about the choice."""


def is_depth_file(choice: str) -> bool:
    """Whether the word names a file of depth rather than an estimator."""
    return Path(choice).suffix.lower() in base.SUFFIXES


def load_depth(choice: str, device: torch.device | str = "cpu") -> ChosenDepth:
    """The estimator that a word means: one of NAMES, or a model of transformers by hub name or folder.

    `auto` is MoGe where its package is installed and its weights are in the local cache, else the small
    network that ships; nothing is downloaded for it. ValueError where the choice cannot be loaded.
    """
    if choice == "auto":
        missing = why_no_moge()
        if missing is None:
            return ChosenDepth(load_moge("v1", device=device), "MoGe, found installed with its weights")
        return ChosenDepth(_small(device), f"the small network that ships ({missing})")
    if choice == "small":
        return ChosenDepth(_small(device), "the small network that ships, as asked for")
    if choice == "plane":
        return ChosenDepth(PlaneDepth(), "a plane across the view, as asked for: nothing was estimated")
    if choice in MOGE_VERSIONS:
        return ChosenDepth(load_moge(MOGE_VERSIONS[choice], device=device), f"{choice}, as asked for")
    weights = DEPTH_PRO if choice == "depth-pro" else choice
    if "/" not in weights and not Path(weights).is_dir():
        raise ValueError(
            f"expected {', '.join(NAMES)}, a file ({', '.join(base.SUFFIXES)}) or a depth model of "
            f"transformers as --depth, found {choice!r}"
        )
    return ChosenDepth(load_transformers_depth(weights, device), f"{weights}, as asked for")


def why_no_moge() -> str | None:
    """What of MoGe is not there, package or weights; None if it can be used without a download."""
    if importlib.util.find_spec("moge") is None:
        return "MoGe is not installed: pip install 'lyra-ns[moge]'"
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(CHECKPOINTS["v1"], MOGE_WEIGHTS), str):
        return f"MoGe's weights {CHECKPOINTS['v1']} are not in the local cache: --depth moge fetches them"
    return None


def _small(device: torch.device | str) -> DepthEstimator:
    # Its weights are read only where it is chosen.
    from lyra_ns.depth.small import load_small_depth

    return load_small_depth(device)
