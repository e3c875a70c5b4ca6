"""GEN3C as a teacher: the cache rendered along the path, encoded, and made into a video by the network.

It is loaded from a folder of converted weights. A video of more frames than the network takes at once is made
chunk by chunk, each from the last frame of the one before (docs/reference/gen3c.md, "Long videos"). Latents
of chunks do not join: a tokenizer's first latent frame stands alone. So `generate` takes one chunk, and
`generate_chunks` gives a clip for every chunk.

Shape letters: B clips, L frames, N buffers, D channels of all buffers, C latent channels, T latent frames, H
W image, h w latent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lyra_ns.cache3d.align import align_inverse_depth
from lyra_ns.cache3d.cache import SceneCache
from lyra_ns.camera_paths import FRAMES_PER_LATENT
from lyra_ns.cameras import CameraPath
from lyra_ns.codec.cosmos import CosmosCodec
from lyra_ns.depth.base import DepthEstimator
from lyra_ns.device import MemoryName
from lyra_ns.draws import generator_for
from lyra_ns.gen3c.inputs import default_negative_prompt
from lyra_ns.gen3c.memory import SMALLEST, ClipSize
from lyra_ns.gen3c.sampling import AUGMENT_SIGMA
from lyra_ns.pretrained import default_dtype, load_pretrained
from lyra_ns.teachers.base import (
    Notes,
    OnStep,
    TeacherClip,
    TeacherRequest,
    cache_on,
    check_requests,
    eight_bits,
    naming,
    request_name,
)
from lyra_ns.teachers.text_embeddings import TextEmbeddings
from lyra_ns.teachers.warp import merged

if TYPE_CHECKING:
    from lyra_ns.gen3c.pipeline import Gen3CPipeline


def chunk_paths(cameras: CameraPath, chunk_frames: int) -> list[CameraPath]:
    """The path [L] in chunks of `chunk_frames`, each starting at the last camera of the one before.

    Times run from 0 to 1 in each. A path that is not longer is one chunk. ValueError if the last chunk would
    be shorter than the others.
    """
    num_frames, step = cameras.shape[0], chunk_frames - 1
    if num_frames <= chunk_frames:
        return [cameras]
    if (num_frames - 1) % step:
        whole = (num_frames - 1) // step * step + 1
        raise ValueError(
            f"a video of more than {chunk_frames} frames must have {step}k + 1, found {num_frames}: cut the "
            f"camera path to {whole} or extend it to {whole + step}"
        )
    times = torch.linspace(0.0, 1.0, chunk_frames, device=cameras.times.device)
    return [
        replace(cameras[start : start + chunk_frames], times=times)
        for start in range(0, num_frames - 1, step)
    ]


def joined_video(chunks: Sequence[UInt8[Tensor, "_ 3 H W"]]) -> UInt8[Tensor, "L 3 H W"]:
    """The frames of all chunks, of those that two share only the first."""
    return torch.cat([chunks[0], *(chunk[1:] for chunk in chunks[1:])])


@dataclass(frozen=True)
class Chunk:
    """A part of a request's video, and what it starts from."""

    request: TeacherRequest
    """What was asked for."""
    paths: list[CameraPath]
    """All chunks of the path."""
    number: int
    """Which one this is."""
    image: Float[Tensor, "3 H W"]
    """Its first frame, 0 to 1."""
    cache: SceneCache
    """What is known by now."""
    notes: Notes = field(default_factory=dict)
    """How well the depth of its first frame fits the cache."""

    @property
    def cameras(self) -> CameraPath:
        """Its path."""
        return self.paths[self.number]

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.number + 1 == len(self.paths)

    @property
    def start(self) -> int:
        """Frame of the source video that belongs to its first frame."""
        return self.request.start + sum(path.shape[0] - 1 for path in self.paths[: self.number])


def first_chunk(request: TeacherRequest, paths: list[CameraPath]) -> Chunk:
    """The chunk that starts from the request's image."""
    assert request.cache is not None
    return Chunk(request, paths, 0, request.image, request.cache)


