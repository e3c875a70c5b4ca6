"""Every document that code or documents cite is in the repository, with the section that they name.

A citation is the name of a markdown file in a comment, docstring or document, with the titles of its sections
behind it: `docs/reference/decoder.md, "Blocks" and "Pruning"`. Links of documents count, too, with their
anchors.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = ("lyra_ns", "method_configs", "dataparsers", "tests", "benchmarks", "training", "examples")
DOCUMENT_FOLDERS = ("docs", *CODE_FOLDERS)
CITATION = re.compile(r'(?<![\w./*-])((?:[\w.-]+/)*[\w-]+\.md)((?:(?:,? and|,) "[^"]+")*)')
"""Name of a document, and titles of its sections."""
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
UNNAMED = re.compile(r"\b[Ss]pec(?:ification)? \d|\((?:[A-J]\d, )*[A-J]\d\)")
"""A section of something without its name."""


def python_files() -> list[Path]:
    """All code of the checkout."""
    return sorted(path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))


def documents() -> list[Path]:
    """All documents of the checkout."""
    below = [path for folder in DOCUMENT_FOLDERS for path in (ROOT / folder).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *below])


def prose_of_code(source: str) -> str:
    """Comments, and strings that stand alone (docstrings and what describes a field), with single spaces."""
    strings = (
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
    return "\n".join([*map(single_spaces, strings), single_spaces(comments(source))])


def comments(source: str) -> str:
    """All comments, without the signs that begin them."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return " ".join(token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT)


def prose_of_document(markdown: str) -> str:
    """The text outside blocks of code and links, with single spaces."""
    return single_spaces(re.sub(r"\[[^]]*\]\([^)]*\)", "", without_code(markdown)))


def without_code(markdown: str) -> str:
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```", "", markdown, flags=re.DOTALL | re.MULTILINE)


def single_spaces(text: str) -> str:
    """The text in one line."""
    return re.sub(r"\s+", " ", text)


def titles(markdown: str) -> list[str]:
    """Titles of the sections."""
    return re.findall(r"^#+ (.+?)\s*$", without_code(markdown), re.MULTILINE)


def anchor(title: str) -> str:
    """What the web page of a repository calls a section."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def found(name: str, folder: Path) -> Path | None:
    """The document of that name, from the folder that cites it or from the root."""
    return next((path for path in (folder / name, ROOT / name) if path.is_file()), None)


def citation_problems(prose: str, folder: Path) -> Iterator[str]:
    """Citations in a text that lead nowhere."""
    for name, sections in CITATION.findall(prose):
        document = found(name, folder)
        if document is None:
            yield f"no document {name}"
            continue
        known = titles(document.read_text())
        yield from (
            f"{name} has no section {title!r}"
            for title in re.findall(r'"([^"]+)"', sections)
            if title not in known
        )
    yield from (f"{match[0]!r} names no document" for match in UNNAMED.finditer(prose))


def link_problems(markdown: str, path: Path) -> Iterator[str]:
    """Links in a document that lead nowhere."""
    for target, fragment in LINK.findall(without_code(markdown)):
        if re.match(r"[a-z]+:", target):
            continue
        document = path if not target else path.parent / target
        if not document.exists():
            yield f"no file {target}"
        elif fragment and fragment not in map(anchor, titles(document.read_text())):
            yield f"{target or path.name} has no section #{fragment}"


def document_problems(path: Path) -> list[str]:
    """Citations and links of a document that lead nowhere."""
    markdown = path.read_text()
    return [*citation_problems(prose_of_document(markdown), path.parent), *link_problems(markdown, path)]


def code_problems(path: Path) -> list[str]:
    """Citations in the comments and docstrings of a file that lead nowhere."""
    return list(citation_problems(prose_of_code(path.read_text()), path.parent))


@pytest.mark.slow
def test_citations_in_code_lead_somewhere() -> None:
    assert {path: problems for path in python_files() if (problems := code_problems(path))} == {}


def test_citations_and_links_in_documents_lead_somewhere() -> None:
    assert {path: problems for path in documents() if (problems := document_problems(path))} == {}


def test_titles_of_reference_documents_are_unique() -> None:
    for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
        found_titles = titles(path.read_text())
        assert len(found_titles) == len(set(found_titles)), path


@pytest.mark.slow
def test_every_reference_document_is_cited_by_code() -> None:
    """What nothing stands on is no reference."""
    prose = "\n".join(prose_of_code(path.read_text()) for path in python_files())
    pages = {path.name for path in (ROOT / "docs" / "reference").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"docs/reference/{page}" not in prose} == set()


def test_bad_citations_are_noticed() -> None:
    source = '''
"""Text (docs/reference/decoder.md,
"Blocks", "Pruning" and "Nowhere")."""
x = 1  # see docs/nothing.md and
# README.md
y = "docs/only_a_string.md"
"""A sentence under a name (spec 2), (C4, D4), f(A1)."""
'''
    assert list(citation_problems(prose_of_code(source), ROOT)) == [
        "docs/reference/decoder.md has no section 'Nowhere'",
        "no document docs/nothing.md",
        "'spec 2' names no document",
        "'(C4, D4)' names no document",
        "'(A1)' names no document",
    ]


def test_bad_links_are_noticed() -> None:
    markdown = (
        "[a](docs/data.md#sample-data) [b](docs/data.md#nowhere) [c](none.md) [d](https://e.org) [e](#f)"
    )
    assert list(link_problems(markdown, ROOT / "README.md")) == [
        "docs/data.md has no section #nowhere",
        "no file none.md",
        "README.md has no section #f",
    ]
