"""What docs/generation.md says can be typed: its commands parse, and its example runs on names that exist."""

from __future__ import annotations

import re

import pytest

from lyra_ns.generation.settings import GenerateSettings
from tests.repository.test_readme import ROOT, parsed_problems, shell_lines, simple_problems

TEXT = (ROOT / "docs" / "generation.md").read_text()


@pytest.mark.slow
def test_commands_of_the_page_parse():
    commands = shell_lines(TEXT)
    assert sum(command[:2] == ["ns-lyra", "generate"] for command in commands) >= 8
    assert simple_problems(commands) + parsed_problems(commands) == []


def test_options_that_the_page_names_exist():
    known = {name.replace("_", "-") for name in GenerateSettings.__dataclass_fields__}
    named = set(re.findall(r"`--([a-z0-9-]+)", TEXT))
    assert named - known == set()
    assert {"teacher", "depth", "units", "pose-scale", "memory", "seed"} <= named
