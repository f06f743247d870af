"""The prose of the code follows the house style, as far as a machine can tell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wpray"
# Rooms whose docstrings are still to be rewritten; "." are the files at the top. Only ever remove from this list.
TO_DO: set[str] = set()
QUESTIONS = {"What", "How", "Whether", "Who", "Whoever", "Which", "Where", "When", "Why"}
FRAGMENTS = {"A", "An", "The", "Of", "For", "From", "By", "To", "With", "Exit"}  # a function's line is an imperative
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else "."


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if _room(path) not in TO_DO]


def _first_words(source: str) -> Iterator[tuple[Documented, str, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            line = text.splitlines()[0]
            yield node, line.split()[0], line


def _asks_for_an_imperative(node: Documented) -> bool:
    """Functions do, but for properties, which name a value."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return not any(isinstance(mark, ast.Name) and mark.id == "property" for mark in node.decorator_list)


def _mistakes(source: str) -> list[str]:
    found = []
    for node, word, line in _first_words(source):
        third_person = word.isalpha() and word.endswith("s") and not word.endswith("ss") and len(word) > 2
        if word in QUESTIONS or (_asks_for_an_imperative(node) and (third_person or word in FRAGMENTS)):
            found.append(line)
    return found


def test_the_list_names_rooms_that_there_are() -> None:
    assert {_room(path) for path in PACKAGE.rglob("*.py")} >= TO_DO


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_are_imperatives_or_name_a_thing(path: Path) -> None:
    assert not _mistakes(path.read_text())


@pytest.mark.parametrize(
    ("line", "right"),
    [("Return the rate.", True), ("Returns the rate.", False), ("What came of it.", False), ("The rate.", False)],
)
def test_the_rule_finds_what_it_should(line: str, right: bool) -> None:
    assert (not _mistakes(f'def rate():\n    """{line}"""')) is right
