"""What `ns-lyra generate` and `lyra_ns.generation.run.generate` are told; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lyra_ns.device import MemoryName
from lyra_ns.options import DecoderChoice


@dataclass(kw_only=True)
class GenerateSettings(DecoderChoice):
    """One scene to make, from what, and how."""

    input: Annotated[Path | None, tyro.conf.Positional] = None
    """An image, a video, ViPE's output folder, or latents in the official layout; none: only --prompt."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for everything that is made; it appears when all of it is done."""
    prompt: str | None = None
    """Without an input the picture to make; with one, what the video model is told it shows."""
    negative_prompt: str | None = None
    """What the video model shall not show; by default the teacher's own words."""
    height: int | None = None
    """Height of the clips in pixels, a multiple of 16; by default by the picture's aspect, see --crop."""
    width: int | None = None
    """Width of the clips in pixels, a multiple of 16; by default by the picture's aspect, see --crop."""
    crop: bool = False
    """Crop the picture to the usual size of clips. By default all of it is kept: clips have its aspect and
    about the usual area; GEN3C and Lyra's own decoders have one size, to which all is cropped."""
    num_frames: int | None = None
    """Frames of a clip, 8k + 1; by default what the decoder was trained for."""
    depth: str = "auto"
    """auto, small, moge, moge-v2, depth-pro, plane, a depth model of transformers, or a file for this very
    picture: .npy, .npz, 16-bit .png (millimetres), .exr. auto: ViPE's own, MoGe if it is here, else small."""
    depth_units: Literal["auto", "as_predicted", "median_one", "centre_quantile"] = "auto"
    """How depth becomes units of the scene; auto: as predicted by MoGe v1, else with a median of 1."""
    centre_quantile: float = 0.5
    """For --depth-units centre_quantile: share of the picture nearer than what the paths turn about."""
    fov: float | None = None
    """Horizontal field of view of the whole picture in degrees, before it is cropped."""
    intrinsics: tuple[float, float, float, float] | None = None
    """fx fy cx cy of the whole picture in its own pixels, where the first pixel's centre is at 0.5 0.5."""
    pose_scale: Literal["auto"] | float = "auto"
    """A unit of camera paths from files in units of the depth; auto: matched to ViPE's depth, else 1."""
    units: Literal["auto", "fitted", "scene"] | float = "auto"
    """Unit of length that the decoder sees: units of the scene, so many times as much, or fitted, the one in
    which it reproduces the clips best; auto: fitted for decoders of the kind that ships, else scene."""
    trajectory: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A camera path: left, right, up, down, zoom_in, zoom_out, clockwise, counterclockwise, none, or a file
    (.json of nerfstudio, transforms.json, .npz of Lyra 2). Can be repeated; default: Lyra's six."""
    num_trajectories: int = 6
    """How many of Lyra's six paths, in the order 5 0 1 2 3 4 in which decoders read them."""
    seed: int = 0
    """Seed of the paths' lengths and of the video model's noise."""
    distance_factor: float = 1.0
    """Makes named paths so many times as long, but never so long that they fly through what is near."""
    paths_follow: Literal["auto", "near", "official"] = "auto"
    """Depth that gives named paths their length and what they turn about: near, that of the subject (what is
    near in the middle); official, 1 in MoGe's units or the median. auto: official for GEN3C, Lyra's own
    decoders and --depth-units centre_quantile, else near."""
    look_at: Literal["auto", "gen3c", "exact"] = "auto"
    """Poses as GEN3C knows them, or with the centre exactly in the middle; auto: gen3c for that teacher."""
    path_length: Literal["exact", "first", "resample"] = "exact"
    """What is done with a path file of another length: an error, its first frames, or resampling."""
    clip: str | None = None
    """Which clip of ViPE's output, or which scene of a folder of latents; by default the first."""
    frames_from: int = 0
    """First frame of a video to use."""
    fps: float | None = None
    """Take the frames of a video at this rate; by default every frame is used, whatever its rate."""
    static_camera: bool = False
    """The camera of the video stands still, so that no poses are needed (ViPE finds those of others)."""
    first_frame_only: bool = False
    """Take one frame of a video as if it were an image, for decoders that know no motion."""
    times: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Moments from 0 to 1 at which a moving scene is reconstructed, one file each."""
    refine_steps: int | None = None
    """Gradient steps that bring the Gaussians closer to the picture and the clips; 0 switches that off. By
    default 100 on a CPU, half a minute on two cores, 400 on a GPU, and none of ready latents."""
    refine_seconds: float | None = None
    """Ends these steps after so long, whatever their number; the result then depends on the machine."""
    teacher: Literal["auto", "warp", "gen3c", "replay", "wan-vace", "sana-wm"] = "auto"
    """Who makes the clips; auto: gen3c if --weights is given, else warp, which moves the picture by its depth
    and generates nothing. replay reads clips from disk."""
    weights: str | None = None
    """Weights of a video model, folder or hub id; of gen3c what `ns-lyra convert --config gen3c` wrote."""
    clips: Path | None = None
    """For --teacher replay: a data set, videos with camera files, or rgb/ pose/ intrinsics/."""
    steps: int | None = None
    """Steps of a video model; by default its own number."""
    guidance: float | None = None
    """Guidance of a video model, by default its own; GEN3C's 1 is 2 in the usual count, 0 switches it off."""
    samples_at_once: int = 1
    """Clips that GEN3C makes together; more need more memory."""
    num_gpus: int = 1
    """GPUs of this machine that share the clips, each with a process and models of its own; the result is the
    same. On the CPU so many processes."""
    text_encoder: str | None = None
    """Folder or hub id of T5 for GEN3C's prompts; by default the one in the folder of its weights."""
    text_cache: Path | None = None
    """Folder in which GEN3C's text embeddings are kept from run to run."""
    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Numbers that a video model computes with; auto: bfloat16 on a GPU, float32 on a CPU."""
    text_to_image: str = "black-forest-labs/FLUX.1-dev"
    """Text-to-image model of diffusers, folder or hub id, for a prompt without an input."""
    memory: MemoryName = "balanced"
    """Weights of the models kept on the GPU: all, those of the stage that runs, or as few as possible."""
    dry_run: bool = False
    """Only show what the teacher would be shown: OUTPUT/preview with warped frames, cameras and depth."""
    overwrite: bool = False
    """Replace an earlier result in the output folder, and clips of an unfinished run with other settings."""

    def check(self) -> None:
        """ValueError for settings that contradict each other or that nothing can be made with."""
        if self.input is None and not (self.prompt or "").strip():
            raise ValueError("expected an input or a prompt, found neither: give a file, or --prompt")
        if self.fov is not None and self.intrinsics is not None:
            raise ValueError("expected --fov or --intrinsics, found both, which may differ: leave one out")
        self.check_decoder()
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.fov is not None and not 0 < self.fov < 180:
            raise ValueError(f"expected --fov between 0 and 180 degrees, found {self.fov}")
        if not 0 < self.centre_quantile < 1:
            raise ValueError(f"expected --centre-quantile between 0 and 1, found {self.centre_quantile}")
        if not 1 <= self.num_trajectories <= 6:
            raise ValueError(
                f"expected --num-trajectories from 1 to 6, found {self.num_trajectories}: name further paths "
                "with --trajectory"
            )
        if self.num_gpus < 1 or self.samples_at_once < 1:
            raise ValueError(
                f"expected --num-gpus and --samples-at-once of 1 or more, found {self.num_gpus} and "
                f"{self.samples_at_once}"
            )
        if self.num_gpus > 1 and self.teacher == "replay":
            raise ValueError("--num-gpus is for clips that are made, and replay reads them: leave it out")
        if not 0 < self.distance_factor < float("inf"):
            raise ValueError(f"expected --distance-factor above 0, found {self.distance_factor}")
        if not isinstance(self.pose_scale, str) and not 0 < self.pose_scale < float("inf"):
            raise ValueError(f"expected --pose-scale above 0, or auto, found {self.pose_scale}")
        if not isinstance(self.units, str) and not 0 < self.units < float("inf"):
            raise ValueError(f"expected --units above 0, fitted or scene, found {self.units}")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise ValueError(f"expected --fps above 0, found {self.fps}")
        if self.refine_steps is not None and self.refine_steps < 0:
            raise ValueError(f"expected --refine-steps of 0 or more, found {self.refine_steps}")
        if self.refine_seconds is not None and not self.refine_seconds > 0:
            raise ValueError(
                f"expected --refine-seconds above 0, found {self.refine_seconds}: --refine-steps 0 switches "
                "refinement off"
            )
        if self.frames_from < 0:
            raise ValueError(f"expected --frames-from of 0 or more, found {self.frames_from}")
        if not self.times or not all(0 <= time <= 1 for time in self.times):
            raise ValueError(f"expected --times from 0 to 1, found {self.times}")
