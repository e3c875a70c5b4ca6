"""The contracts of layers and circles hold, and see what they are there to see."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources as they are installed."""
    folder = tmp_path_factory.mktemp("house")
    sources = {"lyra_ns": "lyra_ns", "method_configs": "lyra_ns/method_configs"}
    sources["dataparsers"] = "lyra_ns/dataparsers"
    for source, place in sources.items():
        for file in (ROOT / source).rglob("*.py"):
            copy = folder / place / file.relative_to(ROOT / source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    return folder


def check_contracts(house: Path) -> tuple[int, str]:
    """Exit status of import-linter, and its report on one line."""
    contracts = ROOT / ".ci" / "importlinter.ini"
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", contracts]
    environment = os.environ | {"PYTHONPATH": str(house)}
    run = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True)
    return run.returncode, " ".join(run.stdout.split())


def test_contracts_are_kept(house: Path) -> None:
    status, report = check_contracts(house)
    assert status == 0, report
    assert "2 kept, 0 broken" in report


@pytest.mark.parametrize(
    ("importer", "imported", "broken"),
    [
        ("progress", "lyra_ns.cli.main", "command line BROKEN"),
        ("cameras", "lyra_ns.generation.inputs", "command line BROKEN"),
        ("data/scenes", "lyra_ns.data.resize", "packages BROKEN"),
        ("ops/ssd_types", "lyra_ns.ops.ssd", "packages BROKEN"),
    ],
)
def test_an_import_inside_a_function_breaks_them(
    house: Path, importer: str, imported: str, broken: str
) -> None:
    file = house / "lyra_ns" / f"{importer}.py"
    source = file.read_text()
    try:
        file.write_text(f"{source}\n\ndef _late() -> None:\n    import {imported}\n")
        status, report = check_contracts(house)
    finally:
        file.write_text(source)
    assert status != 0
    assert broken in report


def test_a_new_module_must_be_given_a_layer(house: Path) -> None:
    file = house / "lyra_ns" / "stranger.py"
    try:
        file.touch()
        status, report = check_contracts(house)
    finally:
        file.unlink()
    assert status != 0
    assert "stranger" in report
