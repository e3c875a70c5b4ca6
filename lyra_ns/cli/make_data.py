"""`ns-lyra make-data` and `ns-lyra write-prompts`: a training set with latents, and prompts for it.

The set is made from pictures, videos, prompts or clips. Prompts are scene descriptions by a language model,
which `make-data` turns into scenes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lyra_ns.teachers.registry import TeacherChoice

if TYPE_CHECKING:
    from lyra_ns.make_data.settings import MakeDataSettings


@dataclass
class WritePrompts:
    """Write a text file with different scene descriptions, one per line, for `ns-lyra make-data`.

    Equal options give equal descriptions; fewer of the same seed are the first of more.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Text file to write; one that exists is never overwritten."""
    num: int
    """How many descriptions."""
    kind: Literal["static", "dynamic"] = "static"
    """Scenes in which nothing moves, as make-data wants them, or in which one or two things do."""
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    """Text-generation model of transformers, folder or hub id; one that follows instructions does best."""
    seed: int = 0
    """All random draws follow from this."""
    device: str = "auto"
    """Where the model runs: auto takes a GPU if there is one."""

    def run(self) -> None:
        """Write the file and say so."""
        import torch

        from lyra_ns.text.prompts import load_prompt_writer, write_prompts

        file = self.file.expanduser()
        if file.exists():
            raise FileExistsError(f"{file} exists and is kept as it is: take another name, or remove it")
        if self.num < 1:
            raise ValueError(f"expected --num of 1 or more, found {self.num}")
        best = "cuda" if torch.cuda.is_available() else "cpu"
        writer = load_prompt_writer(self.model, best if self.device == "auto" else self.device)
        write_prompts(file, writer(self.num, self.kind, self.seed))
        print(f"wrote {self.num} prompts by {self.model} to {file}")
        print(f"Make scenes of them with: ns-lyra make-data {file} -o ROOT")


@dataclass
class MakeData:
    """Make the clips of a training set with any number of workers; a call that was interrupted is repeated.

    The official layout with latents, frames, cameras and depth. Equal options give equal clips, whoever makes
    them. What cannot be made is listed in failures.json, and the rest goes on.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of images, of videos whose camera stands still, or of ViPE's output; a text file with one prompt
    per line; or, for the teacher replay, clips with cameras (also a data set without latents)."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder of the data set."""
    teacher: tyro.conf.OmitArgPrefixes[TeacherChoice] = field(default_factory=TeacherChoice)
    height: int = 704
    """Image height in pixels, a multiple of 16."""
    width: int = 1280
    """Image width in pixels, a multiple of 16."""
    num_frames: int = 121
    """Frames per clip, 8k + 1."""
    seed: int = 0
    """All random draws of a scene follow from this and from its content."""
    trajectories: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Which of the paths left, right, up, zoom_out, zoom_in, clockwise are made of each scene."""
    flipped: bool = True
    """Moving scenes: the same paths on the reversed video, too, as views 6 to 11, which 4D training needs."""
    distance_factor: float = 1.0
    """Makes all paths so many times as long."""
    look_at: Literal["gen3c", "exact"] = "gen3c"
    """Poses as GEN3C was trained with, or with the centre exactly in the middle."""
    prompt: str | None = None
    """What the teacher is told a scene shows that has no prompt of its own (a .txt beside its file)."""
    negative_prompt: str | None = None
    """What clips shall not show; by default the teacher's own words."""
    text_to_image: str = "black-forest-labs/FLUX.1-dev"
    """Text-to-image model of diffusers, folder or hub id, that turns prompts into pictures."""
    depth: str = "auto"
    """auto, small, moge, moge-v2, depth-pro, plane, or a depth model of transformers."""
    depth_units: Literal["auto", "as_predicted", "median_one", "centre_quantile"] = "auto"
    """How depth becomes units of the scene; auto: as predicted by MoGe v1, else so that the median is 1."""
    centre_quantile: float = 0.5
    """For --depth-units centre_quantile: share of the picture that is nearer than what paths turn about."""
    fov: float | None = None
    """Horizontal field of view in degrees of the clips, that is of the cropped picture, whose camera neither
    file nor estimator knows; --fov of generate is of the whole picture."""
    pose_scale: float = 1.0
    """Clips without depth: a unit of their poses in units of the estimated depth."""
    dynamic: bool = False
    """Clips of replay that are no data set, such as ViPE's: things move in them, which their files do not
    tell."""
    repeat_last: bool = False
    """ViPE clips that are too short stand still at their end instead of failing."""
    frame_depth: Literal["auto", "teacher", "estimated"] = "auto"
    """Depth of the frames: the teacher's, an estimate aligned to the 3D cache, or that only where the teacher
    gives none."""
    latent_format: Literal["safetensors", "pkl"] = "safetensors"
    """Kind of the latent files; pkl is the official one."""
    test_fraction: float = 0.1
    """Share of the scenes that is held out from training."""
    num_workers: int = 0
    """Workers; 0 takes one per GPU, and on the CPU this process alone."""
    ray: str | None = None
    """Let a Ray cluster do it: its address, auto for the one of this machine, local to start one here."""
    clips_per_job: int = 0
    """Clips of a scene that a worker makes at a time; 0 takes all, small numbers spread few scenes over many
    workers and lose less when a run is killed."""
    shard: str = "0/1"
    """Make only a part of the scenes, such as 2/8 (the third of eight), on machines without Ray."""
    retry_failed: bool = False
    """Try again what failed in earlier runs."""

    def run(self) -> None:
        """Make the data and say what was made; the exit status is 1 if any scene failed."""
        from lyra_ns.make_data.plan import Shard
        from lyra_ns.make_data.run import RunOptions, make_data

        options = RunOptions(
            num_workers=self.num_workers,
            device=self.teacher.device,
            ray=self.ray,
            clips_per_job=self.clips_per_job,
            shard=Shard.parse(self.shard),
            retry_failed=self.retry_failed,
        )
        report = make_data(self.source, self.output, self._settings(), options)
        print(report.as_text())
        if report.failures:
            sys.exit(1)
        print(f"Check it with: ns-lyra check-data {self.output}")

    def _settings(self) -> MakeDataSettings:
        """The options that decide what is made."""
        from lyra_ns.make_data.settings import MakeDataSettings

        same = (
            "teacher", "height", "width", "num_frames", "seed", "trajectories", "flipped", "distance_factor",
            "look_at", "prompt", "negative_prompt", "text_to_image", "depth", "depth_units",
            "centre_quantile", "pose_scale", "dynamic", "repeat_last", "frame_depth", "latent_format",
            "test_fraction",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in same}
        if self.fov is not None:
            given["fov_x"] = self.fov
        return MakeDataSettings(**given)
