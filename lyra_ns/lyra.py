"""Lyra as an object: a decoder by name, and what is done with it.

>>> import lyra_ns
>>> lyra = lyra_ns.Lyra.from_pretrained("shipped")
>>> scene = lyra_ns.open_scene("data/lyra-sample")
>>> gaussians = lyra.infer(scene.latents, scene.cameras)

Shape letters: V trajectories, L frames, C T h w latent, G Gaussians.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from lyra_ns.cameras import CameraPath
from lyra_ns.codec import codec_for, load_codec
from lyra_ns.codec.base import VideoLatentSpec
from lyra_ns.data.open import held_out_names, stored_scene
from lyra_ns.data.store import LyraStore
from lyra_ns.decoder.checkpoints import PRETRAINED_NAME, MethodName, load_any_decoder, save_decoder
from lyra_ns.decoder.conditioning import RayDtype
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.device import chosen_device
from lyra_ns.evaluation.runner import ProtocolConfig, as_table, evaluate_scenes, summary_rows
from lyra_ns.gaussians import Gaussians, num_kept
from lyra_ns.generation.decoder_input import is_small
from lyra_ns.ops.lpips import load_lpips
from lyra_ns.reconstruction import MemoryWay, Reconstructor
from lyra_ns.rendering import RenderSettings

USUAL_PRUNE_RATIO = 0.5
"""Share of Gaussians, the least opaque ones, that are dropped unless another is asked for."""


@dataclass
class Lyra:
    """A decoder of video latents, ready to make Gaussians; `from_pretrained` loads one."""

    decoder: LatentGaussianDecoder
    """The network, on the device where it runs."""
    codec: str = "auto"
    """Codec of the latents: linear, cosmos:PATH (a folder or hub id), or auto, which is linear for decoders
    of the kind that ships; for others it must be named."""
    plucker_dtype: RayDtype = "float32"
    """Precision of the ray maps that are encoded; official code computes both kinds of rays in bfloat16."""
    ray_dtype: RayDtype = "float32"
    """Precision of the rays on which the Gaussians are placed."""
    memory: MemoryWay = "auto"
    """Hold a scene whole or in chunks, which takes less memory; auto: whole if the estimate fits."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "shipped",
        *,
        device: str = "auto",
        revision: str | None = None,
        config: MethodName | None = None,
        codec: str = "auto",
    ) -> Lyra:
        """Lyra with the decoder called `name`, on `device` (auto: CUDA if there is any).

        `shipped`; a file (.safetensors, official .pt, nerfstudio .ckpt); the folder of a nerfstudio run or
        one that `save_pretrained` wrote; or a hub id owner/name at `revision`. `config` names the method
        whose network a file without a configuration holds: lyra, lyra-dynamic or lyra-tiny.
        FileNotFoundError or ValueError, in one sentence, if there is no such decoder.
        """
        place = chosen_device(device)
        return cls(load_any_decoder(name, config, revision).to(place).eval(), codec)

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        return next(self.decoder.parameters()).device

    @property
    def render_settings(self) -> RenderSettings:
        """How this decoder's Gaussians are meant to be drawn."""
        return RenderSettings(response="ewa" if is_small(self.decoder.config) else "auto")

    def infer(
        self,
        latents: Float[Tensor, "V C T h w"],
        cameras: CameraPath,
        time: float | None = None,
        prune_ratio: float = USUAL_PRUNE_RATIO,
    ) -> Gaussians:
        """The Gaussians [G] of one scene in one feed-forward pass, on `device`, in the world of `cameras`.

        `latents` are in diffusion space, as data sets hold them, and `cameras` [V, L] OpenCV poses in one
        world; both in the order in which the decoder shall read the trajectories. `time` from 0 to 1 is the
        moment that a dynamic decoder shows (default: the end). The share `prune_ratio` of the least opaque
        Gaussians is dropped. ValueError for inputs that do not fit, DoesNotFit if memory does not suffice.
        """
        num_kept(0, prune_ratio)
        moment = self._moment(time)
        self._reconstruct.prune_ratio = prune_ratio
        gaussians = self._reconstruct(latents, cameras, moment)
        reference = cameras.camera_to_world[0, 0]
        if torch.equal(reference.cpu(), torch.eye(4)):
            return gaussians
        return gaussians.transform(reference)

    def save_pretrained(self, folder: str | Path) -> Path:
        """The folder, with the decoder in it as one file, from which `from_pretrained` reads it again."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        save_decoder(self.decoder, folder / PRETRAINED_NAME)
        return folder

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Upload a decoder of lyra-ns",
    ) -> str:
        """Address of the commit with which the repository owner/name on the hub got the decoder.

        The repository is made if it is not there. OSError, in one sentence, if the hub does not take it.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        try:
            with TemporaryDirectory() as folder:
                self.save_pretrained(folder)
                api.create_repo(name, private=private, exist_ok=True)
                commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
        except Exception as error:  # without a network it is one of httpx's, which have no kind in common
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
            raise OSError(
                f"the hub did not take the decoder as {name} ({reason}): check the network, the name and "
                "`hf auth login`, or use save_pretrained"
            ) from error
        return str(commit)

    def reconstructor(self, latents: VideoLatentSpec | None = None) -> Reconstructor:
        """The feed-forward pass for latents such as these (`LyraStore.spec`), of None for the decoder's own.

        ValueError if nothing says which codec made them.
        """
        if latents is not None:
            codec = codec_for(latents, self.device, self.codec)
        elif self.codec != "auto" or is_small(self.decoder.config):
            codec = load_codec("linear" if self.codec == "auto" else self.codec, self.device)
        else:
            raise ValueError(
                "this decoder reads latents of the Cosmos tokenizer, whose weights do not ship: give "
                "from_pretrained(..., codec='cosmos:FOLDER'), or codec='linear' for one trained on those"
            )
        return Reconstructor(
            self.decoder, codec, USUAL_PRUNE_RATIO, self.plucker_dtype, self.ray_dtype, self.memory
        )

    @cached_property
    def _reconstruct(self) -> Reconstructor:
        """One pass for all scenes, which keeps the encoded cameras of the last ones."""
        return self.reconstructor()

    def _moment(self, time: float | None) -> float | None:
        if not self.decoder.config.use_time:
            if time is not None:
                raise ValueError(
                    f"this decoder is static and knows no moments, found time {time}: leave it out"
                )
            return None
        if time is not None and not 0 <= time <= 1:
            raise ValueError(f"expected a time from 0 to 1, found {time}")
        return 1.0 if time is None else time


