"""The Gaussians of recently shown scenes, so that a viewer frame does not run the decoder again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from lyra_ns.gaussians import Gaussians


@dataclass(frozen=True)
class SceneRequest:
    """Which Gaussians are wanted."""

    scene: str
    """Name of the scene."""
    trajectories: tuple[int, ...]
    """Ids of the input trajectories in the order in which the decoder reads them."""
    target_time: float | None = None
    """Moment shown, 0 to 1 (dynamic scenes only)."""


@dataclass(frozen=True)
class _Entry:
    gaussians: Gaussians
    version: int
    finished: float
    seconds: float


class SceneCache:
    """Least-recently-used Gaussians, each valid for one version of the decoder's weights."""

    STALE_FACTOR = 10.0
    """A stale entry may be shown for this many times the seconds that a new one costs."""

    def __init__(self, decode: Callable[[SceneRequest], Gaussians], capacity: int = 4) -> None:
        self._decode = decode
        self._capacity = capacity
        self._entries: OrderedDict[SceneRequest, _Entry] = OrderedDict()

    def get(self, request: SceneRequest, version: int, may_be_stale: bool = False) -> Gaussians:
        """The Gaussians of `request` under weights `version`.

        With `may_be_stale` (viewer frames while training goes on) those of an earlier version do for a
        while, so that an open browser slows training down by a tenth and not by half.
        """
        entry = self._entries.get(request)
        if entry is None or not self._is_usable(entry, version, may_be_stale):
            started = time.monotonic()
            gaussians = self._decode(request)
            finished = time.monotonic()
            entry = _Entry(gaussians, version, finished, finished - started)
        # The viewer may interrupt at any line: the entry is complete before it is stored.
        self._entries[request] = entry
        self._entries.move_to_end(request)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        return entry.gaussians

    def clear(self) -> None:
        """Forget everything."""
        self._entries = OrderedDict()

    def _is_usable(self, entry: _Entry, version: int, may_be_stale: bool) -> bool:
        if entry.version == version:
            return True
        return may_be_stale and time.monotonic() - entry.finished < self.STALE_FACTOR * entry.seconds
