"""The prose of the code follows the house style, as far as a machine can tell."""

from __future__ import annotations

import ast
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "wpray"
# Rooms whose docstrings are still to be rewritten; "." are the files at the top. Only ever remove from this list.
TO_DO: set[str] = set()
QUESTIONS = {"What", "How", "Whether", "Who", "Whoever", "Which", "Where", "When", "Why"}
FRAGMENTS = {"A", "An", "The", "Of", "For", "From", "By", "To", "With", "Exit"}  # a function's line is an imperative
RELATIVE = re.compile(r"# (that|which|who|whose)\b")  # beside code, such a comment only completes the line
ARCHAIC = re.compile(r"\b(anew|of late|likewise|thereby|therein|thereof|lest|whilst|for ever|nor will|nor is)\b")
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


def _comments(path: Path) -> list[tuple[str, bool]]:
    """Return each comment, and True if it stands beside code."""
    with path.open("rb") as file:
        comments = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    return [(comment.string, bool(comment.line[: comment.start[1]].strip())) for comment in comments]


def _docstrings(source: str) -> list[str]:
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Documented)]
    return [text for node in nodes if (text := ast.get_docstring(node))]


def _type_names(source: str) -> Iterator[str]:
    """Yield the names of classes and of aliases such as `Status = Literal[...]`; type variables may be repeated."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            names = (target.id for target in node.targets if isinstance(target, ast.Name))
            yield from (name for name in names if name[0].isupper() and not name.isupper())


def _family(path: Path) -> str | None:
    """Return the folder of a policy or a benchmark, such as policies/pi0; None for shared rooms."""
    room, *below = path.relative_to(PACKAGE).parts[:-1] or (".",)
    return f"{room}/{below[0]}" if room in ("policies", "benchmarks") and below else None


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_comments_are_sentences_or_labels_in_todays_words(path: Path) -> None:
    comments = _comments(path)
    assert not [text for text, beside_code in comments if beside_code and RELATIVE.match(text)]
    texts = [*(text for text, _ in comments), *_docstrings(path.read_text())]
    assert not [text for text in texts if ARCHAIC.search(text)]


def test_a_class_or_alias_has_a_name_of_its_own() -> None:
    """A policy's or benchmark's folder has names of its own, because it could be a package of other people."""
    names = Counter((_family(path), name) for path in FILES for name in _type_names(path.read_text()))
    assert not [name for name, count in names.items() if count > 1]


def test_names_of_classes_and_aliases_are_found() -> None:
    source = 'class Cell: ...\nKind = Literal["plan"]\nReply = Plan | Chunk\nReplyT = TypeVar("ReplyT")\n_BYTES = 2 * 3'
    assert list(_type_names(source)) == ["Cell", "Kind", "Reply"]
