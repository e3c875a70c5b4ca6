"""The decoder's training step as CUDA graphs, for small networks whose many kernels are short.

One graph for the forward and one for the backward pass are captured for each shape of the inputs and replayed
afterwards; on the CPU, without gradients or in evaluation the decoder runs as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lyra_ns.decoder.conditioning import Conditioning
from lyra_ns.decoder.model import LatentGaussianDecoder
from lyra_ns.gaussians import Gaussians


class GraphedDecoder:
    """Runs a decoder through CUDA graphs where that is possible.

    No module of its own: the decoder keeps its parameters, names and state dict. Before a second call the
    backward pass of the first must have run, since all graphs share one memory for activations. The first
    call of a shape takes seconds (warm-up and capture) and every shape keeps its graph, so draw from few
    shapes. Changed values of the parameters are seen; after moving or replacing them call `forget`.
    """

    def __init__(self, decoder: LatentGaussianDecoder, num_warmup_iterations: int = 3) -> None:
        self.decoder = decoder
        self.num_warmup_iterations = num_warmup_iterations
        self._graphs: dict[tuple[Any, ...], Any] = {}
        self._pool: Any = None

    def __call__(self, raw_latents: Float[Tensor, "B V C T h w"], conditioning: Conditioning) -> Gaussians:
        """The Gaussians that the decoder itself would give."""
        raw = self.raw(raw_latents, conditioning.plucker, conditioning.time)
        return self.decoder.gaussians(raw, conditioning)

    @property
    def num_graphs(self) -> int:
        """Shapes captured so far."""
        return len(self._graphs)

    def forget(self) -> None:
        """Drop all graphs and their memory."""
        self._graphs.clear()
        self._pool = None

    def raw(
        self,
        latents: Float[Tensor, "B V C T h w"],
        plucker: Float[Tensor, "B V C2 T h w"],
        time: Float[Tensor, "B C T1 h w"] | None = None,
    ) -> Float[Tensor, "B G 12"]:
        """The raw channels that the decoder itself would give."""
        if not (latents.is_cuda and self.decoder.training and torch.is_grad_enabled()):
            return self.decoder.raw(latents, plucker, time)
        inputs = (latents, plucker) if time is None else (latents, plucker, time)
        # A replayed backward pass hands out its own buffers as gradients; a gradient that is still wanted
        # (accumulation over several calls) must live elsewhere before the buffer is written again.
        for parameter in self.decoder.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        if key not in self._graphs:
            self._graphs[key] = self._capture(inputs)
        # A copy, because the next replay overwrites the graph's own output.
        return self._graphs[key](*inputs).clone()

    def _capture(self, inputs: tuple[Tensor, ...]) -> Any:
        """A callable with the decoder's raw channels as replayed graphs for inputs of these shapes."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        samples = tuple(tensor.detach().clone() for tensor in inputs)
        return torch.cuda.make_graphed_callables(
            _RawChannels(self.decoder),
            samples,
            num_warmup_iters=self.num_warmup_iterations,
            allow_unused_input=True,  # the time embeddings of a static decoder
            pool=self._pool,
        )


class _RawChannels(nn.Module):
    """The decoder's `raw` as the forward pass of a module, so that its parameters are captured too."""

    def __init__(self, decoder: LatentGaussianDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latents: Tensor, plucker: Tensor, time: Tensor | None = None) -> Tensor:
        return self.decoder.raw(latents, plucker, time)
