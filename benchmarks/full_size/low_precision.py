"""What attention with 8-bit scores does to renders: the shipped decoder on held-out scenes, both ways.

No trained decoder of the paper's size is at hand. The shipped one has heads of the same 64 channels; its
sequences are too short for the kernel to pay, which is why the form is set by hand here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lyra_ns.codec import codec_for
from lyra_ns.data.scenes import StoredScene
from lyra_ns.data.store import LyraStore
from lyra_ns.decoder.blocks import Attention
from lyra_ns.decoder.checkpoints import load_any_decoder
from lyra_ns.evaluation.runner import ProtocolConfig, evaluate_scenes, summary_rows
from lyra_ns.metrics import psnr
from lyra_ns.ops.attention import attend_in_cudnn, attend_in_fp8, attend_in_triton
from lyra_ns.ops.lpips import load_lpips
from lyra_ns.reconstruction import Reconstructor

AttentionForm = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(query, key, value) -> mixed values, all [B, N, H, D]."""
FORMS: dict[str, AttentionForm] = {"cudnn": attend_in_cudnn, "triton": attend_in_triton, "fp8": attend_in_fp8}
"""Forms of attention by name, the exact ones first."""
NUM_TRAJECTORIES = 6
"""Inputs."""


@torch.no_grad()
def low_precision_rows(
    data: Path, device: str = "cuda", forms: Mapping[str, AttentionForm] = FORMS
) -> list[dict[str, Any]]:
    """Scores of each form on the held-out scenes of `data`; PSNR of its renders against the first form's."""
    store = LyraStore(data)
    codec = codec_for(store.spec, torch.device(device))
    names = store.manifest.splits["test"] if store.manifest else store.names
    scenes = [StoredScene(store.scene(name), store.novel_clips(name), spec=store.spec) for name in names]
    protocol = ProtocolConfig(num_trajectories=(NUM_TRAJECTORIES,), baselines=False)
    perceptual = load_lpips("alex")
    rows, exact = [], None
    for name, attend in forms.items():
        decoder = load_any_decoder("shipped", None).to(device).eval()
        for module in decoder.modules():
            if isinstance(module, Attention):
                module.attend = attend
        reconstruct = Reconstructor(decoder, codec, prune_ratio=0.5)
        results = list(evaluate_scenes(reconstruct, scenes, perceptual, protocol))
        images = torch.cat([result.views["lyra"].rgb for result in results])
        exact = images if exact is None else exact
        for row in summary_rows([score for result in results for score in result.scores]):
            own = {"form": name, "num_scenes": len(scenes), "psnr_against_first": _mean_psnr(images, exact)}
            rows.append(own | row)
            print(rows[-1], flush=True)
    return rows


def _mean_psnr(images: torch.Tensor, exact: torch.Tensor) -> float | None:
    """Mean over images; None where all are equal."""
    return None if torch.equal(images, exact) else float(psnr(images, exact).mean())
