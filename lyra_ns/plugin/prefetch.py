"""The next batch on its way to the device while the present one is trained on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lyra_ns.data.gathering import PendingBatch
from lyra_ns.data.plans import SamplingConfig

if TYPE_CHECKING:
    from lyra_ns.plugin.batches import Batches


class PrefetchedBatches:
    """Batches of another source, each read and moved while the one before it is in use.

    One thread reads, copies into pinned memory and starts the copy to the device on a stream of its own, so
    neither the host nor the device waits. Batch for batch the same as those of the source: one that was read
    ahead but is not asked for is thrown away.
    """

    def __init__(self, source: Batches, device: torch.device | str) -> None:
        """Take a source whose batches lie in main memory."""
        self._source, self._device = source, torch.device(device)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lyra-prefetch")
        self._ahead: tuple[tuple[int, SamplingConfig], Future[PendingBatch]] | None = None
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def batch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """Batch number `index`, on the device; errors of reading it are raised here."""
        wanted, ahead = (index, sampling), self._ahead
        self._ahead = None
        future = ahead[1] if ahead is not None and ahead[0] == wanted else self._start(wanted)
        pending = future.result()
        following = (index + 1, sampling)
        self._ahead = (following, self._start(following))
        if self._stream is None:
            return pending
        # Its memory belongs to the copying stream, which must not reuse it before this one is done with it.
        stream = torch.cuda.current_stream(self._device)
        return map_tensors(pending, lambda tensor: _used_on(tensor, stream))

    def _start(self, wanted: tuple[int, SamplingConfig]) -> Future[PendingBatch]:
        return self._reader.submit(self._fetch, *wanted)

    def _fetch(self, index: int, sampling: SamplingConfig) -> PendingBatch:
        """The batch, arrived on the device: waiting for that is all that this thread has to do."""
        pending = self._source.batch(index, sampling)
        if self._stream is None:
            return pending.to(self._device)
        pinned = map_tensors(pending, lambda tensor: tensor.contiguous().pin_memory())
        with torch.cuda.stream(self._stream):
            moved = map_tensors(pinned, lambda tensor: tensor.to(self._device, non_blocking=True))
        self._stream.synchronize()
        return moved


def _used_on(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor inside its dataclasses, dictionaries, lists and tuples mapped."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        mapped = {name: map_tensors(part, function) for name, part in found.items()}
        changed = {name: part for name, part in mapped.items() if part is not found[name]}
        return replace(value, **changed) if changed else value
    if isinstance(value, dict):
        return {key: map_tensors(part, function) for key, part in value.items()}
    if isinstance(value, list):
        return [map_tensors(part, function) for part in value]
    if type(value) is tuple:
        return tuple(map_tensors(part, function) for part in value)
    return value
