"""Rendering: Gaussians and cameras to images, with gradients, on CUDA and on the CPU."""

from lyra_ns.rendering.renderer import choose_renderer, describe_backend, render
from lyra_ns.rendering.types import Rendered, RenderSettings, Response

__all__ = ["RenderSettings", "Rendered", "Response", "choose_renderer", "describe_backend", "render"]
