"""The rooms of the house and the arrows between them, read from the imports.

python -m tests.rooms        draws them anew into docs/architecture.md
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bench", "cloud", "common", "edge", "search", "splitpoint")
PAGE = ROOT / "docs" / "architecture.md"
_BEGIN, _END = "<!-- rooms: drawn by tests/rooms.py -->\n", "<!-- end of rooms -->\n"


def modules(room: str) -> dict[str, Path]:
    """The modules of a room by dotted name; a package is its `__init__`."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / room).rglob("*.py"))
    }


def targets(path: Path, known: Iterable[str]) -> Iterator[str]:
    """Known modules that a file imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                target = inner if inner in known else node.module
                if target in known:
                    yield target


def arrows(room: str) -> dict[str, set[str]]:
    """By folder of a room, or module beside them: which others of the same room it imports."""
    known = modules(room)

    def place(module: str) -> str:
        return [*module.split("."), ""][1]

    found: dict[str, set[str]] = {place(module): set() for module in known}
    for module, path in known.items():
        for target in targets(path, known):
            if place(target) != place(module):
                found[place(module)].add(place(target))
    return found


def between() -> dict[str, set[str]]:
    """By room: which other rooms it imports."""
    known = {module: path for room in ROOMS for module, path in modules(room).items()}
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, path in known.items():
        room = module.partition(".")[0]
        found[room] |= {target.partition(".")[0] for target in targets(path, known)} - {room}
    return found


def direct(arrows_of: dict[str, set[str]]) -> dict[str, set[str]]:
    """Arrows that no longer way round implies: what a reader can follow."""

    def reached(place: str) -> set[str]:
        seen: set[str] = set()
        todo = list(arrows_of[place])
        while todo:
            if (each := todo.pop()) not in seen:
                seen.add(each)
                todo += arrows_of.get(each, ())
        return seen

    return {
        place: {t for t in to if not any(t in reached(other) for other in to - {t})}
        for place, to in arrows_of.items()
    }


def drawn() -> str:
    """Two pictures in Mermaid: the rooms, and the folders of the search."""
    folders = {
        place: {t for t in to if _is_folder(t)}
        for place, to in arrows("search").items()
        if _is_folder(place)
    }
    return "\n".join([_mermaid(direct(between())), _mermaid(direct(folders))])


def page(text: str) -> str:
    """The page with its pictures as they are now."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{drawn()}\n{_END}{after}"


def _is_folder(name: str) -> bool:
    return bool(name) and (ROOT / "search" / name).is_dir()


def _mermaid(arrows_of: dict[str, set[str]]) -> str:
    lines = [
        f"    {place} --> {to}" for place in sorted(arrows_of) for to in sorted(arrows_of[place])
    ]
    return "\n".join(["```mermaid", "graph TD", *lines, "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
