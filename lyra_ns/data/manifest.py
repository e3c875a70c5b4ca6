"""manifest.json: what a dataset that we wrote holds and how it was made."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import lyra_ns
from lyra_ns.data.files import Source, write_whole
from lyra_ns.data.pose_order import FlippedPoseOrder

logger = logging.getLogger(__name__)

FORMAT = "lyra_ns dataset 1"
FILE_NAME = "manifest.json"


def current_versions() -> dict[str, str]:
    """Versions that decide what generated data looks like."""
    return {
        "lyra_ns": lyra_ns.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Manifest:
    """Contents of manifest.json."""

    codec: str
    """Name of the codec the latents were made with."""
    num_frames: int
    """Frames per clip."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""
    scenes: dict[str, list[int]]
    """Trajectory ids of each scene; the reader takes this list instead of walking the folders."""
    novel: dict[str, list[int]] = field(default_factory=dict)
    """Held-out camera paths of each scene."""
    splits: dict[str, list[str]] = field(default_factory=dict)
    """Scene names by split (train, test); empty leaves it to `lyra_ns.data.splits`."""
    is_dynamic: bool = False
    """Whether things move in the scenes."""
    seed: int | None = None
    """Seed of the generator, if the data was generated."""
    versions: dict[str, str] = field(default_factory=current_versions)
    """Versions of the software that wrote it."""
    codec_digest: str = ""
    """Fingerprint of that codec's weights (`VideoLatentSpec.digest`); empty where it is not known."""
    focal_lengths: list[float] | None = None
    """Shortest and longest focal length of procedural data, in image widths; None where nothing says them."""
    flipped_pose_order: FlippedPoseOrder = "auto"
    """How poses of views 6 to 11 of dynamic scenes are stored; `auto` leaves it to a look at each scene."""


def write_manifest(root: Path, manifest: Manifest) -> Path:
    """Writes ROOT/manifest.json whole and returns its path."""
    path = root / FILE_NAME
    content = {"format": FORMAT, **asdict(manifest)}
    if manifest.focal_lengths is None:
        del content["focal_lengths"]
    write_whole(path, json.dumps(content, indent=1).encode())
    return path


def read_manifest(root: Source) -> Manifest | None:
    """The manifest of a dataset that we wrote; None if there is none or another program's.

    ValueError when it is ours but damaged.
    """
    path = root / FILE_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            logger.info("%s was not written by lyra_ns: listing the folders instead", path)
            return None
        order, orders = content.get("flipped_pose_order", "auto"), get_args(FlippedPoseOrder)
        if order not in orders:
            raise ValueError(f"flipped_pose_order must be one of {', '.join(orders)}, found {order!r}")
        known = {item.name for item in fields(Manifest)}
        return Manifest(**{key: value for key, value in content.items() if key in known})
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"manifest {path} must be JSON as `write_manifest` writes it, found damage ({error}): delete it, "
            "then the folders are listed instead"
        ) from error
