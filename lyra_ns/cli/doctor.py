"""`ns-lyra doctor`: what this machine has, and one line for each thing that is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from dataclasses import dataclass

PACKAGES = ("nerfstudio", "gsplat", "torch", "torchvision", "diffusers", "lpips", "viser", "tyro", "numpy")


@dataclass
class Doctor:
    """Print versions, the chosen backends and what to install for what is missing."""

    def run(self) -> None:
        """Print the report."""
        import torch

        from lyra_ns.ops.attention import choose_attention_backend, describe_attention_backend
        from lyra_ns.ops.ssd import choose_scan_backend, describe_scan_backend
        from lyra_ns.rendering import RenderSettings, describe_backend

        print(f"python {platform.python_version()} on {platform.platform()}")
        for name in PACKAGES:
            print(f"  {name:<12} {_version(name)}")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        is_cuda = device.type == "cuda"
        where = torch.cuda.get_device_name() if is_cuda else f"{torch.get_num_threads()} threads"
        print(f"device       {device.type} ({where})")
        print(f"scan         {describe_scan_backend(choose_scan_backend('auto'))}")
        attention = describe_attention_backend(choose_attention_backend())
        print(f"attention    {attention.removeprefix('attention: ')}")
        print(f"renderer     {describe_backend(RenderSettings(), device)}")
        for line in _advice(device.type):
            print(f"missing      {line}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed: pip install {name}"


def _advice(device: str) -> list[str]:
    import torch

    from lyra_ns.ops.ssd import runs_scan_kernels

    lines = []
    needs_mamba_ssm = device == "cuda" and not runs_scan_kernels(torch.device(device))
    if needs_mamba_ssm and importlib.util.find_spec("mamba_ssm") is None:
        lines.append("mamba-ssm, a faster scan on this GPU: pip install 'lyra-ns[cuda]' --no-build-isolation")
    if device == "cpu" and shutil.which("c++") is None:
        lines.append("a C++ compiler, for a renderer fifty times as fast as plain torch: apt install g++")
    if shutil.which("ffmpeg") is None:
        lines.append("ffmpeg, which ns-render wants: apt install ffmpeg")
    return lines
