"""What workers are started with: the two stages of a run, and one job done with every outcome told.

Pictures are made from prompts before any clip is, by other workers: two large models never share a GPU.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from PIL import Image

from lyra_ns.codec.interface import VideoLatentSpec
from lyra_ns.data.files import write_whole
from lyra_ns.data.video_files import VideoSize
from lyra_ns.errors import error_text
from lyra_ns.generation.inputs import FINER, finer_size
from lyra_ns.generation.make_data.jobs import Job, JobResult
from lyra_ns.generation.make_data.scene_inputs import picture_path
from lyra_ns.generation.make_data.settings import MakeDataSettings
from lyra_ns.memory_limits import DoesNotFit
from lyra_ns.one_thread import one_thread

logger = logging.getLogger(__name__)

FATAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the file system that no other job would escape."""

DoJob = Callable[[Job], VideoLatentSpec | None]
"""Does a job and returns the codec of its latents, if it makes any."""


@runtime_checkable
class Stage(Protocol):
    """Something that workers can be started with; travels to other processes."""

    def start(self, device: torch.device) -> DoJob:
        """Loads the models on `device`."""
        ...


@dataclass(frozen=True)
class PictureStage:
    """Pictures from prompts."""

    settings: MakeDataSettings
    """How the data set is made."""
    root: Path
    """Folder of the data set."""

    def start(self, device: torch.device) -> DoJob:
        """Loads the text-to-image model."""
        from lyra_ns.generation.text.to_image import load_text_to_image

        settings = self.settings
        model = load_text_to_image(settings.text_to_image, device, memory=settings.teacher.memory)
        # It paints at its own size; of that as much is kept as of a large picture from a file.
        size = VideoSize(settings.num_frames, settings.height, settings.width)
        height, width = finer_size((FINER * size.height, FINER * size.width), size)

        def make(job: Job) -> None:
            label = f"picture/{settings.seed}/{job.scene.digest}"
            seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:4], "little")
            picture = model(job.scene.source, height, width, seed & 0x7FFFFFFF)
            buffer = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
            write_whole(picture_path(self.root, job.scene), buffer.getvalue())

        return make


@dataclass(frozen=True)
class ClipStage:
    """Clips of scenes."""

    settings: MakeDataSettings
    """How the data set is made."""
    source: Path
    """Input of the run."""
    root: Path
    """Folder of the data set."""
    folder: Path
    """Folder in it that holds the numbered ones."""
    codec: VideoLatentSpec | None = None
    """Codec of the clips that are there already; others are refused."""

    def start(self, device: torch.device) -> DoJob:
        """Loads the source of depth and the teacher."""
        from lyra_ns.generation.depth.choice import load_depth
        from lyra_ns.generation.depth.estimator import PlaneDepth
        from lyra_ns.generation.make_data.clip_maker import ClipMaker
        from lyra_ns.generation.teachers.registry import load_teacher

        settings = self.settings
        estimator = load_depth(settings.depth, device).estimator
        if isinstance(estimator, PlaneDepth):
            estimator = replace(estimator, fov_x=settings.fov_x)
        teacher = load_teacher(settings.teacher, device, estimator)
        spec = teacher.codec.spec
        spec.latent_shape(settings.num_frames, settings.height, settings.width)
        if self.codec is not None and (self.codec.codec, self.codec.digest) != (spec.codec, spec.digest):
            raise ValueError(
                f"{self.root} holds latents of the codec {self.codec.codec} (digest {self.codec.digest}), "
                f"found the codec {spec.codec} (digest {spec.digest}): use the version that made them, or "
                "take another output folder"
            )
        return ClipMaker(settings, self.source, self.root, self.folder, teacher, estimator, device)


class StageWorker:
    """One worker: starts its stage with the first job, then does one job after the other."""

    def __init__(self, stage: Stage, device: str) -> None:
        self.stage = stage
        self.device = device
        self._do: DoJob | None = None

    def work(self, job: Job) -> JobResult:
        """What became of a job. Nothing is raised: what goes wrong is told in one sentence."""
        with one_thread():
            try:
                if self._do is None:
                    self._do = self.stage.start(torch.device(self.device))
            except Exception as error:
                logger.debug("start of a worker", exc_info=True)
                return JobResult(job, _sentence(error), is_fatal=True)
            try:
                return JobResult(job, codec=self._do(job))
            except Exception as error:
                logger.debug("scene %s", job.scene.name, exc_info=True)
                if _is_gpu_lost(error):
                    lost = f"scene {job.scene.name} left its GPU unusable: {_sentence(error)}"
                    return JobResult(job, lost, is_worker_lost=True)
                return JobResult(job, _sentence(error), is_fatal=_is_fatal(error))


def _is_fatal(error: Exception) -> bool:
    """Whether all other jobs would fail in the same way."""
    if isinstance(error, DoesNotFit):
        return True
    return isinstance(error, OSError) and error.errno in FATAL_ERRORS


def _is_gpu_lost(error: Exception) -> bool:
    """Whether CUDA fails in this process from now on, as after an illegal access; not out of memory."""
    if not isinstance(error, RuntimeError) or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _sentence(error: Exception) -> str:
    """What went wrong in one line, with the kind of error where the text may not speak for itself."""
    if isinstance(error, OSError) and error.errno is not None:
        return error_text(error)
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | FileNotFoundError | ModuleNotFoundError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
