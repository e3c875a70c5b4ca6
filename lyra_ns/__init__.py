"""Lyra for nerfstudio: latents of a camera-controlled video model in, a 3D or 4D Gaussian scene out.

>>> import lyra_ns
>>> lyra_ns.generate("photo.jpg").gaussians.save("scene.ply")

`dir(lyra_ns)` lists the public names; each is imported when it is first asked for (docs/api.md).
"""

# Nothing of nerfstudio or torch may be imported here: nerfstudio loads the entry points of every
# plugin in the middle of its own imports, and one that fails takes every ns-* command down with it
# (docs/reference/nerfstudio.md, "Entry points").
from importlib import import_module as _import_module
from pathlib import Path as _Path

__version__ = "0.2.0"

_PUBLIC = {
    "CameraPath": "lyra_ns.cameras",
    "Evaluation": "lyra_ns.lyra",
    "Gaussians": "lyra_ns.gaussians",
    "Generated": "lyra_ns.generation.in_memory",
    "InputScene": "lyra_ns.scene",
    "Lyra": "lyra_ns.lyra",
    "RenderSettings": "lyra_ns.rendering",
    "Rendered": "lyra_ns.rendering",
    "evaluate": "lyra_ns.lyra",
    "generate": "lyra_ns.generation.in_memory",
    "open_scene": "lyra_ns.scene",
    "render": "lyra_ns.rendering",
}
"""The module of each public name; __init__.pyi says the same to editors and mypy."""

__all__ = ["__version__", *_PUBLIC]

# In a source checkout the folders method_configs/ and dataparsers/ lie beside this package.
_root = _Path(__file__).resolve().parent.parent
if (_root / "method_configs" / "lyra.py").is_file() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))


def __getattr__(name: str) -> object:
    """A public name, from its module (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
