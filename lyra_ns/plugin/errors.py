"""Errors of the glue that must reach the user as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """The data cannot be used; the message says what was expected, what was found and what to do."""


class CheckpointMismatch(ValueError):
    """A checkpoint holds other tensors than the decoder has.

    No RuntimeError, because nerfstudio answers that one by loading whatever fits, without a word.
    """


MISSING_DATA = (
    "there is no data yet: `ns-lyra sample-data --output data/lyra-sample` makes some, "
    "then `ns-train lyra-tiny --data data/lyra-sample` trains on it"
)
"""What a user reads who starts training without data."""


@contextmanager
def reading_data() -> Iterator[None]:
    """Turns what the readers raise about bad or missing files into DataError."""
    try:
        yield
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
