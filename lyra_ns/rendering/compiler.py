"""The compiled CPU kernel: built on first use, kept for the next.

Why one call of the compiler and not torch's builder: docs/reference/small_scale.md, "Rasterization on CPUs".
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("splat.cpp")

REQUIRED_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-Wno-psabi", "-Wno-unknown-pragmas")

FLAG_CHOICES = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
"""Tried in turn, since not every compiler knows every processor or has OpenMP."""


class CompilerMissing(RuntimeError):
    """There is no C++ compiler, or none that can build the kernel."""


@dataclass(frozen=True)
class Kernel:
    """The loaded kernel."""

    library: ctypes.CDLL
    """Its functions."""
    description: str
    """Compiler and flags, for the log."""


def find_compiler() -> str | None:
    """Path of a C++ compiler: $CXX if set, else the first of c++, g++ and clang++."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else ["c++", "g++", "clang++"])), None)


@functools.cache
def load_kernel() -> Kernel:
    """The kernel, from the cache or compiled now (about 3 s).

    Raises CompilerMissing where it cannot be built.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CompilerMissing(
            "the CPU renderer needs a C++ compiler and found none ($CXX, c++, g++, clang++): install one "
            "(e.g. apt install g++) or choose the renderer backend 'torch', which is slower"
        )
    errors = []
    for flags in FLAG_CHOICES:
        path = cache_folder() / f"splat-{_fingerprint(compiler, flags)}.so"
        error = None if path.exists() else _compile(compiler, flags, path)
        if error is None:
            return Kernel(ctypes.CDLL(str(path)), f"{Path(compiler).name} {' '.join(flags)}".strip())
        errors.append(error)
    raise CompilerMissing(f"{compiler} cannot build the CPU renderer {SOURCE}: {errors[-1]}")


def cache_folder() -> Path:
    """Where kernels are kept: $XDG_CACHE_HOME/lyra_ns/kernels, or a private folder if it is read-only."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "lyra_ns" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _private_folder()
    return folder if os.access(folder, os.W_OK) else _private_folder()


@functools.cache
def _private_folder() -> Path:
    # Freshly made and ours alone: a library at a guessable name in a shared folder could be anybody's.
    return Path(tempfile.mkdtemp(prefix="lyra_ns-kernels-"))


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    """What the binary depends on; the processor too, since homes are shared between machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [SOURCE.read_text(), version, *REQUIRED_FLAGS, *flags, platform.platform(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's model and abilities."""
    description = Path("/proc/cpuinfo")
    if not description.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "".join(sorted({line for line in description.read_text().splitlines() if line.startswith(wanted)}))


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> str | None:
    """Build the kernel at `path`; None, or what the compiler had to say.

    Workers may build at the same time: each writes a file of its own, then moves it into place at once.
    """
    logger.info("compiling the CPU renderer with %s %s (once)", compiler, " ".join(flags))
    handle, draft = tempfile.mkstemp(prefix="splat-", suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        command = [compiler, *REQUIRED_FLAGS, *flags, str(SOURCE), "-o", draft]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            os.replace(draft, path)
            return None
        return result.stderr.strip()[-500:]
    finally:
        Path(draft).unlink(missing_ok=True)
