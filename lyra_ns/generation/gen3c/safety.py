"""The place where a safety checker looks at prompts and videos.

NVIDIA's licence ties the rights to its models to their guardrails (docs/reference/gen3c.md, "Guardrails").
They come in a package of their own: `pip install cosmos_guardrail`, then give CosmosSafetyChecker() as
`safety_checker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.generation.gen3c.text import default_negative_prompt


class UnsafeContent(ValueError):
    """A safety checker refused a text or a video."""


@runtime_checkable
class SafetyChecker(Protocol):
    """What cosmos_guardrail's CosmosSafetyChecker offers."""

    def check_text_safety(self, prompt: str) -> bool:
        """Whether the text may be used."""
        ...

    def check_video_safety(self, frames: np.ndarray) -> np.ndarray | None:
        """The frames (uint8, [L, H, W, 3]), faces made unrecognisable; None if they may not be shown."""
        ...


def check_texts(checker: SafetyChecker, texts: Sequence[str]) -> None:
    """UnsafeContent if the checker refuses one of them, of those that somebody wrote.

    The default negative text lists what a video should not show, which a checker may take for a wish: it is
    not shown to it.
    """
    for text in texts:
        if text == default_negative_prompt():
            continue
        if not checker.check_text_safety(text):
            raise UnsafeContent(f"the safety checker refuses the text {text[:60]!r}: use another one")


def checked_video(checker: SafetyChecker, video: Float[Tensor, "3 L H W"]) -> Float[Tensor, "3 L H W"]:
    """The video as the checker lets it pass, colours -1 to 1 through 8 bits; UnsafeContent if it does not."""
    frames = ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()
    passed = checker.check_video_safety(frames)
    if passed is None:
        raise UnsafeContent("the safety checker refuses the video: change the image or the text")
    return torch.from_numpy(passed).to(video).permute(3, 0, 1, 2) / 127.5 - 1