def next_chunk(chunk: Chunk, last_frame: UInt8[Tensor, "3 H W"], depth: DepthEstimator | None) -> Chunk:
    """The chunk that starts from the last frame of `chunk`.

    That frame becomes part of the cache, its depth estimated and brought into the cache's scale; the cache of
    a video knows its frames already. ValueError, naming the clip, if the two depths cannot be compared.
    """
    image = last_frame.float() / 255
    following = replace(chunk, number=chunk.number + 1, image=image)
    if chunk.cache.policy == "per_frame":
        return following
    assert depth is not None
    try:
        cache, notes = _extended(chunk.cache, image, chunk.cameras[-1:], depth)
    except ValueError as error:
        raise ValueError(f"{request_name(chunk.request)}, end of chunk {chunk.number}: {error}") from error
    return replace(following, cache=cache, notes=notes)


def _extended(
    cache: SceneCache, image: Tensor, camera: CameraPath, estimator: DepthEstimator
) -> tuple[SceneCache, Notes]:
    """The cache with the image as a new frame seen by `camera` [1]; what has no depth is taken for sky."""
    predicted = estimator.predict(image, camera.intrinsics[0].to(image))
    known = merged(cache.render(camera)).depth[0].to(predicted.depth)
    fit = align_inverse_depth(predicted.depth, known)
    farthest = cache.settings.farthest_depth
    aligned = fit.applied(predicted.depth, farthest)
    if farthest is not None:
        aligned = torch.where(predicted.known, aligned, farthest)
    notes: Notes = {
        "depth_scale": fit.scale, "depth_shift": fit.shift, "depth_residual": fit.residual,
    }  # fmt: skip
    return cache.append(image.to(cache.frames.rgb), aligned.to(cache.frames.depth), camera[0]), notes


def check_network(request: TeacherRequest, pipeline: Gen3CPipeline) -> None:
    """ValueError for a size or a cache that the network does not take."""
    cameras, cache = request.cameras, request.cache
    assert cache is not None
    multiple = pipeline.codec.spec.spatial_stride * pipeline.transformer.config.patch_size[-1]
    if cameras.height % multiple or cameras.width % multiple:
        raise ValueError(
            f"height and width must be multiples of {multiple}, found {cameras.height}x{cameras.width}: "
            "resize or crop image, depth and cameras"
        )
    most = 1 if cache.policy == "per_frame" else cache.settings.max_buffers
    if most > pipeline.num_buffers:
        raise ValueError(
            f"the network reads {pipeline.num_buffers} 3D buffers, found a cache of up to {most}: "
            "lower max_buffers in its settings"
        )


def check_extension(cameras: CameraPath, cache: SceneCache, has_depth: bool) -> None:
    """ValueError unless the last frame of a chunk can become part of the cache."""
    if not has_depth:
        raise ValueError(
            f"a video of {cameras.shape[0]} frames is made in chunks, which needs a depth estimator: "
            "give the teacher one, or shorten the path"
        )
    size, known = (cameras.height, cameras.width), tuple(cache.frames.depth.shape[1:])
    if size != known:
        raise ValueError(
            f"a video of chunks needs a cache of frames of its own size, {size} (height x width), found "
            f"{known}: resize them together, or shorten the path"
        )


def clip_size(
    requests: Sequence[TeacherRequest], paths: Sequence[Sequence[CameraPath]], samples_at_once: int
) -> ClipSize:
    """The size of the clips that requests of one size, with these chunks, ask for together."""
    first = paths[0][0]
    buffers = [_most_buffers(request, len(chunks)) for request, chunks in zip(requests, paths, strict=True)]
    together = min(len(requests), samples_at_once)
    return ClipSize(first.shape[0], first.height, first.width, together, max(buffers))


def _most_buffers(request: TeacherRequest, num_chunks: int) -> int:
    """3D buffers that the last of a request's chunks is shown."""
    cache = request.cache
    assert cache is not None
    if cache.policy == "per_frame":
        return 1
    return min(len(cache.frames) + num_chunks - 1, cache.settings.max_buffers)


