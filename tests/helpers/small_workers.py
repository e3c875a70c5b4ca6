"""A stage that kills its own process, for tests of workers; fresh processes import this module."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import torch

from lyra_ns.make_data.plan import Job
from lyra_ns.make_data.workers import DoJob


@dataclass(frozen=True)
class FragileStage:
    """A stage whose process dies with scenes called deadly."""

    def start(self, device: torch.device) -> DoJob:
        """Needs nothing."""

        def work(job: Job) -> None:
            if job.scene.name.startswith("deadly"):
                os.kill(os.getpid(), signal.SIGKILL)

        return work
