"""Whether a process of this machine is running."""

from __future__ import annotations

import os


def process_exists(number: int) -> bool:
    """Whether there is a process of that number, of any user."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