@dataclass(frozen=True)
class Gen3CSettings:
    """How GEN3C makes its clips."""

    steps: int = 35
    """Steps of the sampler."""
    guidance: float = 1.0
    """Guidance in GEN3C's sense: 1 is 2 in the usual count; 0 halves the work."""
    augment_sigma: float = AUGMENT_SIGMA
    """Noise on the first frame that the network sees."""
    samples_at_once: int = 1
    """Clips that go through the network together."""
    shared_noise: bool = False
    """Whether all trajectories of a scene start from one noise, as in the official data."""
    chunk_frames: int = 121
    """Frames that the network makes at once, 8k + 1; longer videos are made in chunks of so many."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples_at_once < 1 or not 0 <= self.guidance < float("inf"):
            raise ValueError(
                "expected steps and samples_at_once of 1 or more and a finite guidance from 0 on, found "
                f"{self.steps}, {self.samples_at_once} and {self.guidance}"
            )
        if self.chunk_frames < FRAMES_PER_LATENT + 1 or self.chunk_frames % FRAMES_PER_LATENT != 1:
            raise ValueError(
                f"expected chunk_frames of 9, 17 .. 121, found {self.chunk_frames}: take one of these"
            )


class Gen3CTeacher:
    """Clips by GEN3C. Their depth is that of the cache, 0 where it showed nothing.

    `depth` estimates the depth of the last frame of a chunk, which videos of several chunks need unless their
    cache is one of a video; `texts` embeds prompts (None: the pipeline's own T5, if it has one).
    """

    def __init__(
        self,
        pipeline: Gen3CPipeline,
        settings: Gen3CSettings | None = None,
        depth: DepthEstimator | None = None,
        texts: TextEmbeddings | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings or Gen3CSettings()
        self.depth = depth
        self.texts = texts or TextEmbeddings(pipeline)
        self._checked: ClipSize | None = None

    @property
    def name(self) -> str:
        """`gen3c`."""
        return "gen3c"

    @property
    def codec(self) -> CosmosCodec:
        """The pipeline's tokenizer."""
        return self.pipeline.codec

    @property
    def needs_cache(self) -> bool:
        """Always."""
        return True

    def generate(
        self, requests: Sequence[TeacherRequest], on_step: OnStep | None = None
    ) -> list[TeacherClip]:
        """One clip per request, of one chunk at most; steps are those of the sampler over all batches.

        A clip does not depend on the other requests, but for rounding where several go through the network
        together. ValueError before anything is made, for longer videos, too: `generate_chunks` makes them.
        """
        for request in requests:
            if len(request.cameras.shape) == 1 and request.cameras.shape[0] > self.settings.chunk_frames:
                raise ValueError(
                    f"{request_name(request)}: GEN3C makes {self.settings.chunk_frames} frames at once, "
                    f"found a path of {request.cameras.shape[0]}: shorten it, or call generate_chunks"
                )
        return [clips[0] for clips in self.generate_chunks(requests, on_step)]

    @torch.no_grad()
    def generate_chunks(
        self, requests: Sequence[TeacherRequest], on_step: OnStep | None = None
    ) -> list[list[TeacherClip]]:
        """The clips of each request's video, one for every path of `chunk_paths`, in their order.

        The first frame of a chunk shows what the last one of the chunk before does. ValueError before
        anything is made, DoesNotFit among others if the memory policy has no room for clips of this size;
        later only if the depth at a chunk's end cannot be brought into the cache's scale.
        """
        paths = self._checked_paths(requests)
        self._check_memory(requests, paths)
        texts = self._embedded(requests)
        progress = _Progress(on_step, self._num_steps([len(parts) for parts in paths]))
        chunks = [first_chunk(request, parts) for request, parts in zip(requests, paths, strict=True)]
        clips: list[list[TeacherClip]] = [[] for _ in requests]
        pending = list(range(len(requests)))
        while pending:
            made = self._made([chunks[k] for k in pending], [texts[k] for k in pending], progress)
            for k, clip in zip(pending, made, strict=True):
                clips[k].append(clip)
            pending = [k for k in pending if not chunks[k].is_last]
            for k in pending:
                chunks[k] = next_chunk(chunks[k], clips[k][-1].video[-1], self.depth)
        return clips

    def _made(
        self, chunks: list[Chunk], texts: list[tuple[Tensor, Tensor]], progress: _Progress
    ) -> list[TeacherClip]:
        """The clips of the chunks: all are rendered and encoded, then all sampled, then all decoded."""
        shown = [self._shown(chunk) for chunk in chunks]
        latents: list[Tensor] = []
        for start in range(0, len(chunks), self.settings.samples_at_once):
            batch = slice(start, start + self.settings.samples_at_once)
            latents += self._sampled(chunks[batch], shown[batch], texts[batch], progress)
        return [self._clip(*parts) for parts in zip(chunks, shown, latents, strict=True)]

    def _shown(self, chunk: Chunk) -> _Shown:
        """The cache along the chunk's path."""
        colours, masks, depth, share_seen = self._seen(chunk)
        return _Shown(self.pipeline.encode_buffers(colours, masks).cpu(), depth, share_seen)

    def _seen(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, float]:
        """Colours and masks for the encoder, which needs the room of all else; depth; share of the seen."""
        warps = cache_on(chunk.cache, self._device).render(chunk.cameras, chunk.start)
        seen = merged(warps)
        colours, masks = (values[None].float() for values in warps.in_video_range())
        return colours, masks, seen.depth.float().cpu(), seen.mask.float().mean().item()

    def _sampled(
        self,
        chunks: list[Chunk],
        shown: list[_Shown],
        texts: list[tuple[Tensor, Tensor]],
        progress: _Progress,
    ) -> list[Tensor]:
        """Latents of one batch, on the CPU."""
        prompts, negatives = (torch.cat(column) for column in zip(*texts, strict=True))
        latents = self.pipeline(
            torch.stack([chunk.image for chunk in chunks]).to(self._device).float() * 2 - 1,
            torch.cat([each.buffers for each in shown]),
            prompt_embeds=prompts,
            negative_prompt_embeds=negatives,
            guidance=self.settings.guidance,
            num_inference_steps=self.settings.steps,
            augment_sigma=self.settings.augment_sigma,
            generator=[self._generator(chunk) for chunk in chunks],
            on_step=progress,
        )
        return list(latents.float().cpu())

    def _generator(self, chunk: Chunk) -> torch.Generator:
        """Where a clip's noise comes from: the same whatever else is made, on every machine."""
        request = chunk.request
        trajectory = "all" if self.settings.shared_noise else request.trajectory
        return generator_for("gen3c noise", request.seed, request.scene, trajectory, chunk.number)

    def _clip(self, chunk: Chunk, shown: _Shown, z: Tensor) -> TeacherClip:
        video = self.pipeline.decode_latents(z[None])[0].transpose(0, 1)
        notes = {
            "teacher": self.name,
            "weights": Path(self.pipeline.name_or_path or "unknown").name,
            "seed": chunk.request.seed,
            "steps": self.settings.steps,
            "guidance": self.settings.guidance,
            "chunk": chunk.number,
            "share_seen": shown.share_seen,
            **chunk.notes,
        }
        return TeacherClip(z, eight_bits((video + 1) / 2).cpu(), shown.depth, notes)

    @property
    def _device(self) -> torch.device:
        return torch.device(self.pipeline._execution_device)

    def _num_steps(self, num_chunks: list[int]) -> int:
        """Steps of the sampler over all batches."""
        rounds = [sum(num > number for num in num_chunks) for number in range(max(num_chunks, default=0))]
        return self.settings.steps * sum(-(-num // self.settings.samples_at_once) for num in rounds)

    def _checked_paths(self, requests: Sequence[TeacherRequest]) -> list[list[CameraPath]]:
        """The chunks of each request's path; ValueError for a request that GEN3C cannot serve."""
        check_requests(requests, self.codec.spec, needs_cache=True)
        if len({(request.cameras.shape, tuple(request.image.shape)) for request in requests}) > 1:
            raise ValueError(
                "expected requests of one length and size, found several: ask for them one after the other"
            )
        for request in requests:
            with naming(request):
                self._check(request)
        return [chunk_paths(request.cameras, self.settings.chunk_frames) for request in requests]

    def _check_memory(self, requests: Sequence[TeacherRequest], paths: list[list[CameraPath]]) -> None:
        """DoesNotFit if clips of this size cannot be made; a size is checked when it comes up."""
        size = clip_size(requests, paths, self.settings.samples_at_once) if requests else self._checked
        if size is None or size == self._checked:
            return
        from lyra_ns.gen3c.memory import check_memory

        check_memory(self.pipeline, size)
        self._checked = size

    def _check(self, request: TeacherRequest) -> None:
        cameras, cache = request.cameras, request.cache
        assert cache is not None
        check_network(request, self.pipeline)
        if cameras.shape[0] > self.settings.chunk_frames and cache.policy != "per_frame":
            check_extension(cameras, cache, self.depth is not None)

    def _embedded(self, requests: Sequence[TeacherRequest]) -> list[tuple[Tensor, Tensor]]:
        """Embeddings [1, S, E] of what each request wants and does not want."""
        pairs = [(request.prompt, _negative_of(request)) for request in requests]
        embedded = self.texts.of([text for pair in pairs for text in pair if text is not None])
        (nothing,) = self.pipeline.encode_prompt([None]).cpu().split(1)

        def of(text: str | None) -> Tensor:
            return nothing if text is None else embedded[text].to(nothing.dtype)

        return [(of(prompt), of(negative)) for prompt, negative in pairs]


@dataclass(frozen=True)
class _Shown:
    """What the network is shown of the cache; on the CPU."""

    buffers: Tensor
    """[1, D, T, h, w]"""
    depth: Tensor
    """[L, H, W], 0 in holes."""
    share_seen: float
    """Share of all pixels that are no holes."""


class _Progress:
    """Counts the sampler's steps over all batches."""

    def __init__(self, on_step: OnStep | None, num_steps: int) -> None:
        self._on_step, self._num_steps, self._done = on_step, num_steps, 0

    def __call__(self, step: int, latents: Tensor) -> None:
        self._done += 1
        if self._on_step is not None:
            self._on_step(self._done, self._num_steps)


def _negative_of(request: TeacherRequest) -> str | None:
    """The negative text: NVIDIA's where only a prompt is given."""
    if request.negative_prompt is None and request.prompt is not None:
        return default_negative_prompt()
    return request.negative_prompt


def load_gen3c(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    memory: MemoryName = "balanced",
    settings: Gen3CSettings | None = None,
    depth: DepthEstimator | None = None,
    *,
    text_encoder: str | None = None,
    text_cache: Path | None = None,
) -> Gen3CTeacher:
    """The teacher of a folder that `ns-lyra convert` wrote, in `dtype` (None: bfloat16, on a CPU float32).

    `text_encoder` is a folder or hub id of T5; None takes the one in `folder`, if there is one. It is loaded
    only for texts that `text_cache` does not hold, as `memory` says (TextEmbeddings), and dropped again.
    FileNotFoundError or ValueError, in one sentence, where there is no pipeline of GEN3C; DoesNotFit where
    not even its weights fit: whether clips do is checked when they are asked for and their size is known.
    """
    from lyra_ns.gen3c.memory import apply_memory_policy
    from lyra_ns.gen3c.pipeline import Gen3CPipeline

    _check_kind(Path(folder))
    is_cpu = torch.device(device).type == "cpu"
    dtype = default_dtype(device, dtype)
    if not is_cpu and dtype != torch.bfloat16:
        raise ValueError(f"gen3c runs in bfloat16 on a GPU, found {dtype}: leave the precision to it")
    own = ("text_encoder", "tokenizer")
    pipeline = load_pretrained(
        lambda place: Gen3CPipeline.from_pretrained(place, torch_dtype=dtype, **dict.fromkeys(own)),
        str(folder),
        "teacher gen3c",
    )
    pipeline.set_progress_bar_config(disable=True)
    if is_cpu:
        pipeline.to(device)
    else:
        apply_memory_policy(pipeline, memory, device, size=SMALLEST)
    if text_encoder is None and all((Path(folder) / part).is_dir() for part in own):
        text_encoder = str(folder)
    texts = TextEmbeddings(
        pipeline, text_encoder, text_cache, device, dtype, memory="fast" if is_cpu else memory
    )
    return Gen3CTeacher(pipeline, settings, depth, texts)


def _check_kind(folder: Path) -> None:
    """ValueError if the folder's pipeline is another one, or not converted yet."""
    index = folder / "model_index.json"
    if not index.is_file():
        if (folder / "model.pt").is_file():
            raise ValueError(
                f"{folder} holds GEN3C's official model.pt, which has to be converted first: run `ns-lyra "
                "convert --config gen3c`"
            )
        return
    try:
        found = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is damaged ({error!r}): convert the checkpoint again") from error
    if found != "Gen3CPipeline":
        raise ValueError(
            f"teacher gen3c needs a folder of Gen3CPipeline, found {found} in {index}: give the folder that "
            "`ns-lyra convert --config gen3c` wrote"
        )
