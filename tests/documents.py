"""Commands and programs in the documents.

An indented block, or one fenced as sh, is commands; a python fence is a program. What is neither
(a picture, a file, an output) is fenced by a name of its own, such as text. In a table, a last cell
that is code and nothing else is a command.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conftest import REPOSITORY

DOCUMENTS = (
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
)
_BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|(?:^|(?<=\n\n))(?P<indented>(?: {4}[^\n]*\n)+)",
    re.DOTALL | re.MULTILINE,
)
_CELL = re.compile(r"^\|.*\| `(?P<command>(?:splitpoint|python) [^`]+)` \|$", re.MULTILINE)
_INDENTED_LINE = re.compile(r"^ {4}", re.MULTILINE)
_SHELL, _PYTHON = {"sh", "bash", "console"}, "python"
_COMMENT = re.compile(r"(?:^|\s+)# .*$")


@dataclass(frozen=True)
class Snippet:
    """One command or program.

    Attributes:
        place: Document and line, such as "README.md:12".
        text: A command in one line, without its comment; or a whole program.
        is_program: Whether it is Python.
    """

    place: str
    text: str
    is_program: bool


def snippets(name: str, document: str) -> list[Snippet]:
    """Commands and programs of a document's text, those of its tables last."""
    found: list[Snippet] = []
    for language, line, text in _blocks(document):
        if language == _PYTHON:
            found.append(Snippet(f"{name}:{line}", text, is_program=True))
        elif language in _SHELL:
            commands = _commands(text)
            found += [Snippet(f"{name}:{line + k}", each, is_program=False) for k, each in commands]
    for cell in _CELL.finditer(document):
        place = f"{name}:{document.count(chr(10), 0, cell.start()) + 1}"
        found.append(Snippet(place, cell["command"], is_program=False))
    return found


def every_snippet() -> list[Snippet]:
    """Commands and programs of all documents."""
    return [
        snippet for path in DOCUMENTS for snippet in snippets(path.name, path.read_text("utf-8"))
    ]


def _blocks(document: str) -> Iterator[tuple[str, int, str]]:
    """Language, number of the first line, and text of every block."""
    for found in _BLOCK.finditer(document):
        kind = "indented" if found["indented"] else "fenced"
        line = document.count("\n", 0, found.start(kind)) + 1
        text = _INDENTED_LINE.sub("", found[kind]) if kind == "indented" else found[kind]
        yield "sh" if kind == "indented" else found["language"], line, text


def _commands(text: str) -> Iterator[tuple[int, str]]:
    """Offset and text of each command; one that goes on after a backslash is joined."""
    joined, start = "", 0
    for offset, line in enumerate(text.splitlines()):
        start = offset if not joined else start
        joined += _COMMENT.sub("", line.removeprefix("$ ")).strip()
        if joined.endswith("\\"):
            joined = joined.removesuffix("\\")
        elif joined:
            yield start, joined
            joined = ""
