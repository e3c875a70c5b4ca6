"""Lyra for nerfstudio: latents of a camera-controlled video model in, a 3D or 4D Gaussian scene out."""

# Nothing of nerfstudio or torch may be imported here: nerfstudio loads the entry points of every
# plugin in the middle of its own imports, and one that fails takes every ns-* command down with it
# (docs/reference/nerfstudio.md, "Entry points").
from pathlib import Path as _Path

__version__ = "0.1.0"

# In a source checkout the folders method_configs/ and dataparsers/ lie beside this package.
_root = _Path(__file__).resolve().parent.parent
if (_root / "method_configs" / "lyra.py").is_file() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
