"""What the README says can be done: its commands parse, and the files it names are there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELL_LANGUAGES = {"", "bash", "sh", "shell", "console"}
CHECKED_PROGRAMS = {"ns-lyra", "ns-train", "ns-eval", "ns-render", "ns-viewer", "ns-export"}
"""Programs whose arguments are parsed."""
KNOWN_PROGRAMS = {
    *("git", "cd", "source", "export", "pip", "python", "python3", "ns-install-cli", "tensorboard", "curl"),
    *("apt-get", "sudo", "docker", "unzip", "ls"),
}
"""Programs that a reader has or installs, taken as they are."""


def shell_lines(markdown: str) -> list[list[str]]:
    """The words of each command in the shell code blocks; comments, prompts and outputs are left out."""
    commands = []
    for language, body in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE):
        if language not in SHELL_LANGUAGES:
            continue
        lines = body.replace("\\\n", " ").splitlines()
        prompted = [line[2:] for line in lines if line.startswith("$ ")]
        for line in prompted or lines:
            for part in re.split(r"\s(?:&&|\|\||\||;)\s", line):
                words = shlex.split(part, comments=True)
                while words and (re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]) or words[0] == "nohup"):
                    words = words[1:]
                commands += [words] if words else []
    return commands


def make_targets() -> set[str]:
    """Targets of the Makefile."""
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def simple_problems(commands: list[list[str]]) -> list[str]:
    """Unknown programs, make targets that do not exist, scripts that are not there."""
    problems = []
    for program, *arguments in commands:
        if program == "make":
            targets = [word for word in arguments if "=" not in word and not word.startswith("-")]
            problems += [
                f"make has no target {target!r}" for target in targets if target not in make_targets()
            ]
        elif program in {"python", "python3"} and arguments and arguments[0].endswith(".py"):
            problems += [] if (ROOT / arguments[0]).is_file() else [f"no script {arguments[0]}"]
        elif program not in CHECKED_PROGRAMS | KNOWN_PROGRAMS:
            problems.append(f"unknown program {program!r}")
    return problems


def parsed_problems(commands: list[list[str]]) -> list[str]:
    """What the programs' own parsers say."""
    lines = [command for command in commands if command[0] in CHECKED_PROGRAMS]
    result = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "readme_commands.py")],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def missing_paths(markdown: str) -> list[str]:
    """Link targets that do not exist, and such paths in code that start with a top-level name."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|(?:src|href)=\"([^\"#]+)", markdown)
    local = {target for pair in links for target in pair if target and not re.match(r"[a-z]+:", target)}
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.name not in {"demo", "outputs"})
    code = "\n".join(re.findall(r"`([^`\n]+)`", markdown))
    local |= set(re.findall(rf"(?<![\w./-])(?:\./)?((?:{tops})/[\w./-]*\w)", code))
    return sorted(path for path in local if not (ROOT / path).exists())


def readme() -> str:
    """Its text."""
    return (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_readme_commands_parse() -> None:
    commands = shell_lines(readme())
    assert ["ns-lyra", "generate", "docs/coffee.jpg", "-o", "scene"] in commands
    assert ["ns-lyra", "demo"] in commands
    assert {"demo", "test"} <= make_targets() & set(re.findall(r"`make ([a-z-]+)`", readme()))
    assert simple_problems(commands) == []
    assert parsed_problems(commands) == []


@pytest.mark.slow
def test_commands_of_the_page_on_training_parse() -> None:
    """As above, one GPU and two."""
    commands = shell_lines((ROOT / "docs" / "training.md").read_text())
    assert any("--machine.num-devices" in command for command in commands)
    assert simple_problems(commands) + parsed_problems(commands) == []


def test_paths_in_readme_exist() -> None:
    assert missing_paths(readme()) == []


def test_wrong_commands_are_noticed() -> None:
    markdown = """Text with `ns-lyra inline`.
```bash
$ make nonsense WORKERS=2   # comment
FOO=1 ns-train lyra-tiny \\
    --no-such-option 3
$ python benchmarks/nowhere.py
```
```python
import this
```
"""
    assert shell_lines(markdown) == [["make", "nonsense", "WORKERS=2"], ["python", "benchmarks/nowhere.py"]]
    unprompted = shell_lines(markdown.replace("$ ", ""))
    assert unprompted[1] == ["ns-train", "lyra-tiny", "--no-such-option", "3"]
    assert simple_problems([*unprompted, ["frobnicate"]]) == [
        "make has no target 'nonsense'",
        "no script benchmarks/nowhere.py",
        "unknown program 'frobnicate'",
    ]


@pytest.mark.slow
def test_wrong_arguments_are_noticed() -> None:
    good = [
        ["ns-train", "lyra-tiny", "--data", "D", "--max-num-iterations", "5", "lyra-data"],
        ["ns-eval", "--load-config", "outputs/config.yml", "--output-path", "eval.json"],
        ["ns-render", "interpolate", "--load-config", "outputs/config.yml"],
        ["ns-viewer", "--load-config", "outputs/config.yml"],
        ["ns-export", "gaussian-splat", "--load-config", "outputs/config.yml", "--output-dir", "exports"],
        ["ns-lyra", "doctor"],
        ["ns-train", "--help"],
    ]
    bad = [
        ["ns-train", "lyra-tiny", "--no-such-option", "3"],
        ["ns-train", "lyra-unheard-of"],
        ["ns-export", "gaussian-splats", "--load-config", "outputs/config.yml"],
        ["ns-lyra", "no-such-command"],
    ]
    problems = parsed_problems(good + bad)
    assert len(problems) == len(bad), problems
    for line, found in zip(bad, problems, strict=True):
        assert found.startswith(" ".join(line))


def test_missing_paths_are_noticed() -> None:
    markdown = (
        "See [the code](lyra_ns/gaussians.py), [a section](docs/nowhere.md#part), "
        "[the web](https://example.org), `tests/conftest.py`, `lyra_ns/nothing.py` and "
        '`some/other/path.py`; <img src="docs/none.png">'
    )
    assert missing_paths(markdown) == ["docs/none.png", "docs/nowhere.md", "lyra_ns/nothing.py"]
