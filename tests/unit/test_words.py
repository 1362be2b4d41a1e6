"""Docstrings can be read alone, and speak the field's language."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("bench", "cloud", "common", "edge", "search", "splitpoint")
FILES = [
    path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if "_pb2" not in path.name
]

# A docstring that begins so belongs to the name beside it: read alone, it says nothing.
HEADLESS = re.compile(
    r"(Of|What|As|Those|By|Who|Where|When|So|In|With|At|For|From|How|Which|The same)\b"
)
FOREIGN = re.compile(r"\b(reckon\w*|whoever|dearest|what (a )?frames? took|learns? of)\b", re.I)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Each docstring of a file, with the name of what it documents."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_can_be_read_alone(path: Path) -> None:
    headless = [(name, text) for name, text in docstrings(path) if HEADLESS.match(text)]
    assert headless == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_use_the_words_of_the_field(path: Path) -> None:
    foreign = [(name, FOREIGN.findall(text)) for name, text in docstrings(path)]
    assert [each for each in foreign if each[1]] == []


@pytest.mark.parametrize(
    ("text", "is_headless"),
    [
        ("Of the plan.", True),
        ("What it takes.", True),
        ("Digest of the plan.", False),
        ("Offset in bytes.", False),
    ],
)
def test_headless_is_what_it_says(text: str, *, is_headless: bool) -> None:
    assert bool(HEADLESS.match(text)) == is_headless
