"""The package as it is installed: nothing forgotten, nothing generic beside it, and its entry points load."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from lyra_ns import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAPPED = {"method_configs": "lyra_ns.method_configs", "dataparsers": "lyra_ns.dataparsers"}
"""Folders of the checkout that are installed inside the package."""


def package_folders() -> dict[str, Path]:
    """Folder of every package by its installed name."""
    inits = [*(ROOT / "lyra_ns").rglob("__init__.py"), *(ROOT / folder / "__init__.py" for folder in MAPPED)]
    folders = [path.parent for path in inits if path.is_file()]
    names = {folder: ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    return {MAPPED.get(name, name): folder for folder, name in names.items()}


def package_files() -> set[str]:
    """Every file that belongs in the wheel, by its path there."""
    return {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in package_folders().items()
        for path in folder.iterdir()
        if path.is_file() and path.suffix != ".pyc"
    }


def test_package_list_is_whole() -> None:
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(package_folders())


def test_every_folder_of_code_is_a_package() -> None:
    holders = {path.parent for path in (ROOT / "lyra_ns").rglob("*.py")}
    assert {path for path in holders if not (path / "__init__.py").is_file()} == set()


OPTIONAL = {"triton", "flash-attn", "flash-attn-interface"}
"""Kernels that are used where they are installed; triton comes with torch on Linux."""
UNSEEN = {"accelerate", "open3d"}
"""Needed by diffusers, and a version that nerfstudio works with."""


def normal_name(requirement: str) -> str:
    """A requirement's package as indexes write it."""
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def imported_packages() -> set[str]:
    """Distributions of everything that the package imports from outside of itself and of Python."""
    modules = set()
    for folder in package_folders().values():
        for path in folder.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    modules.add(node.module.split(".")[0])
    distributions = packages_distributions()
    outside = modules - set(sys.stdlib_module_names) - {"lyra_ns"}
    return {normal_name(distributions.get(module, [module])[0]) for module in outside}


@pytest.mark.slow
def test_every_import_is_declared_and_every_requirement_imported() -> None:
    needed = {normal_name(text) for text in PROJECT["project"]["dependencies"]}
    extras = {
        normal_name(text)
        for extra, texts in PROJECT["project"]["optional-dependencies"].items()
        if extra != "dev"
        for text in texts
    }
    imported = imported_packages()
    assert imported - needed - extras == OPTIONAL
    assert needed - imported == UNSEEN


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources so that nothing lands in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("lyra_ns", *MAPPED):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        source,
    ]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_every_file_and_one_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert {name.split("/")[0] for name in names} == {"lyra_ns"}
    assert {Path(name).suffix for name in names} >= {".py", ".cpp", ".html", ".js", ".typed"}


def files_in_git() -> set[str]:
    """Every file of the checkout that git knows, or would."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs git")
    if result.returncode != 0:
        pytest.skip("needs a checkout: in a source release nothing tells what the repository holds")
    return {name for name in result.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.mark.slow
def test_source_release_holds_the_whole_checkout(tmp_path: Path) -> None:
    """So that its tests, documents and set-up work without the repository."""
    names = files_in_git()
    for name in names:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "--outdir",
        tmp_path,
        tmp_path / "source",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {name for name in held if name in {"PKG-INFO", "setup.cfg"} or ".egg-info/" in name}
    assert held - made == names


def test_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["project"]["license"]
    references = [reference["title"] for reference in citation["references"]]
    assert [title.partition(":")[0] for title in references] == ["Lyra", "GEN3C", "Nerfstudio"]


def test_changelog_has_this_version() -> None:
    """Versions newest first, with dates; what is not released yet stands above them."""
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = [re.fullmatch(r"(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)", title) for title in titles]
    assert versions[0] or titles[0] == "Unreleased"
    assert all(versions[1:])
    assert __version__ in {match[1] for match in versions if match}


def test_public_workflow_does_what_continuous_integration_does() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def entry_points_listed() -> Iterator[tuple[str, str, str]]:
    """Group, name and target of every entry point of pyproject.toml."""
    groups = {"console_scripts": PROJECT["project"]["scripts"], **PROJECT["project"]["entry-points"]}
    for group, points in groups.items():
        for name, target in points.items():
            yield group, name, target


@pytest.mark.slow
def test_entry_points_load_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = """
import json, sys
from importlib.metadata import distribution
points = distribution("lyra-ns").entry_points
loaded = {f"{point.group}:{point.name}": type(point.load()).__name__ for point in points}
import lyra_ns
print(json.dumps([lyra_ns.__file__, sys.modules["lyra_ns.method_configs"].__file__, loaded]))
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    package, configs, loaded = json.loads(result.stdout.splitlines()[-1])
    assert Path(package).is_relative_to(site)
    assert Path(configs).is_relative_to(site)
    kinds = {
        "console_scripts": "function",
        "nerfstudio.method_configs": "MethodSpecification",
        "nerfstudio.dataparser_configs": "DataParserSpecification",
    }
    assert loaded == {f"{group}:{name}": kinds[group] for group, name, _ in entry_points_listed()}


def test_constraints_pin_every_dependency_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!]+", line) for line in lines)
    pinned = [normalised(line.split("==")[0]) for line in lines]
    assert len(pinned) == len(set(pinned))
    listed = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    needed = {normalised(re.match(r"[A-Za-z0-9._-]+", requirement).group()) for requirement in listed}
    assert needed - set(pinned) == set()


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
