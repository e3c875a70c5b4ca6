"""Errors for checkpoints that lack tensors: transformers draws these at random and only warns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

NUM_NAMED = 3
"""Missing tensors that a message names."""
_PATCHING = RLock()


class MissingWeights(ValueError):
    """A checkpoint lacks tensors of its network; the message counts them and names some."""

    def __init__(self, names: Sequence[str]) -> None:
        shown = ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
        super().__init__(f"lack {len(names)} tensors of their network ({shown})")


@contextmanager
def refusing_missing_weights() -> Iterator[None]:
    """While it lasts, transformers raises MissingWeights instead of drawing numbers for what a file lacks.

    Pipelines of diffusers load some of their parts through transformers and do not hand on what these lacked,
    so that from_pretrained itself is replaced for the time.
    """
    from transformers import PreTrainedModel

    with _PATCHING:
        stock = PreTrainedModel.__dict__["from_pretrained"]

        def from_pretrained(kind: Any, *args: Any, output_loading_info: bool = False, **options: Any) -> Any:
            network, info = stock.__get__(None, kind)(*args, output_loading_info=True, **options)
            if missing := sorted(info["missing_keys"]):
                raise MissingWeights([f"{kind.__name__}.{name}" for name in missing])
            return (network, info) if output_loading_info else network

        PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            PreTrainedModel.from_pretrained = stock  # type: ignore[method-assign]