@dataclass(frozen=True)
class Evaluation:
    """Measures of a decoder on held-out scenes."""

    scenes: tuple[str, ...]
    """Names of the scenes."""
    rows: list[dict[str, object]]
    """Mean and spread of PSNR, SSIM, LPIPS and depth error by group of views, number of input trajectories
    and method; ready for JSON."""

    def table(self) -> str:
        """The rows as aligned text."""
        return as_table(self.rows)


def evaluate(
    lyra: Lyra,
    data: str | Path,
    *,
    num_scenes: int | None = None,
    num_trajectories: Sequence[int] = (1, 2, 3, 6),
    baselines: bool = True,
    depth: bool = True,
    prune_ratio: float = USUAL_PRUNE_RATIO,
) -> Evaluation:
    """Measures on the scenes that a data set holds out (all, if none), beside what needs no decoder.

    `data` is a folder in the official layout with frames, and with depth unless `depth` is False; the numbers
    are those of `ns-lyra evaluate`. ValueError or FileNotFoundError, in one sentence, if it does not suit.
    """
    numbers = tuple(num_trajectories)
    if not numbers or not all(1 <= number <= 6 for number in numbers):
        raise ValueError(f"expected numbers of trajectories from 1 to 6, found {numbers}")
    store = LyraStore(Path(data).expanduser())
    names, _ = held_out_names(store, num_scenes)
    reconstruct = lyra.reconstructor(store.spec)
    reconstruct.prune_ratio = prune_ratio
    config = ProtocolConfig(numbers, baselines=baselines, depth=depth, render=lyra.render_settings)
    scenes = (stored_scene(store, name) for name in names)
    results = evaluate_scenes(reconstruct, scenes, load_lpips("alex"), config)
    scores = [score for result in results for score in result.scores]
    return Evaluation(tuple(names), summary_rows(scores))
